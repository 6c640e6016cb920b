"""Translation as the command line knows it."""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from visionmlp.errors import InvalidConfig
from visionmlp.tasks.definition import Scores, TaskDefinition, TrainResult
from visionmlp.tasks.options import PredictOptions, option
from visionmlp.tasks.translate.config import TranslateConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslateEvalOptions:
    """Options of ``eval`` for translation."""

    model: str = option("run folder or checkpoint file (.safetensors)", metavar="MODEL", positional=True)
    device: str = option("cpu, cuda, cuda:1, ...", "cpu", metavar="NAME")
    threads: int | None = option("CPU threads; default: PyTorch's choice", None)
    data: str | None = option("folder with parallel text, as in training; default: that of the run", None)
    data_root: Path | None = option("where a relative folder starts", None, metavar="FOLDER")
    download: bool = option("fetch a dataset hfds/NAME that is not there; otherwise nothing is fetched", False)
    split: str = option("name of the files, such as test_2016_flickr; default: the run's validation set", "")
    beam: int = option("hypotheses of a sentence that are followed", 4)
    length_penalty: float = option("exponent of the length that log-probabilities are divided by", 1.0)
    stopping: Literal["beam", "exact"] = option(
        "end a sentence when as many hypotheses as the beam have ended, as fairseq, or when nothing better can come",
        "beam",
    )
    batch_tokens: int = option("tokens of a batch", 4096)
    tokenised: bool = option(
        "also BLEU of the words between blanks, for text that a tokeniser has been over, as papers of 2018 report",
        False,
    )
    split_hyphens: bool = option("for it, count rich-text as three words, as scripts for WMT14 En-De do", False)
    output: Path | None = option("also write the translations to this file, line for line", None, metavar="FILE")
    force: bool = option("overwrite that file if it exists", False)
    json: bool = option("JSON instead of a table", False)


def _train(config: TranslateConfig, *, resume: bool) -> TrainResult:
    from visionmlp.tasks.translate.run import train

    return train(config, resume=resume)


def _evaluate(options: TranslateEvalOptions) -> Scores:
    from visionmlp.tasks.translate.evaluation import scores

    return scores(options)


def _predict(options: PredictOptions) -> Iterator[Any]:
    raise InvalidConfig(f"{options.model} translates; give its lines to visionmlp translate")


def check_translator(name: str) -> None:
    """Raise UnknownModel for a name that no translator has, nor any file."""
    import difflib

    from visionmlp.errors import UnknownModel
    from visionmlp.tasks.translate.names import TRANSLATORS

    if name not in TRANSLATORS and not Path(name).exists():
        near = difflib.get_close_matches(name, TRANSLATORS, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(TRANSLATORS)}"
        raise UnknownModel(f"no translator {name!r}; {hint}")


TASK = TaskDefinition(
    summary="sentences of one language in another",
    config=TranslateConfig,
    train=_train,
    eval_options=TranslateEvalOptions,
    evaluate=_evaluate,
    predict_options=PredictOptions,
    predict=_predict,
    answer_columns=(),
    check_model=check_translator,
)
