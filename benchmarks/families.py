"""One short real training run for each family: narrow models on a subset of real CIFAR-100.

    python benchmarks/families.py --data CIFAR100_FOLDER --work FOLDER

Trains every family with the same budget, two at a time with one thread each, deploys what it trained, and writes
docs/results/families.md. Runs that have finished are not repeated.
"""

import argparse
import concurrent.futures
import json
import shlex
from pathlib import Path

import torch

import visionmlp
from cifar import subset, train

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "families.md"
_AXIAL = {"patch_size": 4, "dims": [96, 96], "blocks": [2, 2], "segments": [8, 8], "downsample_before": []}
_MIXER = {"patch_size": 4, "dim": 96, "depth": 4, "token_dim": 48, "channel_dim": 384}
MODELS = {
    "RepMLPNet": ("repmlpnet_cifar", {"channels": 32, "blocks": [2, 2], "share_sets": [8, 32]}),
    "ResMLP": ("resmlp_s12", {"patch_size": 4, "dim": 96, "depth": 4}),
    "MLP-Mixer": ("mlpmixer_s16", _MIXER),
    "AS-MLP": ("asmlp_t", {"patch_size": 2, "dim": 32, "blocks": [2, 2, 2]}),
    "Hire-MLP": (
        "hiremlp_t",
        {"dims": [64, 128], "blocks": [2, 2], "region_sizes": [4, 2], "step_strides": [2, 2], "step_dilations": [2, 1]},
    ),
    "Vision Permutator": ("vip_s14", _AXIAL),
    "CycleMLP": ("cyclemlp_b1", {"dims": [64, 128], "blocks": [2, 2], "mlp_ratios": [4, 4]}),
    "DynaMixer": ("dynamixer_s", _AXIAL),
    "Sparse-MLP (MoE)": ("sparsemlp_moe_s", {**_MIXER, "sparse_blocks": 2}),
}
EPOCHS = 6
BUDGET = [
    *("--img-size", "32", "--epochs", str(EPOCHS), "--batch-size", "64", "--lr", "1e-3", "--weight-decay", "0.05"),
    *("--warmup-epochs", "1", "--clip-grad", "5", "--label-smoothing", "0.1", "--crop", "pad"),
    *("--eval-every", "6", "--log-every", "10", "--num-workers", "0"),
]


def arguments(family: str, data: str, output: str) -> list[str]:
    name, fields = MODELS[family]
    model_args = ["--model-args", json.dumps(fields)] if fields else []
    return ["train", name, *model_args, "--data", data, "--output", output, *BUDGET]


def run(family: str, data: Path, work: Path) -> str:
    """Train one family; returns its row of the table."""
    name, _ = MODELS[family]
    output = work / name
    evaluations = train(arguments(family, str(data), str(output)), output)
    losses = [float(row["loss"]) for row in read(output / "train.csv")]
    model, _ = visionmlp.load_model(output)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
        error = (visionmlp.reparameterize(model)(images) - expected).abs().max() / expected.abs().max()
    params = sum(p.numel() for p in model.parameters())
    last = evaluations[-1]
    return (
        f"| {family} | `{name}` | {params / 1e6:.2f} M | {losses[0]:.2f} | {losses[-1]:.2f} "
        f"| {float(last['loss']):.2f} | **{float(last['top1']):.1f} %** | {float(last['top5']):.1f} % | {error:.0e} |"
    )


def read(path: Path) -> list[dict[str, str]]:
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-100 as train/ and val/ of class folders")
    parser.add_argument("--work", type=Path, required=True, help="run folders and the subset")
    parser.add_argument("--per-class", type=int, default=100, help="training images of each class")
    parser.add_argument("--families", nargs="*", default=list(MODELS), help="train these alone, and write no document")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = subset(args.data, args.work / "cifar100_subset", args.per_class)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda family: run(family, data, args.work), args.families))
    print("\n".join(rows))
    if args.families == list(MODELS):
        commands = "\n".join(
            "visionmlp " + shlex.join(arguments(family, "cifar100_subset", f"runs/{MODELS[family][0]}"))
            for family in MODELS
        )
        DOCUMENT.write_text(
            TEXT.format(rows="\n".join(rows), per_class=args.per_class, epochs=EPOCHS, commands=commands)
        )


TEXT = """# Every family, trained

One short run for each family on real CIFAR-100: the first {per_class} training images of each class, {epochs} epochs,
one seed, narrow models of 0.3 to 1.5 million parameters, the same budget for all. Accuracy is of the last epoch on all
10,000 test images, nothing was selected on them; chance is 1 %. The runs show that every family learns through this
library's loop; they are too short and the models too small to rank the families.

| family | model, narrowed | params | first loss | last loss | test loss | top-1 | top-5 | error when deployed |
|---|---|---|---|---|---|---|---|---|
{rows}

"first loss" and "last loss" are means of the training loss over the first and the last ten steps; "error when deployed"
is the largest difference of the deploy form's logits in float32, relative to the largest logit.

```
python benchmarks/families.py --data CIFAR100_FOLDER --work FOLDER
```

makes the subset (links), runs everything, two runs at a time with one thread each, and writes this page. By hand:

```
{commands}
```
"""


if __name__ == "__main__":
    main()
