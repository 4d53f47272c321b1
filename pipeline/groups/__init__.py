"""Weight groups as data: which byte ranges travel together, and where they lie in a slot."""
