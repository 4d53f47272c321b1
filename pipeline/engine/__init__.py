"""Puts a line together and keeps it running: plan, wiring, residency, policies, statistics."""
