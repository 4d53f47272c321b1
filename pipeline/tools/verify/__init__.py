"""Whether the files of a checkpoint are what they were: what `penstock verify` does."""
