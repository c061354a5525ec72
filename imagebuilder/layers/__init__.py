"""Cached layers: a build's state after each of its steps, kept to go on from."""
