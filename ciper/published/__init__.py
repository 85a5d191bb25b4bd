"""Evaluation on the protocols of the field as they are published: fixed chips, fixed galleries."""
