"""``pretrained=True``: published weights from the network, through PyTorch's cache; nothing is fetched unasked."""

import hashlib
import http.client
import logging
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.console import Console
from rich.progress import wrap_file
from timm.models import PretrainedCfg, resolve_pretrained_cfg
from torch import Tensor

from visionmlp.errors import CheckpointError, UnknownModel
from visionmlp.models.backbone import Backbone, FusibleBackbone
from visionmlp.models.official import (
    adapted,
    from_official,
    is_of_timm,
    load_strictly,
    mismatch_of,
    read_official,
    resize_tokens,
)
from visionmlp.models.weights import WEIGHTS, why_unavailable

_CHUNK = 1 << 20
_TIMEOUT = 30.0
"""Seconds without a byte after which a server counts as gone."""
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")

_logger = logging.getLogger(__name__)


def resolve(name: str, cfg: Any, overlay: dict[str, Any] | None) -> PretrainedCfg:
    """What timm's arguments say about weights and preprocessing.

    Args:
        name: variant.
        cfg: ``pretrained_cfg``: a tag, a dict or ``None``.
        overlay: ``pretrained_cfg_overlay``.

    Raises:
        UnknownModel: for a tag that the variant does not have.
    """
    if isinstance(cfg, str):
        check_tag(name, cfg)
    return resolve_pretrained_cfg(name, pretrained_cfg=cfg, pretrained_cfg_overlay=overlay)


def check_tag(name: str, tag: str) -> None:
    """Raise UnknownModel unless the variant has weights of this tag."""
    tags = [weights.tag for weights in WEIGHTS.get(name, ())]
    if tag not in tags:
        raise UnknownModel.of_weights(name, tag, tags)


def is_hub_model(cfg: PretrainedCfg) -> bool:
    """Whether timm finds the weights itself: in a hub repository or a folder that holds a model saved by timm."""
    return bool(cfg.hf_hub_id) or cfg.source in ("hf-hub", "local-dir")


def load_pretrained(model: Backbone, cfg: PretrainedCfg, *, family: str, cache_dir: str | Path | None = None) -> None:
    """Load the weights that a configuration names, in place, strictly.

    Token matrices are resized to the model's image size. Another number of classes keeps the model's own classifier,
    other input channels get the averaged or repeated kernels of timm. Weights may be in the authors' format or ours.

    Args:
        model: training form.
        cfg: names a state dict, a file or an address, in this order, and what the weights were trained for.
        family: display name.
        cache_dir: where files are kept; PyTorch's folder of checkpoints if ``None``.

    Raises:
        CheckpointError: if nothing can be fetched, saying why and what to do; for a file that is broken.
        CheckpointMismatch: if it holds the weights of another model.
    """
    assert isinstance(model, FusibleBackbone)
    if cfg.state_dict is not None:
        state, label = read_official(cfg.state_dict, model=model), "the given state dict"
    elif cfg.file is not None:
        state, label = read_official(cfg.file, model=model), cfg.file
    elif cfg.url is not None:
        url, file = cfg.url if isinstance(cfg.url, (tuple, list)) else (cfg.url, _file_name(cfg.url))
        sha256 = next((w.sha256 for w in WEIGHTS.get(model.name, ()) if w.url == url), None)
        state, label = _fetched_state(model, url, _cache_folder(cache_dir) / file, sha256)
    else:
        raise CheckpointError(why_unavailable(model.name, family, cfg.tag))
    load_strictly(model, _fitted(model, cfg, state, label), label)
    if is_of_timm(model, state):
        model.compute_as_timm()


def _fitted(model: FusibleBackbone, cfg: PretrainedCfg, state: dict[str, Tensor], label: str) -> dict[str, Tensor]:
    """Our names, the model's grids, classifier and input channels."""
    own = model.state_dict()
    classifier = ("head.fc.weight", "head.fc.bias")
    kept = {}
    if model.num_classes != cfg.num_classes or model.num_classes == 0:
        layouts = (model.official_entry, model.timm_entry)
        named = {entry.name for name in classifier for entry_of in layouts if (entry := entry_of(name))}
        unused = {*classifier, *named}
        state = {name: value for name, value in state.items() if name not in unused}
        kept = {name: own[name] for name in classifier if name in own}
    state = adapted(model, from_official(model, state, label), label)
    with mismatch_of(model, label):
        return resize_tokens(model, state, cfg.input_size[1:]) | kept


def _fetched_state(model: FusibleBackbone, url: str, path: Path, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    """The state dict at an address, from the cache if it is there; a file that is broken does not stay in the cache."""
    if sha256 is None and (match := _HASH_IN_NAME.search(url)):  # PyTorch's custom for addresses
        sha256 = match[1]
    if not path.is_file():
        _download(url, path)
    try:
        if sha256 is not None:
            digest = _sha256(path)
            if not digest.startswith(sha256):
                raise CheckpointError(f"its SHA-256 is {digest}, not {sha256}")
        return read_official(path, model=model), f"{path} from {url}"
    except CheckpointError as error:
        path.unlink(missing_ok=True)
        raise CheckpointError(f"what came from {url} was removed again: {error}") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _download(url: str, path: Path) -> None:
    """Fetch a file; it appears under its name only when every byte has come."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    _logger.info("downloading %s to %s", url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "visionmlp"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, partial.open("wb") as file:
            expected = answer.headers.get("Content-Length")
            with _progress(answer, path.name, total=int(expected or 0)) as body:
                size = 0
                while chunk := body.read(_CHUNK):
                    size += file.write(chunk)
        if expected is not None and size != int(expected):
            raise CheckpointError(f"{url}: {size} of {expected} bytes came; try again")
        os.replace(partial, path)
    except urllib.error.HTTPError as error:
        raise CheckpointError(f"{url}: the server answers {error.code} {error.reason}; {_BY_HAND}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CheckpointError(f"{url} cannot be fetched ({reason}); {_BY_HAND}") from error
    finally:
        partial.unlink(missing_ok=True)


def _progress(answer: BinaryIO, description: str, *, total: int) -> AbstractContextManager[BinaryIO]:
    """The same bytes, with a bar on standard error if a person watches it."""
    if not sys.stderr.isatty():
        return nullcontext(answer)
    return wrap_file(answer, total, description=description, console=Console(stderr=True), transient=True)


_BY_HAND = "with the file at hand, use visionmlp.load_official(model, FILE)"


def _cache_folder(cache_dir: str | Path | None) -> Path:
    return Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "checkpoints"


def _file_name(url: str) -> str:
    """The last two parts of the path: several files of Mixer share their last one."""
    parts = [
        part for part in urllib.parse.unquote(urllib.parse.urlsplit(url).path).split("/") if part not in ("", "..")
    ]
    return "-".join(parts[-2:]) or "weights"
