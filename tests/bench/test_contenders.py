import functools

import pytest

from visionmlp.bench import contenders
from visionmlp.bench.bench import bench
from visionmlp.layers.fusible import reparameterize
from visionmlp.measure.catalog import count_macs
from visionmlp.models.checkpoint import load_model, save_checkpoint

quick = functools.partial(bench, batch_sizes=(2,), seconds=0.02, gemm_sides=(64,))


def test_a_model_of_any_size_stays_and_others_are_built_for_the_size() -> None:
    rows = quick(["resmlp_test", "asmlp_test"], forms=("deploy",), input_sizes=(32, 64)).measurements
    assert [(row.model, row.height, row.width) for row in rows] == [
        ("resmlp_test", 32, 32),
        ("asmlp_test", 32, 32),
        ("resmlp_test", 64, 64),
        ("asmlp_test", 64, 64),
    ]
    assert rows[2].params > rows[0].params  # token matrices
    assert rows[3].params == rows[1].params
    assert rows[3].macs > 3 * rows[1].macs


def test_a_size_that_a_model_cannot_take_is_named_and_the_others_are_measured(tmp_path) -> None:
    model, _ = load_model("mlpmixer_test")
    save_checkpoint(tmp_path / "d.safetensors", reparameterize(model))  # type: ignore[arg-type]
    names = ["resmlp_test", str(tmp_path / "d.safetensors")]
    result = quick(names, forms=("deploy",), input_sizes=(32, 33, 64))
    assert [(row.model.partition(" ")[0], row.height) for row in result.measurements] == [
        ("resmlp_test", 32),
        ("mlpmixer_test", 32),
        ("resmlp_test", 64),
    ]
    assert list(result.failures) == ["resmlp_test at 33x33", f"{names[1]} at 33x33", f"{names[1]} at 64x64"]
    assert "not a multiple of 8" in result.failures["resmlp_test at 33x33"]
    assert "deploy form, which fixes its img_size" in result.failures[f"{names[1]} at 64x64"]


def test_compare_timm_measures_the_same_architecture() -> None:
    ours, theirs = quick(["resmlp_s12"], batch_sizes=(1,), forms=("training",), compare=("timm",)).measurements
    assert (theirs.model, theirs.form) == ("resmlp_12_224", "timm")
    assert (theirs.params, theirs.macs) == (ours.params, ours.macs)
    assert ours.paper_top1 == theirs.paper_top1 == 76.6


def test_a_model_without_a_twin_is_measured_alone() -> None:
    assert len(quick(["repmlpnet_test"], forms=("deploy",), compare=("timm",)).measurements) == 1


@pytest.mark.parametrize("peer", contenders.PEERS, ids=lambda peer: peer.name)
def test_peers_cost_about_as_much_as_small_vision_mlps(peer: contenders.Peer) -> None:
    built = contenders.peer_contender(peer)
    assert built.input_size == (3, peer.side, peer.side)
    assert 1.5e9 < count_macs(built.module, built.input_size) < 5e9
    assert 75 < peer.top1 < 83
    assert "arXiv" in peer.source
    assert built.paper_top1 == peer.top1


def test_accuracies_hold_for_the_papers_size_only() -> None:
    peer = contenders.PEERS[0]
    assert contenders.peer_contender(peer, 64).paper_top1 is None
    swin = next(peer for peer in contenders.PEERS if "swin" in peer.name)
    assert contenders.peer_contender(swin, 448).input_size == (3, 448, 448)
    (ours,) = contenders.model_contenders("resmlp_s12", forms=("training",), side=160)
    assert ours.paper_top1 is None


def test_compare_peers_joins_them_in_every_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = contenders.Peer(name="resnet10t", family="ResNet", side=64, top1=1.0, source="")
    monkeypatch.setattr(contenders, "PEERS", (tiny,))
    result = quick(["resmlp_test"], forms=("deploy",), compare=("peers",), runtimes=("eager",), training=True)
    rows = [(row.model, row.family, row.form, row.task, row.height) for row in result.measurements]
    assert rows == [
        ("resmlp_test", "ResMLP", "deploy", "inference", 32),
        ("resnet10t", "ResNet", "peer", "inference", 64),
        ("resnet10t", "ResNet", "peer", "training step", 64),
    ]
