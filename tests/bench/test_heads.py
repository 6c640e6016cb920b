"""Heads on backbones side by side: what is measured is what the library builds."""

import csv
import functools

import pytest
import torch

import visionmlp
from visionmlp.bench.bench import bench, write_csv
from visionmlp.bench.contenders import model_contenders
from visionmlp.cli import main
from visionmlp.errors import InvalidConfig
from visionmlp.measure.catalog import count_macs
from visionmlp.models.dense_network import dense_backbone

quick = functools.partial(bench, batch_sizes=(1,), seconds=0.01, gemm_sides=(64,), forms=("deploy",))


def test_levels_and_head_take_turns_and_windows_take_any_size(tmp_path) -> None:
    """A family of any size sees the image, one of a single size its windows."""
    result = quick(["asmlp_test", "resmlp_test"], heads=("levels", "semantic_fpn"), input_sizes=(64,))
    assert not result.failures
    rows = result.measurements
    assert [(row.model, row.head, row.height) for row in rows] == [
        ("asmlp_test", "levels", 64),
        ("asmlp_test", "semantic_fpn", 64),
        ("resmlp_test", "levels", 64),
        ("resmlp_test", "semantic_fpn", 64),
    ]
    write_csv(result, tmp_path / "heads.csv")
    with (tmp_path / "heads.csv").open() as file:
        assert [row["head"] for row in csv.DictReader(file)] == ["levels", "semantic_fpn"] * 2
    for name, overlap, alone, headed in (("asmlp_test", None, *rows[:2]), ("resmlp_test", 0, *rows[2:])):
        network = visionmlp.create_segmenter(
            dense_backbone(name), head="semantic_fpn", num_classes=150, tile_overlap=overlap
        )
        deployed = visionmlp.reparameterize(network.eval())
        assert headed.macs == count_macs(deployed, (3, 64, 64)) > 10 * alone.macs
        assert headed.peak_mib is not None
        assert alone.peak_mib is not None
        assert headed.peak_mib > alone.peak_mib


def test_a_segmentation_checkpoint_brings_its_head(tmp_path) -> None:
    network = visionmlp.create_segmenter("cyclemlp_test", head="semantic_fpn", num_classes=2, channels=4).eval()
    path = str(tmp_path / "model.safetensors")
    visionmlp.save_dense(path, network)
    training, deploy = model_contenders(path, forms=("training", "deploy"), side=64)
    assert (training.head, training.form, deploy.form, training.classes) == ("semantic_fpn", "training", "deploy", 2)
    assert training.input_size == (3, 64, 64)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(deploy.module(x), network(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(InvalidConfig, match="has a head, semantic_fpn; leave upernet out"):
        model_contenders(path, forms=("deploy",), head="upernet")


def test_the_command_and_what_it_refuses(capsys) -> None:
    words = ["bench", "asmlp_test", "--head", "semantic_fpn", "--batch-size", "1", "--seconds", "0.01"]
    assert main([*words, "--training"]) == 2
    assert "training steps are measured of classifiers" in capsys.readouterr().err
    assert main(["bench", "asmlp_test", "--head", "upper"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
