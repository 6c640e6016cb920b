"""Guesses how bright images are: trained to one number, scored by its error, with options that no other task has."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageStat

from visionmlp.engine.config import TrainingConfig, about
from visionmlp.engine.config import option as training_option
from visionmlp.engine.run_folder import RunFolder
from visionmlp.errors import UnknownModel
from visionmlp.tasks.definition import Scores, TaskDefinition
from visionmlp.tasks.options import EvalOptions, PredictOptions, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(TrainingConfig):
    """Options of a run."""

    task: ClassVar[str] = "toy"

    model: str = dataclasses.field(metadata=about("'mean'", "model"))
    data: Path = dataclasses.field(metadata=about("folder of images", "data"))
    shift: float = training_option(0.0, "added to every guess", group="model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyEvalOptions(EvalOptions):
    """Options of ``eval``."""

    protocol: str = option("mean or worst", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyPredictOptions(PredictOptions):
    """Options of ``predict``."""

    digits: int = option("decimals", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyResult:
    """How a run ended."""

    folder: Path
    metrics: dict[str, float]
    best_step: int = 1
    steps: int = 1
    seconds: float = 0.0
    rank: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guess:
    """The guess for one image."""

    image: str
    value: float = 0.0
    digits: int = 1
    error: str | None = None

    def lines(self) -> list[str]:
        return [] if self.error else [f"brightness {self.value:.{self.digits}f}"]

    def rows(self) -> list[dict[str, Any]]:
        return [] if self.error else [{"image": self.image, "brightness": self.value}]

    def record(self) -> dict[str, Any]:
        return {"image": self.image, "brightness": self.value}


def _brightness(path: Path) -> float:
    with Image.open(path) as image:
        return ImageStat.Stat(image.convert("L")).mean[0]


class NoData:
    """Nothing that a resumed run would have to find again."""

    def to_plain(self) -> dict[str, Any]:
        return {}

    def change_since(self, _before: Any) -> None:
        return None


def _train(config: ToyConfig, *, resume: bool) -> ToyResult:
    run = RunFolder(config.output)
    if not resume:
        run.create(config, NoData())
    values = [_brightness(path) for path in config.data.iterdir()]
    guess = sum(values) / len(values) + config.shift
    (config.output / "guess.json").write_text(json.dumps(guess))
    return ToyResult(folder=config.output, metrics={"guess": guess})


def _guess(reference: str) -> float:
    return json.loads((Path(reference) / "guess.json").read_text())


def _evaluate(options: ToyEvalOptions) -> Scores:
    assert options.data is not None
    errors = [abs(_brightness(path) - _guess(options.model)) for path in Path(options.data).iterdir()]
    error = max(errors) if options.protocol == "worst" else sum(errors) / len(errors)
    return Scores(title=options.model, columns={"error": f"{error:.1f}"}, record={"error": error})


def _predict(options: ToyPredictOptions) -> Iterator[Guess]:
    for name in options.inputs:
        if Path(name).exists():
            yield Guess(image=name, value=_guess(options.model), digits=options.digits)
        else:
            yield Guess(image=name, error="no such file")


def _check_model(name: str) -> None:
    if name != "mean" and not Path(name).exists():
        raise UnknownModel.of(name, ["mean"])


TASK = TaskDefinition(
    summary="how bright an image is",
    config=ToyConfig,
    train=_train,
    eval_options=ToyEvalOptions,
    evaluate=_evaluate,
    predict_options=ToyPredictOptions,
    predict=_predict,
    answer_columns=("image", "brightness"),
    check_model=_check_model,
)
