"""The server several times, each with a model of its own, on Ray Serve."""
