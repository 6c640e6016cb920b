"""Backbones: one file for each paper."""

from visionmlp.models import mlpmixer, repmlpnet, resmlp

__all__ = ["mlpmixer", "repmlpnet", "resmlp"]
