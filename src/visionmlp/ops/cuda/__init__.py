"""What CUDA needs kernels of our own for, in Triton; each one's measured gain is in docs/results/cuda.md.

Every function is a custom operator: ``torch.compile`` keeps it whole, CUDA graphs capture it, and a CPU never sees it.
Kernels are compiled at first use; Triton is imported then, and comes with PyTorch for CUDA.
"""
