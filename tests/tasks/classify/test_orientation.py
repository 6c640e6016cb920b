"""Training, evaluation and prediction of one model agree on whether EXIF turns images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from visionmlp.cli import main
from visionmlp.models.backbone import Backbone
from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.classify.run import train


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Turned by 90 degrees, as EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    random = np.random.default_rng(0)
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(2):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{number}.png", exif=exif)
    return tmp_path / "data"


@pytest.mark.parametrize("turn", [True, False])
def test_a_run_turns_images_as_it_was_told_and_so_does_who_uses_it(
    turn: bool, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    def keep(module: nn.Module, arguments: Any) -> None:
        if isinstance(module, Backbone):
            inputs[module.training] += arguments[0].detach().clone()

    def latest() -> list[torch.Tensor]:
        taken = inputs[False][:]
        inputs[False].clear()
        return taken

    run = tmp_path / "run"
    handle = nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        train(
            ClassifyConfig(
                model="resmlp_test",
                data=str(images),
                output=run,
                epochs=1,
                batch_size=4,
                num_workers=0,
                accelerator="cpu",
                crop="center",
                crop_pct=1.0,
                hflip=0.0,
                mean=(0.0,) * 3,
                std=(1 / 255,) * 3,
                exif_orientation=turn,
            )
        )
        evaluated = latest()
        assert main(["eval", str(run), "--json"]) == 0
        for a, b in zip(evaluated, latest(), strict=True):
            assert torch.equal(a, b)
        files = sorted((images / "val").rglob("*.png"))
        other = "ignore" if turn else "apply"
        answers: dict[tuple[str, ...], list[torch.Tensor]] = {}
        for words in ((), ("--exif-orientation", other)):
            capsys.readouterr()
            assert main(["predict", str(run), *map(str, files), "--json", *words]) == 0
            assert all(not json.loads(line)["error"] for line in capsys.readouterr().out.splitlines())
            answers[words] = latest()
        assert main(["eval", str(run), "--json", "--exif-orientation", other]) == 0
        answers["eval",] = latest()
    finally:
        handle.remove()
    for split, got, turned in (
        ("train", inputs[True], turn),
        ("val", evaluated, turn),
        ("val", answers[()], turn),
        ("val", answers["--exif-orientation", other], not turn),
        ("val", answers["eval",], not turn),
    ):
        stored = [np.asarray(Image.open(path)) for path in sorted((images / split).rglob("*.png"))]
        expected = {np.rot90(image, -1 if turned else 0).tobytes() for image in stored}
        shown = {image.round().byte().permute(1, 2, 0).numpy().tobytes() for image in got}
        assert shown == expected
