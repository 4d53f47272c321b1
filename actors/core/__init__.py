"""The kernel: what flows, how it flows, what bounds it, who moves it."""
