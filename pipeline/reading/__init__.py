"""How bytes get from the disk into memory."""
