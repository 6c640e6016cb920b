"""Heads: they take channel counts, never a model."""
