"""Penstock: runs language models that are bigger than the memory of the device that computes."""
