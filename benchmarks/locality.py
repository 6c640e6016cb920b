"""The effect of Locality Injection in small: RepMLPNet's Table 5 on a subset of real CIFAR-100.

    python benchmarks/locality.py --data CIFAR100_FOLDER --work FOLDER

Trains eight arms with the same budget, two at a time with one thread each, deploys them, and writes
docs/results/locality.md. Arms that finished are not repeated.
"""

import argparse
import concurrent.futures
import shlex
from pathlib import Path

import torch

import visionmlp
from cifar import subset, train

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "locality.md"
BRANCHES = {"none": [], "1x1": [1], "3x3": [3], "1x1 + 3x3": [1, 3]}
MODELS = {
    "RepMLPNet": ("repmlpnet_cifar", {"channels": 32, "blocks": [2, 2], "share_sets": [8, 32]}),
    "ResMLP": ("resmlp_s12", {"patch_size": 2, "dim": 48, "depth": 3, "img_size": 32}),
}
PAPER = {"RepMLPNet": [59.07, 60.73, 65.36, 67.43], "ResMLP": [55.58, 57.96, 63.76, 65.09]}
BUDGET = [
    *("--epochs", "12", "--batch-size", "128", "--lr", "2e-3", "--weight-decay", "0.1", "--warmup-epochs", "1"),
    *("--clip-grad", "5", "--label-smoothing", "0.1", "--crop", "pad", "--eval-every", "12", "--num-workers", "0"),
]


def arguments(family: str, kernel_sizes: list[int], data: str, output: str) -> list[str]:
    name, fields = MODELS[family]
    fields = {**fields, "kernel_sizes": kernel_sizes}
    text = str(fields).replace("'", '"')
    return ["train", name, "--model-args", text, "--data", data, "--output", output, *BUDGET]


def run(family: str, branch: str, data: Path, work: Path) -> dict[str, float]:
    output = work / f"{family}-{branch.replace(' ', '')}".lower()
    rows = train(arguments(family, BRANCHES[branch], str(data), str(output)), output)
    top1 = float(rows[-1]["top1"])
    model, _ = visionmlp.load_model(output)
    with torch.inference_mode():
        images = torch.randn(8, 3, 32, 32)
        expected = model(images)
        error = (visionmlp.reparameterize(model)(images) - expected).abs().max() / expected.abs().max()
    params = sum(p.numel() for p in model.parameters())
    return {"top1": top1, "params": params, "error": error.item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-100 as train/ and val/ of class folders")
    parser.add_argument("--work", type=Path, required=True, help="run folders and the subset")
    parser.add_argument("--per-class", type=int, default=60, help="training images of each class")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = subset(args.data, args.work / "cifar100_subset", args.per_class)
    arms = [(family, branch) for branch in reversed(BRANCHES) for family in reversed(MODELS)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = dict(zip(arms, pool.map(lambda arm: run(*arm, data, args.work), arms), strict=True))
    rows = []
    for family in MODELS:
        bare = results[family, "none"]
        for branch, paper in zip(BRANCHES, PAPER[family], strict=True):
            got = results[family, branch]
            rows.append(
                f"| {family} | {branch} | {got['top1']:.2f} | {got['top1'] - bare['top1']:+.2f} "
                f"| {got['params']:,} | {got['error']:.1e} | {paper:.2f} | {paper - PAPER[family][0]:+.2f} |"
            )
    print("\n".join(rows))
    DOCUMENT.write_text(TEXT.format(rows="\n".join(rows), per_class=args.per_class, commands=commands()))


def commands() -> str:
    return "\n\n".join(
        "visionmlp " + shlex.join(arguments(family, [1, 3], "cifar100_subset", f"runs/{family.lower()}-1x1+3x3"))
        for family in MODELS
    )


TEXT = """# Locality Injection in small: CIFAR-100

RepMLPNet's Table 5, scaled to minutes on two CPU cores: {per_class} training images of each class, narrow models,
twelve epochs, one seed. The accuracy is of the last epoch on all 10,000 test images; nothing was selected on them. The
deploy form computes the same as the training form (last-but-two column), so the accuracy costs nothing at inference.
The paper's numbers come from the full training set, wide models and 100 epochs: compare differences, not levels.

| model | branches | top-1, ours | against none | parameters | deploy error, float32 | top-1, paper | against none |
|---|---|---|---|---|---|---|---|
{rows}

Standard error of a difference between two arms, from 10,000 test images alone: about 0.5 points.

```
python benchmarks/locality.py --data CIFAR100_FOLDER --work FOLDER
```

runs all arms. One arm of each model, by hand, with other `kernel_sizes` for the other arms:

```
{commands}
```
"""


if __name__ == "__main__":
    main()
