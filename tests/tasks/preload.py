"""What processes that train have imported; those of `tests.tasks.processes` are forked from one that has."""

# ruff: noqa: F401

import lightning_fabric.strategies
import matplotlib.pyplot
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor

import visionmlp.tasks.classify.run
import visionmlp.tasks.detect.run
import visionmlp.tasks.dino.run
import visionmlp.tasks.moco.run
import visionmlp.tasks.segment.run
import visionmlp.tasks.translate.run
