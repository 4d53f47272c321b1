"""What a recorded run says: a file for Perfetto, the gaps in the computing and their causes, a page to look at."""
