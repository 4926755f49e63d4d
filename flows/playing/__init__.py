"""Where policies act: environments, episodes side by side, replays, and policies whoever made them."""
