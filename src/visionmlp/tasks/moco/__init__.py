"""MoCo v3: contrastive learning with a momentum encoder and no queue, Chen et al., arXiv 2104.02057."""
