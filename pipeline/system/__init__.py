"""What the process, its machine and its files are: limits, threads, small files, memory that others were promised."""
