"""How a checkpoint stores a matrix, and what multiplies by it: a sibling for each format."""
