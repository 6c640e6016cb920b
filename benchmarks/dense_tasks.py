"""Segmentation and detection on real images, with backbones that families.py has trained.

    python benchmarks/dense_tasks.py --data FOLDER --work FOLDER

FOLDER of the data holds camvid_240x180, bccd, nuclei_dsb2018 and coco_small as ../shared/data/unpack.py writes them;
that of the runs is families.py's, whose CycleMLP and RepMLPNet are the backbones. A run that was stopped goes on, one
that has ended is not repeated. Writes the part "tasks" of docs/results/dense.md, between its
markers, of the runs that have ended, and its pictures.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

import families
from runs import command_line, device, ended, fill_part, machines, minutes, read, train_all
from visionmlp.tasks.segment.data import MaskedImages
from visionmlp.tasks.segment.layouts import open_pairs
from visionmlp.tasks.segment.metrics import SegmentationMetric

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "dense.md"
SEGMENT = [
    *("--task", "segment", "--head", "upernet", "--head-channels", "64", "--auxiliary-channels", "32"),
    *("--crop-size", "180", "240", "--scale-range", "0.75", "1.5", "--epochs", "40", "--batch-size", "8"),
    *("--lr", "5e-4", "--warmup-steps", "50", "--clip-grad", "5", "--drop-path-rate", "0", "--eval-every", "5"),
]
DETECT = [
    *("--task", "detect", "--fpn-channels", "64", "--batch-size", "4", "--lr", "5e-4", "--warmup-steps", "50"),
    *("--weight-decay", "0.05", "--clip-grad", "5", "--drop-path-rate", "0", "--max-size", "640"),
]
BLOOD = (*DETECT, "--head", "retinanet", "--min-size", "320")
SMALL_ROIS = {"roi_batch": 128, "fc_channels": 256, "rpn_post_nms": [500, 500]}
COMMON = ["--num-workers", "1"]
DETECTORS = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN", "cascade_mask_rcnn": "Cascade Mask R-CNN"}
HEADS = {"upernet": "UperNet", **DETECTORS}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, and what it is judged by."""

    title: str
    family: str
    stage: int
    """Of the backbone's training in families.py: at 64 pixels, or on at 128."""
    data: str
    options: tuple[str, ...]
    scores: tuple[str, ...]
    """Columns of metrics.csv."""
    test: bool = True
    """Whether the data has a third split."""


def _overfit(head: str) -> tuple[str, ...]:
    settings = {} if head == "retinanet" else SMALL_ROIS
    return (
        *DETECT,
        *("--head", head, "--settings", json.dumps(settings), "--min-size", "320", "--hflip", "0"),
        *("--max-images", "20", "--val-annotations", "instances_train.json"),
        *("--epochs", "200", "--eval-every", "40"),
    )


RUNS = {
    "camvid-cyclemlp": Run("CamVid", "CycleMLP", 1, "camvid_240x180", tuple(SEGMENT), ("miou", "pixel_accuracy")),
    # windows of its own 64 pixels divide 192 x 256, to which images are padded
    "camvid-repmlpnet": Run("CamVid", "RepMLPNet", 0, "camvid_240x180", tuple(SEGMENT), ("miou", "pixel_accuracy")),
    "bccd-retinanet": Run(
        "BCCD", "CycleMLP", 1, "bccd", (*BLOOD, "--epochs", "24", "--eval-every", "4"), ("ap50", "ap")
    ),
    # under an hour on one CPU core
    "bccd-cpu": Run("BCCD", "CycleMLP", 1, "bccd", (*BLOOD, "--epochs", "12", "--eval-every", "4"), ("ap50", "ap")),
    "nuclei-mask_rcnn": Run(
        "Nuclei",
        "CycleMLP",
        1,
        "nuclei_dsb2018",
        (
            *DETECT,
            *("--head", "mask_rcnn", "--settings", json.dumps({**SMALL_ROIS, "anchor_scale": 4.0})),
            *("--min-size", "320", "--max-detections", "300", "--epochs", "8", "--eval-every", "2"),
        ),
        ("mask_ap", "mask_ap50", "ap", "ap50"),
    ),
    **{
        f"overfit-{head}": Run(
            "COCO, 20 images", "CycleMLP", 1, "coco_small", _overfit(head), ("ap50", "ap"), test=False
        )
        for head in DETECTORS
    },
}


def arguments(run: Run, data: str, start: str) -> list[str]:
    model = families.MODELS[run.family]
    size = families.SIZES.get(run.family, (64, 128))[run.stage]
    checkpoint = ["--checkpoint", f"{start}/model.safetensors", "--img-size", str(size)]
    return [model, *checkpoint, "--data", data, *run.options, *COMMON]


def evaluated(folder: Path, split: str) -> dict[str, float]:
    """Scores on a split, kept beside the run."""
    kept = folder.with_name(f"{folder.name}.{split}.json")
    if not kept.exists():
        command = [sys.executable, "-m", "visionmlp", "eval", str(folder), "--split", split, "--json"]
        command += ["--device", str(device())]
        kept.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return json.loads(kept.read_text())


def labels(images: MaskedImages) -> torch.Tensor:
    """Of all pixels."""
    items = [images.read(number).item for number in range(len(images))]
    return torch.cat([torch.as_tensor(item.labels).flatten() for item in items]).long()  # type: ignore[union-attr]


def majority(data: Path) -> dict[str, float]:
    """Test scores of the answer that every pixel is of the commonest class of the training images."""
    training, test = (open_pairs(data, split) for split in ("train", "test"))
    classes = training.classes.count
    known, true = labels(MaskedImages(training)), labels(MaskedImages(test))
    answer = torch.full_like(true, int(torch.bincount(known[known < classes], minlength=classes).argmax()))
    metric = SegmentationMetric(classes)
    metric.update(torch.zeros(classes, len(true)), answer, true)
    return metric.compute()


def rising(rows: Sequence[dict[str, float]], score: str) -> str:
    """A score at four epochs at most."""
    chosen = sorted({max(1, round(len(rows) * part / 4)) - 1 for part in range(1, 5)})
    return ", ".join(f"{rows[index][score]:.1f} ({rows[index]['epoch']:.0f})" for index in chosen)


def row(name: str, work: Path) -> str:
    run, folder = RUNS[name], work / name
    options = dict(zip(run.options, run.options[1:], strict=False))
    rows = read(folder / "metrics.csv")
    last = evaluated(folder, "test") if run.test else rows[-1]
    judged = ", ".join(f"{score} {last[score]:.1f}" for score in run.scores)
    stopped = "" if ended(folder) else f" of {options['--epochs']}"
    cost = minutes(folder, int(rows[-1]["step"]) * int(options["--batch-size"]))
    return (
        f"| {run.title} | {run.family} | {HEADS[options['--head']]} | {machines([folder]).partition(',')[0]} "
        f"| {rows[-1]['epoch']:.0f}{stopped} | {cost:.0f} | {run.scores[0]}: {rising(rows, run.scores[0])} "
        f"| **{judged}** |"
    )


def picture(name: str, work: Path) -> str:
    """The newest picture of a run, copied beside the page; nothing if it has none."""
    pictures = sorted((work / name).glob("predictions/step-*.png")) + sorted((work / name).glob("pictures/step_*.png"))
    if not pictures:
        return ""
    target = DOCUMENT.with_name(f"dense_{name}.jpg")
    Image.open(pictures[-1]).convert("RGB").save(target, quality=85)
    return f"![{RUNS[name].title}, {RUNS[name].family}: predictions]({target.name})"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS), metavar="NAME")
    args = parser.parse_args()
    data, work = args.data, args.work
    starts = {name: families.folders(RUNS[name].family, work)[RUNS[name].stage] for name in args.runs}
    train_all(
        (
            (arguments(RUNS[name], str(data / RUNS[name].data), str(start)), work / name)
            for name, start in starts.items()
        ),
        args,
    )
    known = [name for name in RUNS if (work / name / "metrics.csv").exists()]
    baseline = majority(data / "camvid_240x180")
    text = TEXT.format(
        rows="\n".join(row(name, work) for name in known),
        miou=baseline["miou"],
        accuracy=baseline["pixel_accuracy"],
        machine=machines(work / name for name in known),
        jobs=args.jobs,
        pictures="\n\n".join(filter(None, (picture(name, work) for name in known))),
        commands="\n\n".join(
            shlex.join(["visionmlp", "train", *arguments(RUNS[name], RUNS[name].data, "runs/START")]) for name in known
        ),
    )
    print(text)
    fill_part(DOCUMENT, "tasks", text)


TEXT = """Backbones are the smallest published variants, not narrowed, trained on 4,500 images of imagenette
([families.md](families.md)); heads are narrow, 64 channels. Seed 0.
{machine}; {jobs} runs shared a GPU, and a run on CPU
cores has one thread. Minutes are of training, without evaluation. Scores are percent. "held out" is the
validation set, behind the epochs in brackets; the last column is of the test set, on the weights that were best on the
validation set. The commonest class everywhere would have mIoU {miou:.1f} and pixel accuracy {accuracy:.1f} on CamVid's
test set. "20 images" trains and scores on the same images: it shows that the detector can learn, nothing more.

| data | backbone | head | on | epochs | minutes | held out | test |
|---|---|---|---|---|---|---|---|
{rows}

{pictures}

`python benchmarks/dense_tasks.py --data FOLDER --work FOLDER --jobs {jobs}` trains all of it and writes this
part. One by one, from families.py's backbones:

```
{commands}
```
"""


if __name__ == "__main__":
    main()
