"""What the command line runs: each command prints what people look at."""
