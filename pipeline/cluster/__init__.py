"""One model over several machines: a section of its layers on each node of a Ray cluster (the extra `ray`)."""
