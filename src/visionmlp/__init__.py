"""visionmlp: every published vision MLP, exactly as its paper and its authors' weights define it."""

from visionmlp import models  # noqa: F401  (registers every family)
from visionmlp.errors import CheckpointMismatch, VisionMLPError
from visionmlp.layers.fusible import Fusible, reparameterize
from visionmlp.layers.packing import prepack
from visionmlp.models.checkpoint import load_checkpoint, load_model, save_checkpoint
from visionmlp.models.dense import dense_features
from visionmlp.models.locality import add_locality
from visionmlp.models.official import load_official, save_official
from visionmlp.models.registry import create_model, list_models, published_weights
from visionmlp.models.upcycling import upcycle

__version__ = "0.1.0"
__all__ = [
    "CheckpointMismatch",
    "Fusible",
    "VisionMLPError",
    "add_locality",
    "create_model",
    "dense_features",
    "list_models",
    "load_checkpoint",
    "load_model",
    "load_official",
    "prepack",
    "published_weights",
    "reparameterize",
    "save_checkpoint",
    "save_official",
    "upcycle",
]
