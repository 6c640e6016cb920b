"""Checkpoints of translators: weights, configuration, and the tokenizer that the ids are of, in one file."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visionmlp.errors import CheckpointError, VisionMLPError, first_line
from visionmlp.files import require_utf8, whole_file
from visionmlp.models.metadata import METADATA_KEY, is_moderate
from visionmlp.models.official import check_fit
from visionmlp.models.translator import Translator, create_translator
from visionmlp.models.wrappers import plain_names, unwrapped_to

TASK = "translate"
_TOKENIZER = "tokenizer"
"""Name of the tensor that holds its bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslatorInfo:
    """What a checkpoint says about itself beside its weights."""

    model: str
    """Name of the preset."""
    config: Mapping[str, Any]
    """Its configuration."""
    languages: tuple[str, str] | None
    """Of source and target."""
    tokenizer: bytes
    """sentencepiece's model."""
    source: str
    """Where the weights come from."""


def save_translator(
    path: str | os.PathLike[str],
    network: nn.Module,
    *,
    tokenizer: bytes,
    languages: tuple[str, str] | None = None,
) -> None:
    """Write a translator, beside the target first and then renamed.

    Args:
        path: ``.safetensors`` file.
        network: a `Translator`, or what ``torch.compile`` and its like made of it.
        tokenizer: sentencepiece's model.
        languages: of source and target, such as ("en", "de").

    Raises:
        CheckpointError: if the file cannot be written, or the network was changed so that nothing could load it.
    """
    path, network = Path(path), unwrapped_to(Translator, network)
    if not tokenizer:
        raise CheckpointError("the tokenizer is empty; give the content of sentencepiece's model")
    config = dataclasses.asdict(network.config)
    metadata = {
        "task": TASK,
        "model": network.name,
        "config": config,
        "languages": None if languages is None else list(languages),
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
    }
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    tensors = plain_names(tensors, network.name)
    check_fit(network.name, _on_meta(network.name, config).state_dict(), tensors, "the network as it is now")
    tensors[_TOKENIZER] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={METADATA_KEY: json.dumps(metadata)})


def load_translator(path: str | os.PathLike[str]) -> tuple[Translator, TranslatorInfo]:
    """Read a checkpoint that `save_translator` wrote, in evaluation mode.

    Args:
        path: the file, or a run folder with ``model.safetensors``.

    Raises:
        CheckpointError: if the file is missing, truncated, damaged or holds another network.
        CheckpointMismatch: if it holds other tensors than its network has.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise CheckpointError(f"{path} is no run folder with a finished evaluation: it has no model.safetensors")
        path = path / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    require_utf8(path, CheckpointError)
    try:
        with safe_open(path, framework="pt") as archive:
            text = (archive.metadata() or {}).get(METADATA_KEY, "{}")
            state = {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file") from error
    fields = _fields(text, path)
    tokenizer = _tokenizer(state, fields, path)
    if len(dtypes := {value.dtype for value in state.values()}) != 1 or not dtypes.pop().is_floating_point:
        raise CheckpointError(
            f"{path} has weights of several dtypes, or of whole numbers; it is no network that trained"
        )
    try:
        twin = _on_meta(fields["model"], fields["config"])
        check_fit(fields["model"], twin.state_dict(), state, str(path))
        with torch.random.fork_rng(devices=[]):
            network = create_translator(fields["model"], **fields["config"]).eval()
    except CheckpointError:
        raise
    except (VisionMLPError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{path} was written for a network that this version cannot build: {first_line(error)}"
        ) from error
    network.load_state_dict(state, assign=True)
    languages = fields.get("languages")
    return network, TranslatorInfo(
        model=fields["model"],
        config=fields["config"],
        languages=None if languages is None else (languages[0], languages[1]),
        tokenizer=tokenizer,
        source=str(path),
    )


def _on_meta(name: str, config: Mapping[str, Any]) -> Translator:
    with torch.device("meta"):
        return create_translator(name, **config)


def _fields(text: str, path: Path) -> dict[str, Any]:
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has damaged metadata: it is no JSON") from error
    if not isinstance(fields, dict) or fields.get("task") != TASK:
        ours = isinstance(fields, dict) and fields.get("model")
        kind = f"a network for {fields.get('task', 'classify')}" if ours else "nothing of ours"
        raise CheckpointError(f"{path} holds {kind}, no translator; give the run folder or file of --task translate")
    config, languages = fields.get("config"), fields.get("languages")
    rules = {
        "model": isinstance(fields.get("model"), str),
        "config": isinstance(config, dict) and all(map(is_moderate, config.values())),
        "languages": languages is None
        or (isinstance(languages, list) and len(languages) == 2 and all(isinstance(one, str) for one in languages)),
    }
    for name, holds in rules.items():
        if not holds:
            raise CheckpointError(f"{path} has damaged metadata: its {name} has no value that can be")
    return fields


def _tokenizer(state: dict[str, Tensor], fields: Mapping[str, Any], path: Path) -> bytes:
    """Taken out of the tensors."""
    stored = state.pop(_TOKENIZER, None)
    if stored is None or stored.dtype != torch.uint8 or stored.dim() != 1:
        raise CheckpointError(f"{path} has no tokenizer, so its ids mean nothing")
    content = stored.numpy().tobytes()
    if hashlib.sha256(content).hexdigest() != fields.get("tokenizer_sha256"):
        raise CheckpointError(f"{path} has another tokenizer than it was trained with; its ids would be other words")
    return content
