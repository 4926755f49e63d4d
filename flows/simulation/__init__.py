"""Playing episodes: environments, rollouts, replays, branches and frames."""
