"""What lies in a checkpoint folder. Only headers are read."""
