"""``predict`` through ``main([...])``: text, JSON lines, a table, and progress."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from visionmlp.cli import main


@pytest.fixture
def folder(tmp_path: Path, image: Path) -> Path:
    """Two images, and one that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        shutil.copy(image, folder / name)
    (folder / "b.png").write_text("no image")
    return folder


def test_text_has_a_line_for_each_class_and_keeps_names_on_theirs(checkpoint: Path, image: Path, capsys) -> None:
    odd = image.with_name("two\nlines.png")
    shutil.copy(image, odd)
    assert main(["predict", str(checkpoint), str(image), str(odd), "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(str(image))
    assert lines[2].startswith(str(odd).replace("\n", "\\n"))
    assert all(re.search(r" \d+\.\d%  digit \d$", line) for line in lines)
    assert len({line.index("%") for line in lines[2:]}) == 1  # aligned


def test_json_is_one_object_a_line(checkpoint: Path, folder: Path, capsys) -> None:
    words = ["predict", str(checkpoint), str(folder), "--top-k", "2", "--batch-size", "1", "--json"]
    assert main(words) == 2
    captured = capsys.readouterr()
    first, bad, last = [json.loads(line) for line in captured.out.splitlines()]
    assert [Path(answer["image"]).name for answer in (first, bad, last)] == ["a.png", "b.png", "c.png"]
    assert [answer["error"] for answer in (first, last)] == [None, None]
    assert len(first["classes"]) == 2
    assert first["classes"][0]["name"].startswith("digit ")
    assert bad["classes"] == []
    assert captured.err == f"error: {bad['image']}: {bad['error']}\n"


def test_answers_come_before_the_last_image_is_read(
    checkpoint: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe sees the first answer while the second image is still to be found."""
    seen: list[str] = []

    class Pipe(io.StringIO):
        def flush(self) -> None:
            seen[:] = self.getvalue().splitlines()

    def images(inputs: Sequence[str]) -> Iterator[str]:
        for count, name in enumerate(inputs):
            assert len(seen) == count
            yield name

    monkeypatch.setattr("visionmlp.tasks.classify.predict.find_images", images)
    monkeypatch.setattr("sys.stdout", Pipe())
    words = ["--json", "--batch-size", "1"]
    assert main(["predict", str(checkpoint), *[str(image)] * 3, *words]) == 0
    assert len(seen) == 3


def test_output_is_a_table_that_appears_whole_or_not_at_all(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "classes.csv"
    words = ["predict", str(checkpoint), str(folder), "--top-k", "3", "--output", str(output)]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == f"wrote {output}\n"
    assert captured.err.count("\n") == 1
    rows = list(csv.DictReader(output.open()))
    assert list(rows[0]) == ["image", "rank", "index", "class", "probability"]
    assert [(Path(row["image"]).name, row["rank"]) for row in rows] == [
        (n, r) for n in ("a.png", "c.png") for r in "123"
    ]
    assert main([*words[:-4], "--top-k", "3", "--json"]) == 2
    (said, *_) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said["classes"] == [
        {"index": int(row["index"]), "name": row["class"], "probability": float(row["probability"])} for row in rows[:3]
    ]
    before = output.read_text()
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force", "--device", "nonesuch"]) == 2
    assert output.read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"classes.csv", "image.png", "images", "model.safetensors"}
    assert main([*words[:-1], "classes.txt"]) == 2
    assert "must end in .csv" in capsys.readouterr().err


def test_json_and_a_table_in_one_go(checkpoint: Path, image: Path, tmp_path: Path, capsys) -> None:
    words = ["predict", str(checkpoint), str(image), "--json", "--output", str(tmp_path / "c.csv")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(image)
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 6


def test_progress_is_shown_on_a_terminal_only(
    checkpoint: Path, image: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    words = ["predict", str(checkpoint), str(image), str(image), "--json"]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert main(words) == 0
    assert "2 images" in terminal.getvalue()
    assert len(capsys.readouterr().out.splitlines()) == 2  # only answers


def test_predict_from_standard_input(checkpoint: Path, image: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(image.read_bytes())))
    assert main(["predict", str(checkpoint), "-", "--json"]) == 0
    piped = json.loads(capsys.readouterr().out)
    assert main(["predict", str(checkpoint), str(image), "--json"]) == 0
    assert piped["classes"] == json.loads(capsys.readouterr().out)["classes"]


def test_fresh_weights_are_pointed_out(image: Path, capsys) -> None:
    assert main(["predict", "resmlp_test", str(image)]) == 0
    assert capsys.readouterr().err.startswith("note: resmlp_test has fresh weights")


def test_a_name_that_is_no_text(checkpoint: Path, image: Path) -> None:
    odd = os.fsencode(image.parent) + b"/\xff.png"
    shutil.copy(image, odd)
    words = [sys.executable, "-m", "visionmlp", "predict", str(checkpoint), odd]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0, done.stderr
    assert rb"\udcff.png" in done.stdout
