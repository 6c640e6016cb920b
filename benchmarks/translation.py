"""ResMLP and a Transformer of its size on Multi30k, English to German, with one budget.

    python benchmarks/translation.py --data MULTI30K_FOLDER --work FOLDER

An hour or two each on a CPU core, or minutes on a GPU; a run that was stopped goes on, one that has ended is not
repeated. Writes the part "multi30k" of docs/results/translation.md, between its markers, and its figure.
"""

import json
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from runs import Run, command_line, device, ended, fill_part, machines, read, train_all
from visionmlp.models.translator import create_translator
from visionmlp.report.plots import run_curves
from visionmlp.tasks.translate.data import open_corpus

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "translation.md"
FAMILIES = {"ResMLP": "resmlp_seq2seq_small", "Transformer": "transformer_seq2seq_small"}
SEEDS = (0, 1, 2)
TEST = "test_2016_flickr"
VOCABULARY = 5000
EPOCHS = 12
SHOWN = (0, 200, 400, 600, 800)
"""Sentences of the page."""
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
        "--epochs",
        str(EPOCHS),
    ),
    *("--batch-size", "2048", "--warmup-steps", "500", "--clip-grad", "1", "--eval-every", "2"),
    *("--model-args", json.dumps({"dropout": 0.2})),
]


def folder(family: str, seed: int, work: Path) -> Path:
    return work / f"multi30k-{family.lower()}-{seed}"


def run(family: str, seed: int, data: str, work: Path) -> Run:
    arguments = [FAMILIES[family], "--data", data, *BUDGET, "--lr", RATES[family], "--seed", str(seed)]
    return arguments, folder(family, seed, work)


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


def row(family: str, work: Path) -> str:
    network = create_translator(FAMILIES[family], vocab_size=VOCABULARY)
    params = sum(parameter.numel() for parameter in network.parameters())
    runs = [run for seed in SEEDS if ended(run := folder(family, seed, work))]
    tested = [scores(run) for run in runs if (run / "model.safetensors").exists()]
    bleu, chrf = (spread([score[name] for score in tested]) or "not run" for name in ("bleu", "chrf"))
    return f"| {family} | {params / 1e6:.1f} | {RATES[family]} | {len(runs)} | {learning(runs)} | **{bleu}** | {chrf} |"


def samples(data: Path, work: Path) -> str:
    """Validation sentences, their translations by hand and by the first seeds."""
    corpus = open_corpus(str(data), "val", "en", "de")
    said = {family: folder(family, SEEDS[0], work) / "translations.txt" for family in FAMILIES}
    lines = {family: file.read_text().splitlines() for family, file in said.items()}
    rows = []
    for number in SHOWN:
        texts = {"English": corpus.source[number], "reference": corpus.target[number]}
        texts |= {family: translated[number] for family, translated in lines.items()}
        rows += [f"| {name} | {text.replace('|', '&#124;')} |" for name, text in texts.items()]
    return "\n".join(rows)


def main() -> None:
    args = command_line(__doc__).parse_args()
    runs = {family: [run(family, seed, str(args.data), args.work) for seed in SEEDS] for family in FAMILIES}
    train_all([pair for seed in zip(*runs.values(), strict=True) for pair in seed], args)
    known = {family: [path for _, path in pairs if ended(path)] for family, pairs in runs.items()}
    rows = "\n".join(row(family, args.work) for family in FAMILIES)
    print(rows)
    curves = {family: (read(paths[0] / "train.csv"), read(paths[0] / "metrics.csv")) for family, paths in known.items()}
    run_curves(curves, DOCUMENT.with_suffix(".png"), metric="bleu")  # type: ignore[arg-type]
    if (positions := known["ResMLP"][0] / "positions.png").exists():
        shutil.copyfile(positions, DOCUMENT.with_name(f"{DOCUMENT.stem}_{positions.name}"))
    if not DOCUMENT.exists():
        DOCUMENT.write_text("# Translation\n")
    commands = "\n\n".join(
        shlex.join(["visionmlp", "train", *arguments, "--output", f"runs/{family.lower()}"])
        for family in FAMILIES
        for arguments, _ in [run(family, SEEDS[0], "multi30k", args.work)]
    )
    text = TEXT.format(
        rows=rows,
        machine=machines(path for paths in known.values() for path in paths),
        samples=samples(args.data, args.work),
        commands=commands,
        epochs=EPOCHS,
        vocabulary=VOCABULARY,
    )
    fill_part(DOCUMENT, "multi30k", text)


TEXT = """29,000 pairs, English to German, {epochs} epochs, the `small` presets with a joint vocabulary of {vocabulary};
both have one budget, and of the rates 1e-3 and 3e-3 the better by validation BLEU in three epochs. Validation is
greedy, every second epoch, mean over seeds; test is `test_2016_flickr` with a beam of 4, by the weights that were best
on the validation set: sacreBLEU's BLEU and chrF of the untouched text. ± is the standard deviation over seeds.
{machine}.

| network | params M | rate | seeds | validation BLEU | test BLEU | test chrF |
|---|---|---|---|---|---|---|
{rows}

![Training loss and validation BLEU of both networks, first seed](translation.png)

Validation sentences, by the first seeds:

| | |
|---|---|
{samples}

`python benchmarks/translation.py --data MULTI30K_FOLDER --work FOLDER` trains all of it and writes this part; by hand:

```
{commands}

visionmlp eval runs/resmlp --split test_2016_flickr --beam 4
```
"""


if __name__ == "__main__":
    main()
