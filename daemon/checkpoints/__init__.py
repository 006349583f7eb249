"""Published checkpoints: complete or absent, and verified whenever they are read."""
