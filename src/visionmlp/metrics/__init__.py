"""Metrics as sums over batches."""

from visionmlp.metrics.classification import classification_metrics, classification_sums

__all__ = ["classification_metrics", "classification_sums"]
