"""Profiles attribute every multiply-accumulate, change no path, and compute their bounds as documented."""

import csv

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import visionmlp
from visionmlp.bench.profile_tables import profile_tables, write_profiles
from visionmlp.bench.roofline import LayerTime, Profile, layer_times, profile_models
from visionmlp.bench.watch import Operation, operations
from visionmlp.deploy.certificate import randomise
from visionmlp.errors import InvalidConfig, InvalidImageSize
from visionmlp.layers.fusible import reparameterize
from visionmlp.measure.catalog import count_macs
from visionmlp.measure.gemm import GemmRate, fused_bound
from visionmlp.measure.timing import Machine
from visionmlp.ops import eager


@pytest.mark.parametrize("name", visionmlp.list_models(test=True))
def test_operations_hold_every_multiply_accumulate_of_both_forms(name: str) -> None:
    model = visionmlp.create_model(name).eval()
    size = (model.config.in_chans, *model.config.img_size)
    for form in (model, reparameterize(model)):
        run = operations(form, torch.randn(3, *size))
        assert sum(operation.macs for operation in run.operations) == 3 * count_macs(form, size)
        assert all(operation.seconds > 0 for operation in run.operations)
        layers = {name for name, _ in form.named_modules()}
        assert {operation.layer for operation in run.operations} <= layers


@pytest.mark.parametrize("name", visionmlp.list_models(test=True))
def test_watching_changes_no_output_and_no_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reparameterize(visionmlp.create_model(name).eval())
    randomise(model)
    answers: list[bool] = []
    real = eager.is_eager
    monkeypatch.setattr(eager, "is_eager", lambda x: answers.append(real(x)) or answers[-1])
    images = torch.randn(2, 3, 32, 32)
    outputs = []
    model.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.inference_mode():
        model(images)
    plain = list(answers)
    answers.clear()
    operations(model, images)
    assert answers == plain
    assert torch.equal(*outputs)


class Everything(nn.Module):
    """One call of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        x = self.norm(self.fc(x))
        y = torch.cat([x, x], 1)
        y[:, 0] = 1.0
        y.mul_(2.0)
        return y.t()[1:].expand(2, 7, -1) + 1


def test_operations_have_a_kind_and_the_bytes_that_they_must_move() -> None:
    run = operations(Everything().eval(), torch.randn(10, 8))
    rows = [(op.layer, op.name, op.kind, op.macs, op.bytes) for op in run.operations]
    x, w = 4 * 10 * 4, 4 * (8 * 4 + 4)
    assert rows == [
        ("fc", "linear", "product", 10 * 8 * 4, 4 * 10 * 8 + w + x),
        ("norm", "layer_norm", "norm", 0, 2 * x + 2 * 4 * 4),
        ("", "cat", "movement", 0, x + 2 * x),
        ("", "__setitem__", "movement", 0, 4 * 10),
        ("", "mul_", "elementwise", 0, 4 * x),
        ("", "t", "view", 0, 0),
        ("", "__getitem__", "view", 0, 0),
        ("", "expand", "view", 0, 0),
        # reads the map once although it is expanded, writes it twice
        ("", "add", "elementwise", 0, 4 * 70 + 4 * 140),
    ]


def test_attention_and_convolutions_are_products() -> None:
    class Model(nn.Module):
        def forward(self, x):
            y = F.conv2d(x, torch.ones(6, 3, 3, 3), padding=1).flatten(2)
            return F.scaled_dot_product_attention(y, y, y)

    run = operations(Model(), torch.randn(1, 3, 4, 4))
    assert [op.macs for op in run.operations if op.kind == "product"] == [16 * 6 * 27, 2 * 6 * 6 * 16]


def test_hooks_are_removed() -> None:
    model = Everything().eval()
    operations(model, torch.randn(2, 8))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_bounds_are_the_larger_of_compute_and_bandwidth() -> None:
    def run(*seconds: float) -> list[Operation]:
        costs = (("a", 100, 10, 5), ("a", 100, 4000, 3000), ("b", 0, 500, 0))
        return [
            Operation(
                layer=layer, name="op", kind="product", macs=macs, bytes=moved, weight_bytes=weights, seconds=took
            )
            for (layer, macs, moved, weights), took in zip(costs, seconds, strict=True)
        ]

    first, second = layer_times([run(1, 2, 9), run(3, 4, 7), run(2, 9, 8)], gemm_flops=10.0, bandwidth=100.0)
    assert (first.layer, first.calls, first.macs, first.bytes) == ("a", 2, 200, 4010)
    assert first.seconds == 2 + 4
    assert first.bound == 20.0 + 40.0
    assert first.fused_bound == 20.0 + 30.0
    assert (second.seconds, second.bound, second.fused_bound) == (8, 5.0, 0.0)


def test_perfect_fusion_leaves_products_and_what_is_read_once() -> None:
    assert fused_bound(100, 50, gemm_flops=10.0, bandwidth=100.0) == 20.0
    assert fused_bound(100, 5000, gemm_flops=10.0, bandwidth=100.0) == 50.0
    (profile,) = profile_models(["hiremlp_test"], batch_sizes=(2,), forms=("deploy",), seconds=0.1, copy_bytes=2**22)
    deployed = reparameterize(visionmlp.create_model("hiremlp_test").eval())
    macs = 2 * count_macs(deployed, (3, 32, 32))
    weights = sum(tensor.nbytes for tensor in deployed.parameters())
    least = max(2 * macs / profile.gemm.best, weights / profile.bandwidth)
    most = 2 * macs / profile.gemm.best + weights / profile.bandwidth
    assert least * (1 - 1e-9) <= profile.fused_bound < min(most, profile.bound)
    layer = next(row for row in profile.layers if row.layer.endswith("blocks.0.spatial.mixer.mix_h.fc2"))
    own = sum(tensor.nbytes for tensor in deployed.get_submodule(layer.layer).parameters())
    assert layer.fused_bound == max(2 * layer.macs / profile.gemm.best, own / profile.bandwidth)


def test_blocks_of_a_stage_are_one_group() -> None:
    def group(layer: str) -> str:
        return LayerTime(
            layer=layer, operation="", kind="view", calls=1, seconds=0.0, macs=0, bytes=0, bound=0.0, fused_bound=0.0
        ).group

    assert group("stages.1.blocks.12.mlp.fc1") == group("stages.1.blocks.3.mlp.fc1") == "stages.1.blocks.*.mlp.fc1"
    assert group("stages.2.blocks.3.mlp.fc1") != group("stages.1.blocks.3.mlp.fc1")
    assert group("") == "model"


def test_profile_of_models(tmp_path) -> None:
    profiles = profile_models(
        ["resmlp_test"], batch_sizes=(1, 2), seconds=0.02, threads=1, gemm_sides=(64,), copy_bytes=4096
    )
    assert [(p.form, p.batch_size) for p in profiles] == [
        ("training", 1),
        ("deploy", 1),
        ("training", 2),
        ("deploy", 2),
    ]
    profile = profiles[-1]
    assert profile.seconds == pytest.approx(profile.outside + sum(layer.seconds for layer in profile.layers))
    assert profile.bound == pytest.approx(
        sum(
            max(2 * layer.macs / profile.gemm.best, layer.bytes / profile.bandwidth)
            for layer in profile.layers
            if layer.calls == 1
        )
        + sum(layer.bound for layer in profile.layers if layer.calls > 1)
    )
    write_profiles(profiles, tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == sum(len(p.layers) for p in profiles)
    assert {row["threads"] for row in rows} == {"1"}
    assert {"layer", "operation", "kind", "macs", "bytes", "bound", "copy_gbytes", "cpu"} <= set(rows[0])
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    console.print(profile_tables(profile))
    text = console.export_text()
    assert "stages.0.blocks.*" in text
    assert "matrix products and convolutions" in text


def test_small_rows_are_summed_up_so_that_a_table_fits_a_screen() -> None:
    def layer(name: str, seconds: float) -> LayerTime:
        return LayerTime(
            layer=name,
            operation="add",
            kind="elementwise",
            calls=1,
            seconds=seconds,
            macs=0,
            bytes=10,
            bound=0.001,
            fused_bound=0.0,
        )

    profile = Profile(
        machine=Machine(cpu="c", device="cpu", threads=1, torch="2", date="now"),
        model="m",
        form="deploy",
        dtype="float32",
        height=8,
        width=8,
        batch_size=1,
        gemm=GemmRate(best=1e9, library="torch.matmul", matmul=1e9),
        bandwidth=1e9,
        plain_seconds=1.0,
        outside=0.0,
        layers=[layer("large", 0.99), *(layer(f"small{i}", 1e-4) for i in range(100))],
    )
    layers = next(iter(profile_tables(profile).renderables))
    assert layers.row_count == 2  # type: ignore[union-attr]


def test_a_profile_refuses_what_it_cannot_show() -> None:
    with pytest.raises(InvalidImageSize):
        profile_models(["resmlp_test"], batch_sizes=(1,), input_sizes=(33,))
    with pytest.raises(InvalidConfig):
        profile_models(["resmlp_test"], batch_sizes=(0,))
