"""Options of ``visionmlp translate``."""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from pathlib import Path
from typing import Literal

from visionmlp.tasks.options import option

TooLong = Literal["stop", "cut", "skip"]
"""What happens to a line with more tokens than the model has positions."""
InvalidText = Literal["stop", "replace"]
"""What happens to bytes that are no UTF-8."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslateOptions:
    """See the file."""

    model: str = option(
        "run folder of train --task translate, its checkpoint (.safetensors), or a folder that export wrote",
        metavar="MODEL",
        positional=True,
    )
    files: tuple[str, ...] = option(
        "texts, a sentence a line, one behind the other; - or none: standard input",
        (),
        metavar="FILE",
        positional=True,
    )
    output: Path | None = option("write to this file instead of standard output, whole or not at all", None)
    force: bool = option("overwrite the output if it exists", False)
    json: bool = option("one JSON object a line: source, state, translations with scores and tokens", False)
    beam: int | None = option("hypotheses of a sentence that are followed; 1 is greedy; default: 4", None)
    n_best: int | None = option("translations of each line, at most --beam; above 1 with --json; default: 1", None)
    length_penalty: float = option("exponent of the length that scores are divided by; above 0 favours long ones", 1.0)
    stopping: Literal["beam", "exact"] | None = option(
        "end a sentence when --beam hypotheses have ended, as fairseq, or when nothing better can come; default: beam",
        None,
    )
    max_length: int = option("tokens of a translation at most, and never more than the model has", 200)
    max_length_ratio: float = option("and so many more for each token of the source", 0.0)
    min_length: int = option("tokens of a translation at least", 1)
    prefix: Path | None = option(
        "text that the translation of each line begins with, line for line; an empty one forces nothing", None
    )
    sample: bool = option("draw a random translation instead of searching for the best", False)
    temperature: float | None = option("of --sample: below 1 nearer to the best; default: 1.0", None)
    top_k: int | None = option("of --sample: draw from so many most probable tokens; default: all", None)
    seed: int | None = option("of --sample: a line's draws follow from it and the line's number; default: 0", None)
    too_long: TooLong = option(
        "lines beyond the model's length: stop and name the line, cut its end off, or skip it, leaving an empty line",
        "stop",
    )
    invalid_utf8: InvalidText = option("bytes that are no UTF-8: stop and name the line, or put U+FFFD there", "stop")
    batch_size: int = option("sentences that are translated together", 32)
    chunk: int | None = option(
        "lines that are read, sorted by length and translated before the first of them is written; default: 1000, "
        "from a terminal 1",
        None,
    )
    dtype: Literal["float32", "float64"] = option("that PyTorch computes in", "float32")
    threads: int | None = option("CPU threads; default: the runtime's choice", None)
    device: str = option("cpu, cuda, cuda:1, ...; exported models run on cpu", "cpu", metavar="NAME")
