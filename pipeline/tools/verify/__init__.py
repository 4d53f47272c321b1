"""Checks that the files of a checkpoint have not changed, for `penstock verify`."""
