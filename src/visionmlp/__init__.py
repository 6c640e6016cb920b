"""visionmlp: every published vision MLP, exactly as its paper and its authors' weights define it."""

import sys
from typing import TYPE_CHECKING

from visionmlp.errors import CheckpointMismatch, VisionMLPError
from visionmlp.lazy import lazy_names

if TYPE_CHECKING:
    from visionmlp.layers.fusible import Fusible, reparameterize
    from visionmlp.layers.packing import prepack
    from visionmlp.memory import keep_freed_memory
    from visionmlp.models.checkpoint import load_checkpoint, load_model, save_checkpoint
    from visionmlp.models.dense import dense_features
    from visionmlp.models.dense_network import load_dense, save_dense
    from visionmlp.models.detector import create_detector
    from visionmlp.models.freezing import freeze
    from visionmlp.models.locality import add_locality
    from visionmlp.models.official import load_official, save_official
    from visionmlp.models.official_dense import load_official_dense, save_official_dense
    from visionmlp.models.registry import create_model, list_models, published_weights
    from visionmlp.models.resmlp_seq2seq import extend_positions
    from visionmlp.models.segmenter import create_segmenter
    from visionmlp.models.translator import create_translator
    from visionmlp.models.translator_files import load_translator, save_translator
    from visionmlp.models.upcycling import upcycle

__version__ = "0.1.0"
__all__ = [
    "CheckpointMismatch",
    "Fusible",
    "VisionMLPError",
    "add_locality",
    "create_detector",
    "create_model",
    "create_segmenter",
    "create_translator",
    "dense_features",
    "extend_positions",
    "freeze",
    "keep_freed_memory",
    "list_models",
    "load_checkpoint",
    "load_dense",
    "load_model",
    "load_official",
    "load_official_dense",
    "load_translator",
    "prepack",
    "published_weights",
    "reparameterize",
    "save_checkpoint",
    "save_dense",
    "save_official",
    "save_official_dense",
    "save_translator",
    "upcycle",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Fusible": "visionmlp.layers.fusible",
        "reparameterize": "visionmlp.layers.fusible",
        "prepack": "visionmlp.layers.packing",
        "keep_freed_memory": "visionmlp.memory",
        "load_checkpoint": "visionmlp.models.checkpoint",
        "load_model": "visionmlp.models.checkpoint",
        "save_checkpoint": "visionmlp.models.checkpoint",
        "dense_features": "visionmlp.models.dense",
        "load_dense": "visionmlp.models.dense_network",
        "save_dense": "visionmlp.models.dense_network",
        "create_detector": "visionmlp.models.detector",
        "freeze": "visionmlp.models.freezing",
        "add_locality": "visionmlp.models.locality",
        "load_official": "visionmlp.models.official",
        "save_official": "visionmlp.models.official",
        "load_official_dense": "visionmlp.models.official_dense",
        "save_official_dense": "visionmlp.models.official_dense",
        "create_model": "visionmlp.models.registry",
        "list_models": "visionmlp.models.registry",
        "published_weights": "visionmlp.models.registry",
        "create_segmenter": "visionmlp.models.segmenter",
        "create_translator": "visionmlp.models.translator",
        "load_translator": "visionmlp.models.translator_files",
        "save_translator": "visionmlp.models.translator_files",
        "extend_positions": "visionmlp.models.resmlp_seq2seq",
        "upcycle": "visionmlp.models.upcycling",
    },
)

# `import visionmlp` makes timm.create_model find every family, whichever of the two is imported first, and so imports
# both and torch, which takes seconds. The command alone does without until it needs a model: help, refusals and the
# table of models shall not wait. It is recognised by its own module, or as `python -m visionmlp`: sys.argv[0] is "-m"
# only while Python looks for the module to run.
if "visionmlp_command" not in sys.modules and sys.argv[:1] != ["-m"]:
    from visionmlp import models  # noqa: F401  (registers every family)
