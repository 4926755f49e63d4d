"""Labels, rules, replays of labels and raw replies."""
