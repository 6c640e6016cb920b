"""Shipping a model: the certificate, graphs, exported files, runtimes, int8, the authors' format."""
