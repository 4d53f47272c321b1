"""A recorded run as a file for Perfetto, as gaps in the computing with their causes, and as a page to look at."""
