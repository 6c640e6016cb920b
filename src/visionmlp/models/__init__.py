"""Backbones: one file for each paper."""

from visionmlp.models import asmlp, cyclemlp, dynamixer, hiremlp, mlpmixer, repmlpnet, resmlp, sparsemlp_moe, vip

__all__ = ["asmlp", "cyclemlp", "dynamixer", "hiremlp", "mlpmixer", "repmlpnet", "resmlp", "sparsemlp_moe", "vip"]
