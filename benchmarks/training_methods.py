"""Distillation, DINO, MoCo v3 and transfer against what they must beat, on imagenette at 64 pixels.

    python benchmarks/training_methods.py --data IMAGENETTE_FOLDER --work FOLDER

The supervised student is the ResMLP of locality.py without branches, and the teacher the Hire-MLP T of families.py
behind its small size: with the same --work their runs are taken, otherwise made. Minutes on a large GPU
with ``--jobs 18``, many hours on two CPU cores; a run that was stopped goes on, one that has ended is not repeated.
When all have ended, docs/results/training.md and its figure are written.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import families
import locality
import visionmlp
from runs import Run, command_line, ended, machines, read, train_all
from visionmlp.report.plots import run_curves

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "training.md"
SEEDS = locality.SEEDS
STUDENT = ("ResMLP", "none")
WIDE: dict[str, Any] = {"patch_size": 8, "dim": 192, "depth": 6}
BACKBONE = ["resmlp_s12", "--model-args", json.dumps(WIDE), "--img-size", "64"]
PRETRAINING = ["--epochs", "60", "--eval-every", "5", "--num-workers", "2"]
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
    *("--drop-path-rate", "0", "--eval-every", "10", "--num-workers", "0"),
]


def distilled(seed: int, data: Path, work: Path) -> Run:
    arguments = locality.arguments((*STUDENT, seed), str(data))
    teacher = families.folders("Hire-MLP", work)[0]
    return [*arguments, "--teacher", str(teacher), "--distill", "hard"], work / f"resmlp-distilled-{seed}"


def pretrained(method: str, data: Path, work: Path) -> Run:
    name = method.split()[0].lower()
    return [*BACKBONE, "--data", str(data), *PRETRAINING, *METHODS[method]], work / f"resmlp-{name}"


def tuned(start: str, seed: int, data: Path, work: Path) -> Run:
    """A classifier from few labels, from a pre-trained backbone or from nothing."""
    model = BACKBONE[:3] if start == "scratch" else [str(pretrained(start, data, work)[1])]
    name = start.split()[0].lower()
    few = ["--data", str(data), "--max-images", str(LABELLED), "--seed", str(seed)]
    return [*model, *few, *TUNING], work / f"resmlp-{name}-tuned-{seed}"


def untrained(data: Path) -> float:
    """Nearest neighbours of the features of fresh weights, percent."""
    torch.manual_seed(0)
    model = visionmlp.create_model("resmlp_s12", num_classes=0, img_size=64, **WIDE)
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/fresh.safetensors"
        visionmlp.save_checkpoint(weights, model)
        command = [sys.executable, "-m", "visionmlp", "eval", weights, "--data", str(data)]
        command += ["--protocol", "knn", "--json"]
        return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["knn"])


def last(run: Path) -> float:
    return read(run / "metrics.csv")[-1]["top1"]


def ends(folders: list[Path]) -> str:
    """Mean and standard deviation of the last top-1."""
    values = [last(folder) for folder in folders]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    args = command_line(__doc__).parse_args()
    data, work = args.data, args.work
    supervised = [(*STUDENT, seed) for seed in SEEDS]
    teacher = families.folders("Hire-MLP", work)[0]
    first: list[Run] = [pretrained(method, data, work) for method in METHODS]
    first.append((families.arguments("Hire-MLP", 0, str(data), ""), teacher))
    first += [(locality.arguments(arm, str(data)), locality.folder(arm, work)) for arm in supervised]
    train_all(first, args)
    second = [distilled(seed, data, work) for seed in SEEDS]
    second += [tuned(start, seed, data, work) for seed in SEEDS for start in ("scratch", *METHODS)]
    train_all(second, args)
    known = [folder for _, folder in [*first, *second] if ended(folder)]
    pairs = [
        (locality.folder((*STUDENT, seed), work), distilled(seed, data, work)[1])
        for seed in SEEDS
        if ended(distilled(seed, data, work)[1])
    ]
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
            supervised=ends([bare for bare, _ in pairs]),
            distilled=ends([taught for _, taught in pairs]),
            pretraining=pretraining,
            scratch=ends([tuned("scratch", seed, data, work)[1] for seed in SEEDS]),
            gains=locality.signed([last(taught) - last(bare) for bare, taught in pairs]),
            seeds=len(pairs),
            labelled=LABELLED,
            epochs=locality.EPOCHS,
            machine=machines(known),
            jobs=args.jobs,
            commands=commands,
        )
    )


TEXT = """# Training methods

imagenette (4,500 training images, ten classes) at 64 pixels, narrow ResMLPs with patches of 8 pixels. Top-1 and k-NN
are of the last epoch on all 1,500 validation images, if not said otherwise, in percent; nothing was selected on them.
± is the standard deviation over seeds. {machine}; {jobs} runs shared it.

## Distillation

ResMLP, 4 layers of 96 channels, {epochs} epochs; the arms differ in the teacher alone, Hire-MLP T trained here at the
same size ([families.md](families.md), {teacher:.1f} %). {seeds} seeds.

| supervised | hard distillation | gain (each seed) |
|---|---|---|
| {supervised} | {distilled} | {gains} |

## DINO and MoCo v3

ResMLP, 6 layers of 192 channels, 60 epochs without labels, one seed; features are judged by 20 nearest neighbours. The
last column is a classifier that starts from them and sees {labelled} labelled images for 60 epochs, on {labelled}
validation images, three seeds; from scratch, with the same budget, it is {scratch}.

| method | fresh weights | epoch 5 | 20 | 40 | 60 | classifier from {labelled} labels |
|---|---|---|---|---|---|---|
{pretraining}

![Training loss and k-NN accuracy of both methods over steps](training.png)

```
python benchmarks/training_methods.py --data IMAGENETTE_FOLDER --work FOLDER --jobs {jobs}
```

By hand, one of each:

```
{commands}
```
"""


if __name__ == "__main__":
    main()
