"""Timing, the rate of matrix products, counts of parameters and multiply-accumulates."""
