"""Benchmarks: what is measured, how, layer by layer, and the tables."""
