"""Writes checkpoints anew in another format, and tells what that costs the model."""
