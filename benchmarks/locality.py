"""The effect of Locality Injection: with and without branches, three seeds, until both arms have flattened.

    python benchmarks/locality.py --data IMAGENETTE_FOLDER --work FOLDER

RepMLPNet's Table 5 on imagenette at 64 pixels, with narrow models. Both arms of a model share everything but the
branches. Minutes on a large GPU with ``--jobs 18``, many hours on two CPU cores; a run that was stopped goes on, one
that has ended is not repeated. When all have ended, docs/results/locality.md and its figure are written.
"""

import itertools
import json
import shlex
import statistics
from pathlib import Path

from runs import command_line, deploy_error, ended, machines, read, train_all
from visionmlp.report.plots import run_curves

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "locality.md"
BRANCHES = {"none": [], "1x1 + 3x3": [1, 3]}
SEEDS = (0, 1, 2)
MODELS = {
    "RepMLPNet": ("repmlpnet_t224", {"channels": 32, "blocks": [2, 2], "share_sets": [8, 32]}),
    "ResMLP": ("resmlp_s12", {"patch_size": 8, "dim": 96, "depth": 4}),
    "MLP-Mixer": ("mlpmixer_s16", {"patch_size": 8, "dim": 96, "depth": 4, "token_dim": 64, "channel_dim": 384}),
}
PAPER = {"RepMLPNet": (59.07, 67.43), "ResMLP": (55.58, 65.09)}
WEIGHTS = "model.safetensors"
EPOCHS = 50
BUDGET = [
    *("--img-size", "64", "--epochs", str(EPOCHS), "--batch-size", "64", "--lr", "2e-3", "--weight-decay", "0.1"),
    *("--warmup-epochs", "2", "--clip-grad", "5", "--label-smoothing", "0.1", "--crop-scale", "0.35", "1"),
    *("--drop-path-rate", "0", "--eval-every", "5", "--num-workers", "0"),
]
Arm = tuple[str, str, int]


def arguments(arm: Arm, data: str) -> list[str]:
    family, branches, seed = arm
    name, fields = MODELS[family]
    fields = {**fields, "kernel_sizes": BRANCHES[branches]}
    return [name, "--model-args", json.dumps(fields), "--data", data, "--seed", str(seed), *BUDGET]


def folder(arm: Arm, work: Path) -> Path:
    family, branches, seed = arm
    return work / f"{family}-{'local' if BRANCHES[branches] else 'bare'}-{seed}".lower()


def top1(arm: Arm, work: Path) -> float:
    return read(folder(arm, work) / "metrics.csv")[-1]["top1"]


def row(family: str, work: Path) -> str:
    seeds = known_seeds(family, work)
    bare, local = ([top1((family, branches, seed), work) for seed in seeds] for branches in BRANCHES)
    gains = [b - a for a, b in zip(bare, local, strict=True)]
    trained = [run for seed in seeds if (run := folder((family, "1x1 + 3x3", seed), work) / WEIGHTS).exists()]
    error = f"{max(map(deploy_error, trained)):.0e}" if trained else ""
    # what the bare arm still gained in the last fifth of its epochs
    tables = [read(folder((family, "none", seed), work) / "metrics.csv") for seed in seeds]
    late = statistics.mean(table[-1]["top1"] - table[-3]["top1"] for table in tables)
    paper = f"{PAPER[family][0]} to {PAPER[family][1]}" if family in PAPER else ""
    return (
        f"| {family} | {spread(bare)} | {spread(local)} | **{statistics.mean(gains):+.1f}** ({signed(gains)}) "
        f"| {late:+.1f} | {error} | {paper} |"
    )


def known_seeds(family: str, work: Path) -> list[int]:
    return [seed for seed in SEEDS if all(ended(folder((family, branches, seed), work)) for branches in BRANCHES)]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def signed(values: list[float]) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


def main() -> None:
    args = command_line(__doc__).parse_args()
    # all arms of a seed before the next seed
    arms = [(family, branches, seed) for seed, family, branches in itertools.product(SEEDS, MODELS, BRANCHES)]
    train_all(((arguments(arm, str(args.data)), folder(arm, args.work)) for arm in arms), args)
    rows = "\n".join(row(family, args.work) for family in MODELS)
    print(rows)
    curves = {
        f"{family}, {branches}": tuple(
            read(folder((family, branches, SEEDS[0]), args.work) / name) for name in ("train.csv", "metrics.csv")
        )
        for family in MODELS
        for branches in BRANCHES
    }
    run_curves(curves, DOCUMENT.with_suffix(".png"), metric="top1")  # type: ignore[arg-type]
    command = shlex.join([*arguments(("ResMLP", "1x1 + 3x3", 0), "imagenette160"), "--output", "runs/resmlp-local-0"])
    DOCUMENT.write_text(
        TEXT.format(
            rows=rows,
            command=command,
            epochs=EPOCHS,
            machine=machines(folder(arm, args.work) for arm in arms if ended(folder(arm, args.work))),
            jobs=args.jobs,
        )
    )


TEXT = """# Locality Injection: with and without branches

RepMLPNet's Table 5 in small: imagenette (4,500 training images, ten classes) at 64 pixels, narrow models on 8x8 and
16x16 maps, {epochs} epochs, as many seeds for each arm as there are gains. The arms of a model
differ in nothing but the branches. Top-1 is of the last epoch on all 1,500 validation images; nothing was selected on
them; mean ± standard deviation over seeds.
{machine}; {jobs} runs shared it.
The deploy forms of both arms are of one shape and speed: the branches are merged into the matrices.

| model | without branches | with 1x1 + 3x3 | gain (each seed) | bare arm, late | deploy error | paper's Table 5 |
|---|---|---|---|---|---|---|
{rows}

"bare arm, late": what its top-1 still gained in the last fifth of its epochs; near zero, it had flattened. The paper's
numbers are of CIFAR-100 with wide models and 100 epochs: compare directions.

![Training loss and validation top-1 of all arms, first seed](locality.png)

```
python benchmarks/locality.py --data IMAGENETTE_FOLDER --work FOLDER --jobs {jobs}
```

One arm by hand:

```
visionmlp train {command}
```
"""


if __name__ == "__main__":
    main()
