"""What timm's factory hands to our models and takes from them: feature wrappers, saved models, configurations."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from timm.models import FeatureDictNet, FeatureListNet, PretrainedCfg
from timm.models._features import FeatureGetterNet
from torch import Tensor

from visionmlp.errors import CheckpointMismatch, InvalidConfig
from visionmlp.models.backbone import Backbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.levels import chained
from visionmlp.models.official import adapted, mismatch_of, resize_tokens

_CHAINS = {"list": FeatureListNet, "dict": FeatureDictNet}


def feature_options(
    given: Mapping[str, Any] | None, cls: Any, *, out_indices: tuple[int, ...], level_norms: bool
) -> dict[str, Any]:
    """timm's ``feature_cfg`` of a backbone.

    Args:
        given: the user's; what it leaves out is ours.
        cls: the user's ``feature_cls``, if given beside it.
        out_indices: levels where the user names none.
        level_norms: whether the levels have norms of their own, which only the getter applies.

    Raises:
        InvalidConfig: for a wrapper that would leave such norms out.
    """
    options = {"out_indices": out_indices, "feature_cls": "getter", **(given or {})}
    if cls is not None:
        options["feature_cls"] = cls
    cls = options["feature_cls"]
    name = cls.lower() if isinstance(cls, str) else getattr(cls, "__name__", str(cls))
    is_getter = name == "getter" or (isinstance(cls, type) and issubclass(cls, FeatureGetterNet))
    if level_norms and not is_getter:
        raise InvalidConfig(f"feature_cls={name!r} takes levels without their feature_norms; use 'getter'")
    chain = _CHAINS.get(name) if isinstance(cls, str) else cls
    if isinstance(chain, type) and issubclass(chain, FeatureDictNet):
        options["feature_cls"] = partial(chained, chain)
        options.pop("flatten_sequential", None)
    return options


def described(cfg: dict[str, Any], config: BackboneConfig) -> dict[str, Any]:
    """timm's configuration of a model as it is built: the preprocessing of its weights at its own size and channels."""
    channels, size = config.in_chans, config.img_size
    same_size = tuple(cfg["input_size"][1:]) == size
    values: dict[str, Any] = {"input_size": (channels, *size)}
    values |= {key: for_channels(cfg[key], channels) for key in ("mean", "std")}
    pool_size = cfg.get("pool_size") if same_size else None
    return {**cfg, **values, "pool_size": pool_size or tuple(side // config.strides[-1] for side in size)}


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics of other images than RGB: every channel gets the average."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def saved_state_filter(cfg: PretrainedCfg) -> Callable[[dict[str, Tensor], Backbone], dict[str, Tensor]]:
    """What timm calls on the state dict of a model that it saved, before it loads it loosely.

    Args:
        cfg: of the saved model.
    """

    def fit(state: dict[str, Tensor], model: Backbone) -> dict[str, Tensor]:
        label, own = cfg.file or cfg.hf_hub_id or "the saved model", model.state_dict()
        # another number of classes leaves the classifier fresh; a classifier starts a dense model
        loose = ("head.fc.", "feature_norms.")
        missing = sorted(name for name in own.keys() - state.keys() if not name.startswith(loose))
        unexpected = sorted(name for name in state.keys() - own.keys() if not name.startswith("head.fc."))
        if missing or unexpected:
            raise CheckpointMismatch(
                f"{label} does not fit {model.name} in {model.form} form with these options, as in "
                f"{(missing + unexpected)[0]}; give those of the saved model, its form among them (timm's model_args)",
                missing=missing,
                unexpected=unexpected,
            )
        with mismatch_of(model, label):
            state = adapted(model, resize_tokens(model, state, (cfg.input_size[1], cfg.input_size[2])), label)
        # the kernels take the model's channels now; timm before 1.0.31 would adapt, or drop, them once more
        model.pretrained_cfg |= {"first_conv": None, "input_size": (model.in_chans, *cfg.input_size[1:])}
        return {name: value for name, value in own.items() if name.startswith("feature_norms.")} | state

    return fit


def require_same_classes(cfg: PretrainedCfg, num_classes: int, *, name: str) -> None:
    """Raise InvalidConfig if a saved deploy form is to get another classifier: it may hold the last norm."""
    if num_classes != cfg.num_classes:
        raise InvalidConfig(
            f"the saved deploy form of {name} has {cfg.num_classes} classes, which cannot change to {num_classes}; "
            "load the training form, reset its classifier and reparameterize it"
        )
