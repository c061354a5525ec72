"""A first disk from distribution packages."""
