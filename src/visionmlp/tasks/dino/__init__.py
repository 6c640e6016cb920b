"""DINO: self-distillation without labels, Caron et al., arXiv 2104.14294."""
