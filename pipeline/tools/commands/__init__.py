"""The commands of the command line: each prints what people look at."""
