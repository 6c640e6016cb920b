"""What is refused before the parser is built is what the parser would refuse, and nothing else."""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from pathlib import Path

import pytest

from visionmlp.cli.parser import UsageError, add_fields, build_parser, parse
from visionmlp.cli.words import check_options, positional_first, scan
from visionmlp.tasks.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    model: str = option("a model", positional=True)
    inputs: tuple[str, ...] = option("images", positional=True)
    batch_size: int = option("a number", 1)
    crop_scale: tuple[float, float] = option("two", (0.0, 1.0))
    forms: tuple[str, ...] = option("any number", ())
    output: Path | None = option("a path", None)
    model_args: dict[str, int] = option("a dictionary", None)
    ema: bool = option("a switch", False)


ACCEPTED = (
    "m x.png",
    "--batch-size 3 m x.png",
    "--batch-size=3 m x.png y.png",
    "--crop-scale .5 1 m x.png --ema",
    "m x.png --no-ema --forms a b c --output -",
    "m x.png --model-args.depth 3",
    "m --batch-size -5 x.png",
    "--ema m -- --odd.png",
)


@pytest.mark.parametrize("line", ACCEPTED)
def test_what_the_parser_takes_passes_with_the_same_positional_words(line: str) -> None:
    parser = build_parser("visionmlp x", description="")
    add_fields(parser, Options)
    namespace = parse(parser, line.split())
    assert namespace is not None
    given, others = scan(line.split(), Options)
    assert [word for word in others if not word.startswith("--model-args")][:2] == [
        namespace.model,
        namespace.inputs[0],
    ]
    assert (given.ema or False) == namespace.ema
    assert given.batch_size in (None, str(namespace.batch_size))
    assert check_options(line.split(), "x", Options)[0] == "m"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m x.png --bath-size 3", "unknown option --bath-size; did you mean --batch-size?"),
        ("m x.png --batch_size=3", "unknown option --batch_size; did you mean --batch-size?"),
        ("m x.png --no-emma", "unknown option --no-emma; did you mean --ema?"),
        ("--model m x.png", "unknown option --model; did you mean --model-args, --help?"),
        ("m x.png --zzz", "unknown option --zzz; see visionmlp x --help"),
    ],
)
def test_unknown_options_are_refused_with_the_nearest(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(line.split(), "x", Options)
    assert str(caught.value) == message


def test_what_cannot_be_understood_is_left_to_the_parser() -> None:
    for line in ("m x.png --crop-scale 1", "m x.png --ema=maybe"):
        assert check_options(line.split(), "x", Options) == []


@pytest.mark.parametrize(
    ("line", "arranged"),
    [
        ("m --batch-size 3 x.png", "m x.png --batch-size 3"),
        ("--ema m - --batch-size=3 x.png --output -", "m - x.png --ema --batch-size=3 --output -"),
        ("3 --batch-size 3 2 --crop-scale -1 3 3", "3 2 3 --batch-size 3 --crop-scale -1 3"),
        ("m --batch-size -5 x.png --no-ema", "m x.png --batch-size -5 --no-ema"),
        ("m --ema -- --odd.png", "m --ema -- --odd.png"),
    ],
)
def test_positional_words_come_first_in_their_order(line: str, arranged: str) -> None:
    assert positional_first(line.split(), Options) == arranged.split()
