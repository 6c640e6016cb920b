"""Train a backbone by DINO."""

from visionmlp.data import Preprocessing
from visionmlp.data.views import ViewAugmentation, Views
from visionmlp.errors import InvalidConfig
from visionmlp.heads.projection import DinoHead
from visionmlp.models.backbone import Backbone
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.dino.config import DinoConfig
from visionmlp.tasks.dino.task import Dino, DinoNetwork
from visionmlp.tasks.self_supervised.run import Method
from visionmlp.tasks.self_supervised.run import train as train_self_supervised


def train(config: DinoConfig, *, resume: bool = False) -> TrainResult:
    """Train a backbone into a run folder; ``model.safetensors`` is the teacher's.

    Args:
        config: all options.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    local_size: tuple[int, int] | None = None

    def network(backbone: Backbone) -> DinoNetwork:
        nonlocal local_size
        local_size = local_crop_size(config, backbone)
        return DinoNetwork(backbone, dino_head(config, backbone.num_features))

    def views(preprocessing: Preprocessing) -> Views:
        assert local_size is not None
        return dino_views(config, preprocessing, local_size)

    method = Method(network=network, task=lambda num_classes: Dino(config, num_classes), views=views, shipped="teacher")
    return train_self_supervised(config, method, resume=resume)


def dino_head(config: DinoConfig, features: int) -> DinoHead:
    """The head for features of a width."""
    return DinoHead(
        features,
        config.out_dim,
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
        layers=config.head_layers,
        batch_norm=config.head_batch_norm,
        norm_last_layer=config.norm_last_layer,
    )


def local_crop_size(config: DinoConfig, backbone: Backbone) -> tuple[int, int]:
    """Height and width of local crops: ``local_size`` where the model takes it, otherwise its input's.

    Models with a matrix over positions know one size only; a crop that is resized to it shows as little of the image.

    Raises:
        InvalidConfig: if local crops are to keep a size that the model does not take.
    """
    takes_any = backbone.input_sizes == "any"
    if config.local_fit == "native" and not takes_any:
        raise InvalidConfig(
            f"{backbone.name} takes images of its own size only, so local crops cannot stay at {config.local_size} "
            "pixels; use local_fit resize"
        )
    if config.local_fit == "resize" or not takes_any:
        return backbone.config.img_size
    return config.local_size, config.local_size


def dino_views(config: DinoConfig, preprocessing: Preprocessing, local_size: tuple[int, int]) -> Views:
    """Two global views, then the local ones: blur always, rarely, and in half of them; solarisation in the second.

    Bicubic as the authors', unless told otherwise.
    """
    size = preprocessing.input_size[1:]
    interpolation = config.interpolation or "bicubic"
    first = ViewAugmentation(size=size, scale=config.global_scale, interpolation=interpolation, blur=1.0, solarize=0.0)
    second = ViewAugmentation(size=size, scale=config.global_scale, interpolation=interpolation, blur=0.1, solarize=0.2)
    local = ViewAugmentation(
        size=local_size, scale=config.local_scale, interpolation=interpolation, blur=0.5, solarize=0.0
    )
    kinds = [first, second, *[local] * config.local_crops]
    return Views([kind.transform(preprocessing) for kind in kinds])
