"""Which experts a model has chosen: recorded in a file, and replayed through caches of other sizes."""
