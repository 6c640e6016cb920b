"""``bench`` through ``main([...])``, on the tiny models."""

import csv
import functools
from pathlib import Path

import pytest

from visionmlp.cli import main


@pytest.fixture
def small_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionmlp.bench import bench, roofline

    monkeypatch.setattr(bench, "bench", functools.partial(bench.bench, gemm_sides=(64,)))
    profile = functools.partial(roofline.profile_models, gemm_sides=(64,), copy_bytes=4096)
    monkeypatch.setattr(roofline, "profile_models", profile)


@pytest.mark.usefixtures("small_gemm")
def test_bench(checkpoint: Path, tmp_path, capsys) -> None:
    output = tmp_path / "b.csv"
    words = [
        "bench",
        "repmlpnet_test",
        str(checkpoint),
        "--batch-size",
        "1",
        "2",
        "--seconds",
        "0.02",
        "--threads",
        "1",
    ]
    assert main([*words, "--csv", str(output)]) == 0
    assert "GFLOP/s" in capsys.readouterr().out
    rows = list(csv.DictReader(output.open()))
    assert len(rows) == 8
    assert {row["threads"] for row in rows} == {"1"}
    content = output.read_text()
    assert main([*words, "--csv", str(output)]) == 2
    assert output.read_text() == content
    assert main([*words, "--csv", str(output), "--force", "--form", "deploy", "--dtype", "bfloat16"]) == 0
    rows = list(csv.DictReader(output.open()))
    assert [row["form"] for row in rows] == ["deploy"] * 4
    assert {row["dtype"] for row in rows} == {"bfloat16"}


@pytest.mark.usefixtures("small_gemm")
def test_bench_names_what_failed_and_still_writes_the_rest(tmp_path, capsys) -> None:
    words = ["bench", "resmlp_test", "--form", "deploy", "--batch-size", "1", "--seconds", "0.02"]
    files = ["--csv", str(tmp_path / "b.csv"), "--plot", str(tmp_path / "b.png")]
    assert main([*words, *files, "--input-size", "32", "33"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: resmlp_test at 33x33: img_size 33x33 is not a multiple of 8")
    assert captured.err.count("\n") == 1
    assert "GFLOP/s" in captured.out
    assert len(list(csv.DictReader((tmp_path / "b.csv").open()))) == 1
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--input-size", "33", "--csv", str(tmp_path / "none.csv")]) == 2
    assert "nothing could be measured" in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.usefixtures("small_gemm")
def test_bench_options_reach_the_measurement(tmp_path) -> None:
    output = tmp_path / "b.csv"
    words = ["bench", "resmlp_test", "--batch-size", "2", "--seconds", "0.02", "--csv", str(output)]
    assert main([*words, "--training", "--dtype", "float32", "bfloat16"]) == 0
    rows = list(csv.DictReader(output.open()))
    assert [(row["dtype"], row["form"], row["task"]) for row in rows] == [
        (dtype, form, task)
        for form, tasks in (("training", ("inference", "training step")), ("deploy", ("inference",)))
        for dtype in ("float32", "bfloat16")
        for task in tasks
    ]


@pytest.mark.usefixtures("small_gemm")
def test_bench_profile(tmp_path, capsys) -> None:
    output = tmp_path / "p.csv"
    words = ["bench", "asmlp_test", "--form", "deploy", "--batch-size", "1", "--seconds", "0.02", "--profile"]
    assert main([*words, "--csv", str(output)]) == 0
    text = capsys.readouterr().out
    assert "where the time goes" in text
    assert "stages.0.blocks.*" in text
    assert any("blocks.0" in row["layer"] for row in csv.DictReader(output.open()))
    assert main([*words, "--runtime", "compile"]) == 2
    assert "--profile shows eager inference" in capsys.readouterr().err
