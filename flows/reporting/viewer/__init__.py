"""The episode viewer: steps, lanes, pictures, replies, and a rematch side by side."""
