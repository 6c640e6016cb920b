"""What all tests share: PyTorch's oneDNN may be held to older instructions, OpenVINO's not."""

import os

import torch

_LIMIT = "ONEDNN_MAX_CPU_ISA"

if os.environ.get(_LIMIT):
    # each reads it once, at its first product; OpenVINO goes on to ask for kernels of the newest instructions that it
    # sees, and fails or crashes where its oneDNN may not have them
    torch.nn.functional.conv2d(torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3))
    del os.environ[_LIMIT]
