"""Several runs on one page."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.cli import main


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(
        name: str, *, lr: float = 0.1, metric: str = "top1", values: tuple[float, ...] = (10.0, 30.0, 20.0)
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(f"task: classify\nmodel: resmlp_s12\noutput: {folder}\nlr: {lr}\n")
        losses = "".join(f"{step},1,{1 / (step + 1)},0.1,5\n" for step in range(3))
        (folder / "train.csv").write_text("step,epoch,loss,lr,images_per_second\n" + losses)
        rows = "".join(f"{step},{step},{value},{1 / value}\n" for step, value in enumerate(values, 1))
        (folder / "metrics.csv").write_text(f"step,epoch,{metric},loss\n" + rows)
        return folder

    return make


def test_a_page_shows_best_numbers_and_what_differs(make_run, tmp_path: Path, capsys) -> None:
    runs = [make_run("a"), make_run("b$_x", lr=0.2, values=(15.0, 25.0))]
    output = tmp_path / "page.html"
    assert main(["compare", *map(str, runs), "--output", str(output)]) == 0
    assert f"wrote {output}: 2 runs by top1" in capsys.readouterr().out
    text = output.read_text()
    assert "<td>a</td><td>resmlp_s12</td><td>30</td><td>2</td><td>20</td><td>3</td>" in text
    assert "<td>b$_x</td><td>resmlp_s12</td><td>25</td><td>2</td>" in text
    assert "<td>lr</td><td>0.1</td><td>0.2</td>" in text
    assert "<td>output</td>" not in text
    figure = re.search(r"base64,([A-Za-z0-9+/=]+)", text)
    assert figure is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(figure[1]))).convert("RGB")).reshape(-1, 3)
    assert (pixels == (0, 0x72, 0xB2)).all(1).any()  # a line for each run
    assert (pixels == (0xD5, 0x5E, 0)).all(1).any()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["page.html"]
    assert main(["compare", *map(str, runs), "--output", str(output), "--metric", "loss", "--force"]) == 0
    assert "<td>0.0333333</td><td>2</td>" in output.read_text()  # the least loss is the best


def test_what_cannot_be_compared_is_one_line(make_run, tmp_path: Path, capsys) -> None:
    runs = [str(make_run("a")), str(make_run("b", metric="knn"))]
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([runs[0]], "a comparison has 2 to 12 runs, got 1"),
        ([runs[0], runs[0]], "is given twice"),
        ([runs[0], str(tmp_path / "empty")], "is no run folder"),
        ([*runs, "--metric", "top1"], "no metric 'top1' in common; there are loss"),
        ([*runs, "--output", str(tmp_path / "page.pdf")], "must end in .html"),
    ):
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))
