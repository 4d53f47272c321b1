"""The production actors on virtual time."""
