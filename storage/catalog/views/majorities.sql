-- Per step the suggestion of most.
SELECT dataset_id, episode_id, step, majority_action, majority_label FROM tallies
