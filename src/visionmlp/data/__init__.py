"""Images in, batches out: every draw a function of seed, epoch and position."""

from visionmlp.data.batches import BadImage, Batch, EvaluationBatches, TrainingBatches
from visionmlp.data.policy import BadImageLog
from visionmlp.data.sources import ImageSource, open_evaluation_data, open_training_data
from visionmlp.data.transforms import Augmentation, Preprocessing

__all__ = [
    "Augmentation",
    "BadImage",
    "BadImageLog",
    "Batch",
    "EvaluationBatches",
    "ImageSource",
    "Preprocessing",
    "TrainingBatches",
    "open_evaluation_data",
    "open_training_data",
]
