"""Procedural cities and their rendering from above and from the ground."""
