"""The nine families with one budget: smallest published variants, not narrowed, on imagenette.

    python benchmarks/families.py --data IMAGENETTE_FOLDER --work FOLDER

Each model trains at half the size, then goes on at the whole: 64 and 128 pixels, or 70 and 126 where patches ask for
it. Minutes on a large GPU with ``--jobs 9``, more than a day on two CPU cores; a run that was stopped goes on, one that
has ended is not repeated. When all have ended, docs/results/families.md and its figure are written.
"""

import concurrent.futures
import shlex
from pathlib import Path

import visionmlp
from runs import command_line, deploy_error, ended, machines, minutes, read, train
from visionmlp.measure.catalog import count_macs
from visionmlp.report.plots import run_curves

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "families.md"
MODELS = {
    "RepMLPNet": "repmlpnet_t224",
    "ResMLP": "resmlp_s12",
    "MLP-Mixer": "mlpmixer_s16",
    "AS-MLP": "asmlp_t",
    "Hire-MLP": "hiremlp_t",
    "Vision Permutator": "vip_s7",
    "CycleMLP": "cyclemlp_b1",
    "DynaMixer": "dynamixer_s",
    "Sparse-MLP (MoE)": "sparsemlp_moe_s",
}
SIZES = {"Vision Permutator": (70, 126), "DynaMixer": (70, 126)}
EPOCHS = (30, 10)
IMAGES = 4500
BATCH = 64
COMMON = [
    *("--batch-size", str(BATCH), "--drop-path-rate", "0", "--crop-scale", "0.35", "1", "--label-smoothing", "0.1"),
    *("--weight-decay", "0.1", "--clip-grad", "5", "--eval-every", "5", "--num-workers", "0"),
]
RATES = (1e-3, 5e-4)
"""Of each stage."""
SLOWER = {"Sparse-MLP (MoE)": 0.3}
"""Share of these rates: nothing passes beside its Sparse blocks, and at the whole rate it learns less."""
WARMUP_EPOCHS = ("1", "0.25")


def arguments(family: str, stage: int, data: str, start: str) -> list[str]:
    size = SIZES.get(family, (64, 128))[stage]
    checkpoint = ["--checkpoint", f"{start}/model.safetensors"] if stage else []
    rate = f"{SLOWER.get(family, 1) * RATES[stage]:g}"
    schedule = ["--epochs", str(EPOCHS[stage]), "--lr", rate, "--warmup-epochs", WARMUP_EPOCHS[stage]]
    return [MODELS[family], *checkpoint, "--data", data, *COMMON, "--img-size", str(size), *schedule]


def folders(family: str, work: Path) -> tuple[Path, Path]:
    return work / f"{MODELS[family]}-small", work / MODELS[family]


def run(family: str, data: Path, work: Path, threads: int) -> None:
    small, large = folders(family, work)
    train(arguments(family, 0, str(data), ""), small, threads=threads)
    train(arguments(family, 1, str(data), str(small)), large, threads=threads)


def row(family: str, work: Path) -> str:
    small, large = folders(family, work)
    model, _ = visionmlp.load_model(large)
    size = model.config.img_size
    params = sum(parameter.numel() for parameter in model.parameters())
    first, last = read(small / "metrics.csv")[-1], read(large / "metrics.csv")[-1]
    cost = sum(minutes(folder, IMAGES * epochs) for folder, epochs in zip((small, large), EPOCHS, strict=True))
    return (
        f"| {family} | `{model.name}` | {size[0]} | {params / 1e6:.1f} | {count_macs(model, (3, *size)) / 1e9:.2f} "
        f"| {first['top1']:.1f} | **{last['top1']:.1f}** | {last['loss']:.2f} | {deploy_error(large):.0e} "
        f"| {cost:.0f} |"
    )


def joined(family: str, work: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Training rows and evaluations of both stages, on one axis of steps."""
    tables: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    done = 0.0
    for folder in folders(family, work):
        for table, name in zip(tables, ("train.csv", "metrics.csv"), strict=True):
            table += [{**entry, "step": entry["step"] + done} for entry in read(folder / name)]
        done = tables[1][-1]["step"]
    return tables


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--families", nargs="*", default=list(MODELS), metavar="NAME", help="train these alone")
    args = parser.parse_args()
    if not args.no_train:
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda family: run(family, args.data, args.work, args.threads), args.families))
    known = [family for family in MODELS if ended(folders(family, args.work)[1])]
    rows = "\n".join(row(family, args.work) for family in known)
    print(rows)
    if known == list(MODELS):
        curves = {family: joined(family, args.work) for family in known}
        run_curves(curves, DOCUMENT.with_suffix(".png"), metric="top1")
        outputs = ("runs/small", "runs/large")
        commands = "\n".join(
            shlex.join(
                ["visionmlp", "train", *arguments("Hire-MLP", i, "imagenette160", outputs[0]), "--output", outputs[i]]
            )
            for i in (0, 1)
        )
        DOCUMENT.write_text(
            TEXT.format(
                rows=rows,
                commands=commands,
                epochs=EPOCHS,
                machine=machines(folders(f, args.work)[1] for f in MODELS),
                jobs=args.jobs,
            )
        )


TEXT = """# Every family, trained

The smallest published variant of each family, not narrowed, with one budget: {epochs[0]} epochs at 64 pixels, then
{epochs[1]} more from there at 128 (70 and 126 for Vision Permutator and DynaMixer, whose patches need multiples of 14),
on 4,500 images of imagenette, ten classes, from scratch. Top-1 is of the last epoch on all 1,500 validation images. No
option was tuned for a family but Sparse-MLP's rate, which is 0.3 of the others', found by its training loss behind 150
steps. One seed: the standard error from 1,500 images alone is 1.2 points, so near neighbours are not ranked. Recipes
for ImageNet are others
([../recipes.md](../recipes.md)). {machine}; {jobs} runs shared it.

| family | model | pixels | params M | MACs G | top-1, small size | top-1 | loss | error when deployed | minutes |
|---|---|---|---|---|---|---|---|---|---|
{rows}

![Training loss and validation top-1 of nine families over steps](families.png)

"error when deployed" is the largest difference of the deploy form's logits in float32, relative to the largest logit.

```
python benchmarks/families.py --data IMAGENETTE_FOLDER --work FOLDER --jobs {jobs}
```

One family by hand:

```
{commands}
```

Sparse-MLP is the same with `--lr 0.0003`, then `--lr 0.00015`.
"""


if __name__ == "__main__":
    main()
