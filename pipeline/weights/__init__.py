"""Which bytes: checkpoints read in place."""
