"""Train a backbone by MoCo v3."""

from visionmlp.data import Preprocessing
from visionmlp.data.views import ViewAugmentation, Views
from visionmlp.heads.projection import projector
from visionmlp.models.backbone import Backbone
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.moco.config import MocoConfig
from visionmlp.tasks.moco.task import Moco, MocoNetwork
from visionmlp.tasks.self_supervised.run import Method
from visionmlp.tasks.self_supervised.run import train as train_self_supervised


def train(config: MocoConfig, *, resume: bool = False) -> TrainResult:
    """Train a backbone into a run folder; ``model.safetensors`` is the query encoder's, which the authors transfer.

    Args:
        config: all options.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    method = Method(
        network=lambda backbone: moco_network(config, backbone),
        task=lambda num_classes: Moco(config, num_classes),
        views=lambda preprocessing: moco_views(config, preprocessing),
        shipped="query encoder",
    )
    return train_self_supervised(config, method, resume=resume)


def moco_network(config: MocoConfig, backbone: Backbone) -> MocoNetwork:
    """A backbone with projector and predictor."""
    if config.freeze_stem:
        backbone.stem.requires_grad_(False)
    width, hidden = config.projector_dim, config.projector_hidden
    return MocoNetwork(
        backbone,
        projector(backbone.num_features, width, hidden_dim=hidden, layers=config.projector_layers),
        projector(width, width, hidden_dim=hidden, layers=2, last_norm=config.predictor_norm),
    )


def moco_views(config: MocoConfig, preprocessing: Preprocessing) -> Views:
    """Two views: blur always and rarely, solarisation in the second; bilinear as the authors', unless told else."""
    kinds = [
        ViewAugmentation(
            size=preprocessing.input_size[1:],
            scale=config.crop_scale,
            interpolation=config.interpolation or "bilinear",
            blur=blur,
            solarize=solarize,
        )
        for blur, solarize in ((1.0, 0.0), (0.1, 0.2))
    ]
    return Views([kind.transform(preprocessing) for kind in kinds])
