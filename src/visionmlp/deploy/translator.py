"""A translator in ONNX: a folder with the graph of its encoder, that of a decoding step with its caches, and the
tokenizer; and such a folder opened again in ONNX Runtime, where a search runs as it does on the network.

    encoder.onnx  source (B, S)                                      -> states, mask, memory_i
    step.onnx     tokens (B, H), mask (B, S), past_i (B, H, ...), memory_i (B, ...)  -> logits (B, H, V), new_past_i

B sentences, S source tokens, H hypotheses of each sentence, V symbols. ``memory_i`` are keys and values of each decoder
layer, ``past_i`` what it keeps of the steps before: empty along their time at first, each time one longer.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from visionmlp.deploy.certificate import relative_error
from visionmlp.deploy.graphs import ExportError, first_line, onnx_program, quiet
from visionmlp.deploy.in_onnxruntime import explained, onnx_session
from visionmlp.deploy.runtimes import check_threads
from visionmlp.deploy.writing import save_onnx, whole_folder
from visionmlp.errors import CheckpointError, InvalidConfig, require
from visionmlp.layers.memory_attention import KeysValues
from visionmlp.layers.sequence_mixing import check_length
from visionmlp.models.translator import EOS, PAD, UNK, DecoderState, Memory, Translator, TranslatorConfig
from visionmlp.models.translator_files import TASK, TranslatorInfo

ENCODER, STEP, TOKENIZER, METADATA = "encoder.onnx", "step.onnx", "tokenizer.model", "translator.json"

LIMIT = 1e-4
"""Largest difference from PyTorch that passes, relative to the largest value: rounding is near 1e-6, a wrong graph near
1."""
LEAST_LENGTH = 8
"""Positions: sizes of the example have to differ from each other and from the longest."""
_MOST = 2**31 - 1
_WEIGHTS = "weights_sha256"
"""Says in all three files which belong together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslatorCheck:
    """One comparison of the graphs with PyTorch."""

    sentences: int
    source: int
    """Tokens of the longest."""
    hypotheses: int
    steps: int
    error: float
    """Largest difference of any output, relative to its largest value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslatorReport:
    """What was written, and how far from PyTorch it is."""

    checks: list[TranslatorCheck]
    files: list[Path]


def export_translator(
    network: Translator, info: TranslatorInfo, folder: Path, *, opset: int | None = None, force: bool = False
) -> TranslatorReport:
    """Write a translator's graphs, in float32, with its tokenizer and what `open_exported_translator` has to know.

    The folder appears only when both graphs ran and gave PyTorch's outputs: for random sentences of several lengths, in
    several numbers, with one and several hypotheses, from the first step to the last that the network has.

    Args:
        network: in evaluation mode; is left as it is.
        info: what its checkpoint says.
        folder: to write.
        opset: ONNX operator set; None is PyTorch's choice.
        force: replace a folder that this wrote before.

    Raises:
        ExportError: if the outputs differ, or the network cannot be exported.
        InvalidConfig: for a network of fewer positions than `LEAST_LENGTH`.
        MissingExtra: without the packages of the ``export`` extra.
        OutputError: if the folder exists or cannot be written.
    """
    require("onnxscript", extra="export")
    require("onnxruntime", extra="export")
    length = network.config.max_length
    if length < LEAST_LENGTH:
        raise InvalidConfig(f"a graph needs at least {LEAST_LENGTH} positions, this model has {length}")
    network = copy.deepcopy(network).cpu().float().eval()
    folder = Path(folder)
    with whole_folder(folder, force=force, mark=METADATA) as staged:
        programs = {ENCODER: _encoder_program(network), STEP: _step_program(network)}
        weights = _weights_sha256(network)
        for name, (program, inputs, outputs) in programs.items():
            graph = onnx_program(program, opset=opset, inputs=inputs, outputs=outputs)
            graph.model.metadata_props[_WEIGHTS] = weights
            save_onnx(graph, staged / name)
        (staged / TOKENIZER).write_bytes(info.tokenizer)
        (staged / METADATA).write_text(
            json.dumps({**_metadata(info), _WEIGHTS: weights}, indent=2) + "\n", encoding="utf-8"
        )
        opened = open_exported_translator(staged)
        checks = [_check(network, opened, *sizes) for sizes in ((1, 1, 1, 2), (3, 6, 2, 3), (2, length, 3, length))]
        files = sorted(path.name for path in staged.iterdir())
    return TranslatorReport(checks=checks, files=[folder / name for name in files])


class _Graph(NamedTuple):
    program: ExportedProgram
    inputs: Sequence[str]
    outputs: Sequence[str]


class _Encoder(nn.Module):
    """Of a network, with the keys and values that all steps look at."""

    def __init__(self, network: Translator) -> None:
        super().__init__()
        self.network = network

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        """See the file."""
        memory = self.network.encode(source)
        return memory.states, memory.mask, *_flat(self.network.start(memory).memory)


class _Step(nn.Module):
    """Of a network; hypotheses have a dimension of their own, so that no size of the graph follows from another."""

    def __init__(self, network: Translator) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, tokens: Tensor, mask: Tensor, past: tuple[Tensor, ...], memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """See the file."""
        sides = tokens.shape
        state = DecoderState(tuple(part.flatten(0, 1) for part in past), _paired(memory), mask)
        logits, state = self.network.step(tokens.flatten(), state)
        return tuple(part.unflatten(0, sides) for part in (logits, *state.past))


def _encoder_program(network: Translator) -> _Graph:
    sentences, source = Dim("sentences", max=_MOST), _length("source", network.config)
    program = _exported(_Encoder(network), (_sentences(network, 3, 7),), ({0: sentences, 1: source},))
    count = len(network.start(network.encode(_sentences(network, 1, 2))).memory)
    return _Graph(program, ["source"], ["states", "mask", *_names("memory", 2 * count)])


@torch.no_grad()
def _step_program(network: Translator) -> _Graph:
    sentences, hypotheses = Dim("sentences", max=_MOST), Dim("hypotheses", max=_MOST)
    source, time = _length("source", network.config), Dim("past", max=network.config.max_length - 2)
    state = network.start(network.encode(_sentences(network, 3, 7)))
    (axis,) = {part.shape.index(0) for part in state.past}  # along which they grow
    rows = torch.arange(3).repeat_interleave(2)
    state = state.select(rows)
    for _ in range(5):
        _, state = network.step(torch.full((6,), EOS), state)
    past = tuple(part.unflatten(0, (3, 2)) for part in state.past)
    memory = _flat(state.memory)
    program = _exported(
        _Step(network),
        (torch.full((3, 2), EOS), state.mask, past, memory),
        (
            {0: sentences, 1: hypotheses},
            {0: sentences, 1: source},
            tuple({0: sentences, 1: hypotheses, axis + 1: time} for _ in past),
            tuple({0: sentences, 2: source} for _ in memory),
        ),
    )
    inputs = ["tokens", "mask", *_names("past", len(past)), *_names("memory", len(memory))]
    return _Graph(program, inputs, ["logits", *_names("new_past", len(past))])


def _length(name: str, config: TranslatorConfig) -> Any:
    """One below the longest, for which PyTorch would take a sub-matrix to be the matrix; the graph takes it too."""
    return Dim(name, max=config.max_length - 1)


def _exported(module: nn.Module, inputs: tuple[Any, ...], shapes: tuple[Any, ...]) -> ExportedProgram:
    try:
        with quiet(), torch.no_grad(), _plain_attention():
            return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, AssertionError) as error:
        raise ExportError(f"PyTorch cannot export this model: {first_line(error)}") from error


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the operator for whole Transformer layers, which no other runtime has."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _weights_sha256(network: Translator) -> str:
    total = hashlib.sha256()
    for value in network.state_dict().values():
        total.update(value.contiguous().numpy().data)
    return total.hexdigest()


def _metadata(info: TranslatorInfo) -> dict[str, Any]:
    return {
        "task": TASK,
        "model": info.model,
        "config": dict(info.config),
        "languages": None if info.languages is None else list(info.languages),
        "tokenizer_sha256": hashlib.sha256(info.tokenizer).hexdigest(),
    }


@torch.inference_mode()
def _check(
    network: Translator, opened: "ExportedTranslator", sentences: int, source: int, hypotheses: int, steps: int
) -> TranslatorCheck:
    """Compare all outputs.

    Raises:
        ExportError: if they differ.
    """
    ids = _sentences(network, sentences, source)
    memory, same = network.encode(ids), opened.encode(ids)
    states = [network.start(memory), opened.start(same)]
    pairs = [(memory.states, same.states), *zip(_flat(states[0].memory), _flat(states[1].memory), strict=True)]
    if not torch.equal(memory.mask, same.mask):
        raise ExportError("ONNX Runtime masks other tokens than PyTorch; nothing was written")
    rows = torch.arange(sentences).repeat_interleave(hypotheses)
    states = [state.select(rows) for state in states]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tokens = torch.randint(UNK, network.config.vocab_size, (len(rows),), generator=generator)
        logits, states[0] = network.step(tokens, states[0])
        others, states[1] = opened.step(tokens, states[1])
        pairs.append((logits, others))
    pairs += zip(states[0].past, states[1].past, strict=True)
    # max() would drop a NaN that is not first
    error = torch.tensor([relative_error(*pair) for pair in pairs]).max().item()
    if not error <= LIMIT:
        raise ExportError(
            f"ONNX Runtime gives other outputs than PyTorch for {sentences} sentences of up to {source} tokens, "
            f"{hypotheses} hypotheses: relative error {error:.1e}, limit {LIMIT:.0e}; nothing was written"
        )
    return TranslatorCheck(sentences=sentences, source=source, hypotheses=hypotheses, steps=steps, error=error)


def _sentences(network: Translator, count: int, length: int) -> Tensor:
    """Random ones (count, length), the first of that length and the others shorter."""
    generator = torch.Generator().manual_seed(length)
    source = torch.randint(UNK, network.config.vocab_size, (count, length), generator=generator)
    for row in range(count):
        own = max(1, length - 2 * row)
        source[row, own - 1], source[row, own:] = EOS, PAD
    return source


# opened again


def is_exported_translator(path: Path) -> bool:
    """Whether a path is a folder of `export_translator`."""
    return (Path(path) / METADATA).is_file()


class _ExportedMemory(Memory):
    """Also the keys and values that the encoder's graph gives."""

    layers: tuple[KeysValues, ...]


class ExportedTranslator:
    """A translator in ONNX Runtime, with the methods that a search calls, see `Translator`. Without gradient.

    Args:
        encoder: session of its graph.
        step: likewise.
        config: sizes.
        info: what the folder says.
    """

    def __init__(self, encoder: Any, step: Any, config: TranslatorConfig, info: TranslatorInfo) -> None:
        self.config, self.info = config, info
        self._encoder, self._step = encoder, step
        past = [one.shape[2:] for one in step.get_inputs() if one.name.startswith("past_")]
        # what is no number is their time
        self._past_sides = [[side if isinstance(side, int) else 0 for side in sides] for sides in past]

    def encode(self, source: Tensor) -> Memory:
        """See `Translator.encode`."""
        check_length(source.shape[1], self.config.max_length)
        states, mask, *layers = _run(self._encoder, [source])
        memory = _ExportedMemory(states, mask)
        memory.layers = _paired(layers)
        return memory

    def start(self, memory: Memory) -> DecoderState:
        """See `Translator.start`; of what `encode` gave."""
        assert isinstance(memory, _ExportedMemory)
        past = tuple(memory.states.new_empty(len(memory.mask), *sides) for sides in self._past_sides)
        return DecoderState(past, memory.layers, memory.mask)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """See `Translator.step`."""
        sides = (len(state.mask), len(tokens) // len(state.mask))
        time = self._past_sides[0].index(0) + 1
        check_length(state.past[0].shape[time] + 1, self.config.max_length)
        inputs = [tokens.reshape(sides), state.mask, *(part.unflatten(0, sides) for part in state.past)]
        logits, *past = (part.flatten(0, 1) for part in _run(self._step, [*inputs, *_flat(state.memory)]))
        return logits, state._replace(past=tuple(past))


def open_exported_translator(folder: Path, *, threads: int | None = None) -> ExportedTranslator:
    """A folder of `export_translator`, ready to run on the CPU.

    Args:
        folder: of an export.
        threads: CPU threads; None is the runtime's choice.

    Raises:
        CheckpointError: if a file is missing or damaged.
        InvalidConfig: for fewer threads than one.
        MissingExtra: without ONNX Runtime.
    """
    check_threads(threads)
    folder = Path(folder)
    for name in (METADATA, TOKENIZER, ENCODER, STEP):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no exported translator: it has no {name}")
    try:
        fields = json.loads((folder / METADATA).read_bytes())
        known = [field.name for field in dataclasses.fields(TranslatorConfig)]
        config = TranslatorConfig(**{name: fields["config"][name] for name in known})
        languages = fields["languages"]
        if fields["task"] != TASK or not isinstance(fields["model"], str):
            raise ValueError("another task")
        languages = None if languages is None else (str(languages[0]), str(languages[1]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{folder / METADATA} is damaged; export the model again") from error
    tokenizer = (folder / TOKENIZER).read_bytes()
    if hashlib.sha256(tokenizer).hexdigest() != fields.get("tokenizer_sha256"):
        raise CheckpointError(f"{folder / TOKENIZER} is another tokenizer than the model was trained with")
    sessions = [onnx_session(folder / name, threads, _refusal(folder / name)) for name in (ENCODER, STEP)]
    for name, session, first in zip((ENCODER, STEP), sessions, ("source", "tokens"), strict=True):
        weights = session.get_modelmeta().custom_metadata_map.get(_WEIGHTS)
        if weights != fields.get(_WEIGHTS) or session.get_inputs()[0].name != first:
            raise CheckpointError(f"{folder / name} is another graph than the model's; export the model again")
    info = TranslatorInfo(
        model=fields["model"],
        config=fields["config"],
        languages=languages,
        tokenizer=tokenizer,
        source=str(folder),
    )
    encoder, step = sessions
    return ExportedTranslator(encoder, step, config, info)


def _refusal(path: Path) -> Callable[[str], Exception]:
    return lambda text: CheckpointError(f"ONNX Runtime cannot load {path}: {text}")


def _run(session: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    given = {one.name: part.contiguous().numpy() for one, part in zip(session.get_inputs(), inputs, strict=True)}
    with explained(lambda text: ExportError(f"ONNX Runtime cannot run this model: {text}")):
        return [torch.from_numpy(part) for part in session.run(None, given)]


def _flat(layers: Sequence[KeysValues]) -> tuple[Tensor, ...]:
    return tuple(part for layer in layers for part in layer)


def _paired(parts: Sequence[Tensor]) -> tuple[KeysValues, ...]:
    return tuple(KeysValues(*parts[start : start + 2]) for start in range(0, len(parts), 2))


def _names(name: str, count: int) -> list[str]:
    return [f"{name}_{number}" for number in range(count)]
