"""Distillation, DINO, MoCo v3 and transfer against what they must beat, on imagenette at 64 pixels.

    python benchmarks/training_methods.py --data IMAGENETTE_FOLDER --work FOLDER

The supervised student is the ResMLP of locality.py without branches, and the teacher the Hire-MLP T of families.py
behind its small size: with the same --work their runs are taken, otherwise made. Two runs at a time with one thread
each, hours in all; a run that was stopped goes on, one that has ended is not repeated. When all have ended,
docs/results/training.md and its figure are written.
"""

import concurrent.futures
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import families
import locality
from runs import command_line, read, train
from visionmlp.report.plots import run_curves

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "training.md"
SEEDS = locality.SEEDS
STUDENT = ("ResMLP", "none")
WIDE = json.dumps({"patch_size": 8, "dim": 192, "depth": 6})
BACKBONE = ["resmlp_s12", "--model-args", WIDE, "--img-size", "64"]
PRETRAINING = ["--epochs", "60", "--eval-every", "5", "--num-workers", "0", "--threads", "1", "--seed", "0"]
METHODS = {
    "DINO": [
        *("--task", "dino", "--batch-size", "64", "--lr", "5e-4", "--warmup-epochs", "5", "--out-dim", "4096"),
        *("--hidden-dim", "512", "--local-crops", "0", "--global-scale", "0.14", "1", "--teacher-momentum", "0.99"),
    ],
    "MoCo v3": [
        *("--task", "moco", "--batch-size", "128", "--lr", "5e-4", "--warmup-epochs", "5"),
        *("--projector-hidden", "1024", "--no-freeze-stem"),
    ],
}
LABELLED = 500
TUNING = [
    *("--img-size", "64", "--epochs", "60", "--batch-size", "50", "--lr", "1e-3", "--weight-decay", "0.1"),
    *("--warmup-epochs", "5", "--clip-grad", "5", "--label-smoothing", "0.1", "--crop-scale", "0.35", "1"),
    *("--drop-path-rate", "0", "--eval-every", "10", "--num-workers", "0", "--threads", "1"),
]


def distilled(seed: int, data: Path, work: Path) -> tuple[list[str], Path]:
    arguments = locality.arguments((*STUDENT, seed), str(data))
    teacher = families.folders("Hire-MLP", work)[0]
    return [*arguments, "--teacher", str(teacher), "--distill", "hard"], work / f"resmlp-distilled-{seed}"


def pretrained(method: str, data: Path, work: Path) -> tuple[list[str], Path]:
    name = method.split()[0].lower()
    return [*BACKBONE, "--data", str(data), *PRETRAINING, *METHODS[method]], work / f"resmlp-{name}"


def tuned(start: str, seed: int, data: Path, work: Path) -> tuple[list[str], Path]:
    """A classifier from few labels, from a pre-trained backbone or from nothing."""
    model = BACKBONE[:3] if start == "scratch" else [str(pretrained(start, data, work)[1])]
    name = start.split()[0].lower()
    few = ["--data", str(data), "--max-images", str(LABELLED), "--seed", str(seed)]
    return [*model, *few, *TUNING], work / f"resmlp-{name}-tuned-{seed}"


def untrained(data: Path) -> float:
    """Nearest neighbours of the features of fresh weights, percent."""
    command = [sys.executable, "-m", "visionmlp", "eval", *BACKBONE, "--protocol", "knn", "--data", str(data), "--json"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["knn"])


def ends(folders: list[Path], column: str = "top1") -> str:
    """Mean and standard deviation of the last evaluations."""
    values = [read(folder / "metrics.csv")[-1][column] for folder in folders]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    data, work = args.data, args.work
    work.mkdir(parents=True, exist_ok=True)
    supervised = [(*STUDENT, seed) for seed in SEEDS]
    teacher = families.folders("Hire-MLP", work)[0]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        first = [pool.submit(train, families.arguments("Hire-MLP", 0, str(data), ""), teacher, threads=1)]
        for arm in supervised:
            arguments = locality.arguments(arm, str(data))
            first.append(pool.submit(train, arguments, locality.folder(arm, work), threads=1))
        for method in METHODS:
            arguments, folder = pretrained(method, data, work)
            first.append(pool.submit(train, arguments, folder, threads=1))
        for future in first:
            future.result()
        second = [distilled(seed, data, work) for seed in SEEDS]
        second += [tuned(start, seed, data, work) for seed in SEEDS for start in ("scratch", *METHODS)]
        list(pool.map(lambda run: train(*run, threads=1), second))
    fresh = untrained(data)
    runs = {method: pretrained(method, data, work)[1] for method in METHODS}
    curves = {method: (read(folder / "train.csv"), read(folder / "metrics.csv")) for method, folder in runs.items()}
    run_curves(curves, DOCUMENT.with_suffix(".png"), metric="knn")  # type: ignore[arg-type]
    pretraining = "\n".join(
        f"| {method} | {fresh:.1f} | "
        + " | ".join(f"{row['knn']:.1f}" for row in curves[method][1] if row["epoch"] in (5, 20, 40, 60))
        + f" | {ends([tuned(method, seed, data, work)[1] for seed in SEEDS])} |"
        for method in METHODS
    )
    commands = "\n\n".join(
        shlex.join(["visionmlp", "train", *arguments, "--output", str(Path("runs") / folder.name)])
        for arguments, folder in (
            distilled(0, Path("imagenette160"), Path("runs")),
            *(pretrained(method, Path("imagenette160"), Path("runs")) for method in METHODS),
            tuned("DINO", 0, Path("imagenette160"), Path("runs")),
        )
    )
    DOCUMENT.write_text(
        TEXT.format(
            teacher=read(teacher / "metrics.csv")[-1]["top1"],
            supervised=ends([locality.folder(arm, work) for arm in supervised]),
            distilled=ends([distilled(seed, data, work)[1] for seed in SEEDS]),
            pretraining=pretraining,
            scratch=ends([tuned("scratch", seed, data, work)[1] for seed in SEEDS]),
            labelled=LABELLED,
            epochs=locality.EPOCHS,
            commands=commands,
        )
    )


TEXT = """# Training methods

imagenette (4,500 training images, ten classes) at 64 pixels, narrow ResMLPs with patches of 8 pixels. Top-1 and k-NN
are of the last epoch on all 1,500 validation images, in percent; nothing was selected on them. ± is the standard
deviation over three seeds.

## Distillation

ResMLP, 4 layers of 96 channels, {epochs} epochs; the arms differ in the teacher alone, Hire-MLP T trained here at the
same size ([families.md](families.md), {teacher:.1f} %).

| supervised | hard distillation |
|---|---|
| {supervised} | {distilled} |

## DINO and MoCo v3

ResMLP, 6 layers of 192 channels, 60 epochs without labels, one seed; features are judged by 20 nearest neighbours. The
last column is a classifier that starts from them and sees {labelled} labelled images for 60 epochs; from scratch, with
the same budget, it is {scratch}.

| method | fresh weights | epoch 5 | 20 | 40 | 60 | classifier from {labelled} labels |
|---|---|---|---|---|---|---|
{pretraining}

![Training loss and k-NN accuracy of both methods over steps](training.png)

```
python benchmarks/training_methods.py --data IMAGENETTE_FOLDER --work FOLDER
```

By hand, one of each:

```
{commands}
```
"""


if __name__ == "__main__":
    main()
