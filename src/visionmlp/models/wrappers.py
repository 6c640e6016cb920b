"""The weights of a model within what a training script saved: behind wrappers and prefixes, beside other things."""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from visionmlp.errors import CheckpointError
from visionmlp.models.backbone import Backbone
from visionmlp.models.unpickling import Stranger

EMA_WRAPPERS = ("model_ema", "state_dict_ema")
"""Keys of the moving average of the weights: DeiT's and timm's."""
WRAPPERS = ("model", "state_dict", "module", *EMA_WRAPPERS)
_BESIDE = {"n_averaged"}
"""Entries that wrappers of PyTorch put beside the weights."""
_WRAPPER_PARTS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module)\.")
"""What ``torch.compile`` and wrappers for several processes put into names, in front or in the middle."""
_WRAPPER_CHILDREN = {"_orig_mod", "module", "_forward_module"}
"""What ``torch.compile``, PyTorch's wrappers and Lightning Fabric call the model in them."""
_AVERAGE = re.compile(r"(?:^|_)ema(?:$|_)")
_DEPTH = 5
"""Mappings within mappings that are looked into."""


NetworkT = TypeVar("NetworkT", bound=nn.Module)


class Weights(NamedTuple):
    """A state dict that was found."""

    prefix: str
    """What stood before its names, wrappers included; empty or with a dot at its end."""
    tensors: dict[str, Tensor]


class _Candidate(NamedTuple):
    """A place where names of the model begin."""

    place: str
    """Keys of the mappings above, each with a dot behind it."""
    start: str
    """What its names begin with."""
    entries: Mapping[str, Any]
    """All entries of the mapping, by their names without parts of wrappers."""
    found: int
    """Of the names that were looked for."""
    complete: bool

    @property
    def prefix(self) -> str:
        return self.place + self.start


def unwrapped(model: nn.Module) -> Backbone:
    """The backbone in what ``torch.compile`` and wrappers for averages or several processes made of it.

    Raises:
        CheckpointError: if there is none.
    """
    return unwrapped_to(Backbone, model)


def unwrapped_to(kind: type[NetworkT], model: nn.Module) -> NetworkT:
    """The same for another kind of network.

    Raises:
        CheckpointError: if there is none.
    """
    inner = model
    while not isinstance(inner, kind):
        parts = dict(inner.named_children())
        if len(parts) != 1 or not parts.keys() <= _WRAPPER_CHILDREN:
            what = "a model" if kind is Backbone else f"a {kind.__name__}"
            raise CheckpointError(f"{type(model).__name__} is neither {what} of visionmlp nor a wrapper of one")
        (inner,) = parts.values()
    return inner


def plain_names(state: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A state dict without what ``torch.compile`` and parallel wrappers put into its names.

    Raises:
        CheckpointError: if two names become one.
    """
    plain: dict[str, Any] = {}
    for name, value in state.items():
        short = _WRAPPER_PARTS.sub("", name) if isinstance(name, str) else name
        if short in plain:
            raise CheckpointError(f"{label} has {short} twice, once as {name}")
        plain[short] = value
    return plain


def find_weights(
    content: Mapping[str, Any],
    label: str,
    *,
    layouts: Sequence[Collection[str]] = (),
    prefix: str | None = None,
    ema: bool = False,
) -> Weights:
    """The state dict of a model in a file's content.

    Where one place has every name of a layout, it is that one, whatever stands before its names. Otherwise wrappers are
    taken off by their names, and what does not fit is for a strict loader to tell.

    Args:
        content: a file's content.
        label: what a message calls it.
        layouts: names that the model's weights can have, a collection for each way to name them.
        prefix: what stands before the names of the weights that are wanted, if there are several; its beginning is
            enough.
        ema: take the moving average of the weights, which lies beside the weights.

    Raises:
        CheckpointError: if there is none, or if there are several and neither ``prefix`` nor ``ema`` decides.
    """
    candidates = _candidates(content, layouts, label)
    complete = [candidate for candidate in candidates if candidate.complete]
    if prefix is not None:
        wanted = _plain_prefix(prefix)
        chosen = [c for c in complete or candidates if c.prefix.startswith(wanted) or c.start.startswith(wanted)]
        if not chosen:
            there = (
                ", ".join(sorted({c.prefix or "no prefix" for c in complete})) or "none that has the model's weights"
            )
            raise CheckpointError(f"{label} has no weights under the prefix {prefix!r}; there is {there}")
        complete = [c for c in chosen if c.complete] or [max(chosen, key=lambda c: c.found)]
    elif ema:
        complete = [candidate for candidate in complete if _is_average(candidate)]
        if not complete and not any(isinstance(content.get(key), Mapping) for key in EMA_WRAPPERS):
            raise CheckpointError(
                f"{label} holds no moving average of the weights ({', '.join(EMA_WRAPPERS)}); read it without ema"
            )
    else:
        complete = [candidate for candidate in complete if not _is_average(candidate)] or complete
    if complete:
        return _checked(_only(complete, label), label)
    return _by_wrappers(content, candidates, label, ema=ema)


def _by_wrappers(content: Mapping[str, Any], candidates: Sequence[_Candidate], label: str, *, ema: bool) -> Weights:
    """Without a place that has all names: the place that usual keys lead to, and there the most frequent prefix."""
    place, order = "", EMA_WRAPPERS if ema else WRAPPERS
    for _ in range(_DEPTH):  # a mapping may hold itself
        wrapper = next((key for key in order if isinstance(content.get(key), Mapping)), None)
        if wrapper is not None:
            content, place, order = content[wrapper], f"{place}{wrapper}.", WRAPPERS
    here = [candidate for candidate in candidates if candidate.place == _plain_prefix(place)]
    start = max(here, key=lambda candidate: candidate.found).start if here else ""
    return _checked(_Candidate(place, start, plain_names(content, label), 0, complete=False), label)


def shared_prefix(names: Collection[str]) -> str:
    """The parts that all names begin with, with dots between them."""
    if len(names) < 2:
        return ""
    parts = [name.split(".") for name in names]
    pairs = zip(min(parts), max(parts), strict=False)
    return ".".join(first for first, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _candidates(content: Mapping[str, Any], layouts: Sequence[Collection[str]], label: str) -> list[_Candidate]:
    """Every place where a name of a layout begins."""
    wanted = [set(layout) for layout in layouts]
    known = set().union(*wanted)
    found = []
    for place, mapping in _mappings(content, "", _DEPTH, set()):
        entries = {name: value for name, value in mapping.items() if isinstance(name, str)}
        names = {_WRAPPER_PARTS.sub("", name) for name, value in entries.items() if _is_array(value)}
        starts = Counter(name[:cut] for name in names for cut in _cuts(name) if name[cut:] in known)
        for start, count in starts.items():
            whole = any(all(start + name in names for name in layout) for layout in wanted)
            plain = plain_names(mapping, label)
            found.append(_Candidate(_plain_prefix(place), start, plain, count, whole))
    return found


def _cuts(name: str) -> Iterator[int]:
    """Where a shorter name could begin."""
    yield 0
    yield from (match.end() for match in re.finditer(r"[./]", name))


def _mappings(
    content: Mapping[Any, Any], place: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """A mapping and those in it, each once."""
    if id(content) in seen:
        return
    seen.add(id(content))
    yield place, content
    for name, value in content.items():
        if depth > 1 and isinstance(name, str) and isinstance(value, Mapping):
            yield from _mappings(value, f"{place}{name}.", depth - 1, seen)


def _plain_prefix(prefix: str) -> str:
    """With a dot at its end, and without parts of wrappers."""
    prefix = prefix if not prefix or prefix.endswith((".", "/")) else f"{prefix}."
    return _WRAPPER_PARTS.sub("", prefix)


def _is_average(candidate: _Candidate) -> bool:
    return any(_AVERAGE.search(part) for part in candidate.prefix.split("."))


def _only(candidates: Sequence[_Candidate], label: str) -> _Candidate:
    first, *others = candidates
    if all(_same(first, other) for other in others):
        return first
    prefixes = sorted(candidate.prefix or "no prefix" for candidate in candidates)
    raise CheckpointError(
        f"{label} holds the model's weights {len(candidates)} times, under {' and '.join(prefixes)}; "
        f"choose with prefix={prefixes[-1]!r} (--checkpoint-prefix)"
    )


def _same(one: _Candidate, other: _Candidate) -> bool:
    mine, theirs = ({name: _tensor(value) for name, value in _below(of).items()} for of in (one, other))
    return mine.keys() == theirs.keys() and all(_equal(value, theirs[name]) for name, value in mine.items())


def _equal(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _below(candidate: _Candidate) -> dict[str, Any]:
    """The entries behind its prefix."""
    return {
        name.removeprefix(candidate.start): value
        for name, value in candidate.entries.items()
        if isinstance(name, str) and name.startswith(candidate.start)
    }


def _checked(candidate: _Candidate, label: str) -> Weights:
    """Its entries as tensors."""
    entries = _below(candidate) if candidate.start else dict(candidate.entries)
    state = {name: _tensor(value) for name, value in entries.items() if name not in _BESIDE}
    strangers = [name for name, value in state.items() if not (isinstance(name, str) and _is_plain(value))]
    if strangers or not state:
        found = "no tensors"
        if strangers:
            value = state[strangers[0]]
            kind = f" but of class {value.name}, which could run code," if isinstance(value, Stranger) else ""
            found = f"an entry {strangers[0]!r} that is no tensor{kind}"
        raise CheckpointError(f"{label} has {found} and no {', '.join(WRAPPERS)} to look into")
    return Weights(candidate.prefix, state)


def _tensor(value: Any) -> Any:
    """An array of numbers as a tensor, everything else as it is."""
    numbers = "fiu"  # kinds of arrays that tensors can hold
    return torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in numbers else value


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _is_plain(value: Any) -> bool:
    """Whether a parameter can hold it: no sparse, quantised or complex tensor."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_quantized or value.is_complex())
