"""ResMLP and a Transformer of its size on Multi30k, English to German, with one budget.

    python benchmarks/translation.py --data MULTI30K_FOLDER --work FOLDER

Minutes each on a GPU; ``--epochs 6`` is the budget for CPUs. A run that was stopped goes on, one that has ended is not
repeated. Writes the part "multi30k" of docs/results/translation.md, between its markers, of
all runs in the folder that have ended, and its figure.
"""

import json
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from runs import Run, command_line, device, ended, fill_part, machines, minutes, read, train_all
from visionmlp.models.translator import create_translator
from visionmlp.report.plots import run_curves
from visionmlp.tasks.translate.data import open_corpus
from visionmlp.tasks.translate.tokenizer import Tokenizer

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "translation.md"
FAMILIES = {"ResMLP": "resmlp_seq2seq_small", "Transformer": "transformer_seq2seq_small"}
SEEDS = (0, 1, 2)
TEST = "test_2016_flickr"
VOCABULARY = 5000
BUDGETS = (12, 6)
"""Epochs: of a GPU, and of a CPU."""
SHOWN = (0, 200, 400, 600, 800)
"""Sentences of the page."""
FIGURES = {
    "attention.png": "What ResMLP's translation takes from its source, in the first and the last layer of the decoder",
    "positions.png": "What the first 32 positions take from each other, in the first and last layers of both halves",
}
"""Of a ResMLP, by its run."""
RATES = {"ResMLP": "3e-3", "Transformer": "1e-3"}
"""The better of the two in three epochs, by validation BLEU."""
BUDGET = [
    *(
        "--task",
        "translate",
        "--source",
        "en",
        "--target",
        "de",
        "--vocab-size",
        str(VOCABULARY),
    ),
    *("--batch-size", "2048", "--warmup-steps", "500", "--clip-grad", "1", "--eval-every", "2"),
    *("--model-args", json.dumps({"dropout": 0.2})),
]


def folder(family: str, epochs: int, seed: int, work: Path) -> Path:
    return work / f"multi30k-{epochs}-{family.lower()}-{seed}"


def run(family: str, epochs: int, seed: int, data: str, work: Path) -> Run:
    budget = [*BUDGET, "--epochs", str(epochs), "--lr", RATES[family], "--seed", str(seed)]
    return [FAMILIES[family], "--data", data, *budget], folder(family, epochs, seed, work)


def scores(run: Path) -> dict[str, float]:
    """Of the test set with a beam of 4, kept beside the run."""
    kept = run.with_name(f"{run.name}.test.json")
    if not kept.exists():
        command = [sys.executable, "-m", "visionmlp", "eval", str(run), "--split", TEST, "--beam", "4", "--json"]
        command += ["--device", str(device())]
        kept.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return json.loads(kept.read_text())


def learning(runs: list[Path]) -> str:
    """Validation BLEU (greedy) over epochs, mean over runs."""
    tables = [read(run / "metrics.csv") for run in runs]
    means = (statistics.mean(row["bleu"] for row in rows) for rows in zip(*tables, strict=True))
    return ", ".join(f"{mean:.1f}" for mean in means)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def known(family: str, epochs: int, work: Path) -> list[Path]:
    """Runs that have ended, by seed."""
    return [run for seed in SEEDS if ended(run := folder(family, epochs, seed, work))]


def target_tokens(data: Path, run: Path) -> int:
    """Of an epoch, by the run's own vocabulary, end symbols among them."""
    tokenizer = Tokenizer((run / "tokenizer.model").read_bytes())
    return sum(len(tokenizer.encode(line)) + 1 for line in open_corpus(str(data), "train", "en", "de").target)


def row(family: str, epochs: int, data: Path, work: Path) -> str:
    network = create_translator(FAMILIES[family], vocab_size=VOCABULARY)
    params = sum(parameter.numel() for parameter in network.parameters())
    runs = known(family, epochs, work)
    tested = [scores(run) for run in runs if (run / "model.safetensors").exists()]
    bleu, chrf = (spread([score[name] for score in tested]) or "not run" for name in ("bleu", "chrf"))
    where, cost = machines(runs), statistics.mean(minutes(run, epochs * target_tokens(data, run)) for run in runs)
    return (
        f"| {family} | {params / 1e6:.1f} | {epochs} | {where} | {cost:.0f} | {len(runs)} | {learning(runs)} "
        f"| **{bleu}** | {chrf} |"
    )


def shown(family: str, work: Path) -> Path:
    """The run that figures and sentences are of: the first seed of the largest budget that has one."""
    return next(run for epochs in BUDGETS for run in known(family, epochs, work))


def samples(data: Path, work: Path) -> str:
    """Validation sentences, their translations by hand and by the first seeds."""
    corpus = open_corpus(str(data), "val", "en", "de")
    said = {family: shown(family, work) / "translations.txt" for family in FAMILIES}
    lines = {family: file.read_text().splitlines() for family, file in said.items()}
    rows = []
    for number in SHOWN:
        texts = {"English": corpus.source[number], "reference": corpus.target[number]}
        texts |= {family: translated[number] for family, translated in lines.items()}
        rows += [f"| {name} | {text.replace('|', '&#124;')} |" for name, text in texts.items()]
    return "\n".join(rows)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--epochs", type=int, choices=BUDGETS, default=BUDGETS[0], help="budget of what is trained")
    parser.add_argument("--seeds", type=int, nargs="*", choices=SEEDS, default=SEEDS, help="of what is trained")
    args = parser.parse_args()
    pairs = [(family, seed) for seed in args.seeds for family in FAMILIES]
    train_all([run(family, args.epochs, seed, str(args.data), args.work) for family, seed in pairs], args)
    cells = [(family, epochs) for epochs in BUDGETS for family in FAMILIES if known(family, epochs, args.work)]
    rows = "\n".join(row(family, epochs, args.data, args.work) for family, epochs in cells)
    print(rows)
    curves = {
        family: tuple(read(shown(family, args.work) / f"{table}.csv") for table in ("train", "metrics"))
        for family in FAMILIES
    }
    run_curves(curves, DOCUMENT.with_suffix(".png"), metric="bleu")  # type: ignore[arg-type]
    shown_figures = []
    for name, caption in FIGURES.items():
        drawn = [
            path for epochs in BUDGETS for run in known("ResMLP", epochs, args.work) if (path := run / name).exists()
        ]
        if drawn:
            copy = shutil.copyfile(drawn[0], DOCUMENT.with_name(f"{DOCUMENT.stem}_{name}"))
            shown_figures.append(f"![{caption}]({copy.name})")
    commands = "\n\n".join(
        shlex.join(["visionmlp", "train", *arguments, "--output", f"runs/{family.lower()}"])
        for family in FAMILIES
        for arguments, _ in [run(family, BUDGETS[-1], SEEDS[0], "multi30k", args.work)]
    )
    text = TEXT.format(
        rows=rows,
        samples=samples(args.data, args.work),
        figures="\n\n".join(shown_figures),
        commands=commands,
        vocabulary=VOCABULARY,
        rates=RATES,
    )
    fill_part(DOCUMENT, "multi30k", text)


TEXT = """29,000 pairs, English to German, the `small` presets with a joint vocabulary of {vocabulary};
both have one budget, and of the rates 1e-3 and 3e-3 the better by validation BLEU in three epochs ({rates[ResMLP]} and
{rates[Transformer]}). Validation is greedy, every second epoch, mean over seeds; test is `test_2016_flickr` with a beam
of 4 that stops by fairseq's rule, by the weights that were best on the validation set: sacreBLEU's BLEU and chrF of
the untouched text. ± is the
standard deviation over seeds. Minutes are of training, without evaluation, on one thread of the CPU where no GPU is
named; both networks trained at the same time.

| network | params M | epochs | on | minutes | seeds | validation BLEU | test BLEU | test chrF |
|---|---|---|---|---|---|---|---|---|
{rows}

![Training loss and validation BLEU of both networks, first seed](translation.png)

Validation sentences, by the first seeds:

| | |
|---|---|
{samples}

{figures}

`python benchmarks/translation.py --data MULTI30K_FOLDER --work FOLDER` trains all of it and writes this part, with
`--epochs 6 --seeds 0` what two CPU cores do in an hour; that by hand:

```
{commands}

visionmlp eval runs/resmlp --split test_2016_flickr --beam 4
```
"""


if __name__ == "__main__":
    main()
