"""What an exported file says about itself."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from visionmlp.deploy.graphs import Batch, Sides
from visionmlp.deploy.networks import CLASSIFY, Network, NetworkInfo, backbone_of, kept_preprocessing, task_of
from visionmlp.errors import CheckpointError
from visionmlp.models.checkpoint import CheckpointInfo

RT_INFO_KEY = "visionmlp"
"""Group of an OpenVINO model's ``rt_info`` that holds it."""
PROGRAM_ENTRY = "visionmlp.json"
"""File within a ``.pt2`` program that holds it."""

Dtype = Literal["float32", "bf16", "fp16", "int8"]
"""What the products of a file are computed in, or its weights are stored in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """What an exported file says about itself."""

    task: str = CLASSIFY
    """What the logits are for: ``classify`` (B, K) or ``segment`` (B, K, H, W)."""
    model: str
    """Variant name of the classifier, or of the backbone."""
    form: Literal["training", "deploy"]
    dtype: Dtype
    num_classes: int
    class_names: list[str] | None
    preprocessing: dict[str, Any]
    """See `CheckpointInfo`."""
    input_size: tuple[int, int, int]
    """(C, H, W) that the graph takes, or was made with if it takes others too."""
    batch: Batch
    """The one batch size, or "dynamic"."""
    sides: Sides | None
    """Of a graph that takes other sizes too."""

    def to_text(self) -> dict[str, str]:
        """One string for each field; all but names as JSON."""
        plain = dataclasses.asdict(self)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in plain.items()}

    @classmethod
    def from_text(cls, text: Mapping[str, str], path: Path) -> "ExportMetadata":
        """The inverse of `to_text`.

        Raises:
            CheckpointError: if a field is missing or makes no sense.
        """
        if "model" not in text or "preprocessing" not in text:
            raise CheckpointError(f"{path} was not written by visionmlp export: it does not say which model it holds")
        try:
            batch, sides = text["batch"], json.loads(text["sides"])
            names = json.loads(text["class_names"])
            metadata = cls(
                task=text.get("task", CLASSIFY),  # older files hold classifiers
                model=text["model"],
                form=cast("Any", text["form"]),
                dtype=cast("Any", text["dtype"]),
                num_classes=int(text["num_classes"]),
                class_names=None if names is None else [str(name) for name in names],
                preprocessing=dict(json.loads(text["preprocessing"])),
                input_size=cast("Any", tuple(int(side) for side in json.loads(text["input_size"]))),
                batch="dynamic" if batch == "dynamic" else int(batch),
                sides=None if sides is None else Sides(step=int(sides["step"]), least=int(sides["least"])),
            )
            counted = metadata.class_names is None or len(metadata.class_names) == metadata.num_classes
            if len(metadata.input_size) != 3 or not counted or metadata.batch in (0, -1):
                raise ValueError("a value does not fit")
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} has damaged metadata") from error
        return metadata

    def info(self, source: str) -> CheckpointInfo:
        """The same as a checkpoint says it."""
        return CheckpointInfo(
            model=self.model,
            form=self.form,
            class_names=self.class_names,
            preprocessing=self.preprocessing,
            source=source,
        )


def metadata_of(
    network: Network,
    info: NetworkInfo,
    *,
    dtype: Dtype,
    batch: Batch,
    sides: Sides | None,
    size: tuple[int, int],
    form: str,
) -> ExportMetadata:
    """What an export of a network says about itself; ``size`` is height and width of `ExportMetadata.input_size`."""
    backbone = backbone_of(network)
    return ExportMetadata(
        task=task_of(network),
        model=info.model,
        form=cast("Any", form),
        dtype=dtype,
        num_classes=network.num_classes,
        class_names=info.class_names,
        preprocessing=kept_preprocessing(network, info),
        input_size=(backbone.in_chans, *size),
        batch=batch,
        sides=sides,
    )
