"""Held-out measurements of the live policy."""
