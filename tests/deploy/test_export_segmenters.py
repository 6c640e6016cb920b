"""Segmentation networks as graphs: equal to PyTorch at every size that they take, and what cannot be is refused."""

import dataclasses

import pytest
import torch
from timm.models._features import FeatureInfo
from torch import nn

import visionmlp
from visionmlp.cli import main
from visionmlp.deploy import export as module
from visionmlp.deploy.certificate import relative_error
from visionmlp.deploy.export import LIMIT, export_model
from visionmlp.deploy.networks import exportable
from visionmlp.deploy.runtimes import open_session
from visionmlp.errors import InvalidConfig, InvalidImageSize
from visionmlp.heads.upernet import UperNetHead
from visionmlp.layers.fusible import is_training_form
from visionmlp.layers.part_means import PartMeans, part_means
from visionmlp.models.dense import DenseFeatures, crop
from visionmlp.models.dense_network import DenseInfo, DenseNetwork
from visionmlp.models.segmenter import Segmenter

pytestmark = pytest.mark.xdist_group("export_segmenters")


def segmenter(name: str, *, head: str = "semantic_fpn", **options):
    """A tiny network, and what its checkpoint would say: fresh, so that it is exported once, with random weights."""
    network = visionmlp.create_segmenter(
        visionmlp.create_model(name, num_classes=0),
        head=head,
        num_classes=3,
        channels=4,
        neck_channels=4 if head == "semantic_fpn" else None,
        **options,
    ).eval()
    info = DenseInfo(
        task="segment",
        model=name,
        config=dataclasses.asdict(network.backbone.config),
        options=network.options,
        form="training",
        class_names=["sky", "road", "car"],
        preprocessing={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]},
        source="fresh weights",
    )
    return network, info


def images_of(batch: int, size) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def error_of(network, session, images: torch.Tensor) -> float:
    with torch.no_grad():
        expected, given = network(images), torch.from_numpy(session(images.numpy()))
    assert given.shape == (len(images), 3, *images.shape[2:])
    assert expected.std() > 1e-3
    return relative_error(expected, given)


class Strided(DenseFeatures):
    """Two levels of an image by one convolution each: a family's own take PyTorch's exporter many seconds."""

    STRIDES = (4, 32)

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, stride, stride=stride) for stride in self.STRIDES)
        self.feature_info = FeatureInfo(
            [{"module": "", "num_chs": 4, "reduction": stride} for stride in self.STRIDES], (0, 1)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return crop([conv(x) for conv in self.convs], self.STRIDES, x.shape[2:])


def test_one_graph_for_many_sizes_in_both_formats(tmp_path, monkeypatch) -> None:
    """UperNet on a family of any size; the graph is made once for both formats."""
    network, info = segmenter("asmlp_test", head="upernet")
    head = UperNetHead([4, 4], 3, channels=4)
    network = Segmenter(Strided(network.backbone), head, network.options).eval()
    real, made = module.export_program, []

    def export_once(*arguments, **options):
        made[:] = made or [real(*arguments, **options)]
        return made[0]

    monkeypatch.setattr(module, "export_program", export_once)
    for suffix in (".onnx", ".xml"):
        report = export_model(network, info, tmp_path / f"m{suffix}", dynamic_size=True)
        assert report.sides is not None
        session = open_session(tmp_path / f"m{suffix}", threads=1)
        step, least = report.sides.step, report.sides.least
        for batch, size in ((1, (least + 3 * step, least + step)), (2, (least, least))):
            assert error_of(network, session, images_of(batch, size)) < LIMIT
        with pytest.raises(InvalidImageSize, match=f"multiples of {step} from {least}"):
            session(images_of(1, (least + 1, least)).numpy())


@pytest.mark.parametrize(
    ("name", "suffix", "size", "options"),
    [
        ("repmlpnet_test", ".onnx", (48, 80), {}),  # windows of 32, filled up with zeros
        ("resmlp_test", ".pt2", None, {"tile_overlap": 8}),
    ],
)
def test_graphs_of_one_size_and_what_they_say(name: str, suffix: str, size, options, tmp_path) -> None:
    network, info = segmenter(name, **options)
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "window": [40, 70]}  # a run's crops
    info = dataclasses.replace(info, preprocessing=preprocessing)
    export_model(network, info, tmp_path / f"m{suffix}", input_size=size)
    session = open_session(tmp_path / f"m{suffix}", threads=1)
    size = size or (40, 70)
    for batch in (1, 3):
        assert error_of(network, session, images_of(batch, size)) < LIMIT
    metadata = session.metadata
    assert (metadata.task, metadata.model, metadata.form) == ("segment", name, "deploy")
    assert (metadata.class_names, metadata.input_size, metadata.sides) == (["sky", "road", "car"], (3, *size), None)
    assert metadata.preprocessing == preprocessing
    with pytest.raises(InvalidImageSize, match=f"{size[0]}x{size[1]}"):
        session(images_of(1, (96, 96)).numpy())


def test_a_classifier_of_windows_takes_the_size_that_is_asked_for(tmp_path) -> None:
    model, info = visionmlp.load_model("repmlpnet_test")
    export_model(model, info, tmp_path / "m.pt2", input_size=(32, 64), batch=1)
    session = open_session(tmp_path / "m.pt2", threads=1)
    assert session.metadata.input_size == (3, 32, 64)
    images = images_of(1, (32, 64))
    with torch.no_grad():
        assert relative_error(model(images), torch.from_numpy(session(images.numpy()))) < LIMIT


def test_the_deploy_form_as_a_checkpoint(tmp_path) -> None:
    network, info = segmenter("repmlpnet_test", head="upernet")
    report = export_model(network, info, tmp_path / "d.safetensors")
    assert not is_training_form(visionmlp.load_dense(tmp_path / "d.safetensors")[0])
    assert max(check.error for check in report.checks) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "asked", "why"),
    [
        ("repmlpnet_test", {}, {"dynamic_size": True}, "windows.*leave out dynamic size and give the input size"),
        ("resmlp_test", {"tile_overlap": 0}, {"dynamic_size": True}, "windows"),
        ("resmlp_test", {}, {"dynamic_size": True}, "takes 32x32 only; leave out dynamic size"),
        ("resmlp_test", {}, {"input_size": (64, 64)}, "exactly 32x32, got 64x64"),
        ("resmlp_test", {}, {"input_size": (0, 64)}, "must be positive, got 0x64"),
        ("cyclemlp_test", {}, {"dynamic_size": True, "input_size": (64, 64)}, "leave out either"),
        ("cyclemlp_test", {}, {"dtype": "int8", "calibration": []}, "int8 is for classifiers"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name: str, options, asked, why: str, tmp_path) -> None:
    network, info = segmenter(name, **options)
    with pytest.raises((InvalidConfig, InvalidImageSize), match=why) as error:
        export_model(network, info, tmp_path / "m.onnx", **asked)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_detectors_are_refused() -> None:
    class Detector(DenseNetwork):
        task = "detect"

    with pytest.raises(InvalidConfig, match=r"runs/cells holds a network for detect.*differ in number"):
        exportable(Detector(segmenter("cyclemlp_test")[0].levels, {}), "runs/cells")


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_means_over_parts_are_adaptive_pooling(parts: int) -> None:
    """Of every size, smaller than the parts too; PyTorch's operator is the oracle."""
    for size in ((1, 2), (4, 7), (9, 12), (13, 5)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        rows, columns = (part_means(side, parts, x) for side in size)
        torch.testing.assert_close(rows @ x @ columns.t(), PartMeans(parts)(x), rtol=0, atol=1e-14)


def test_the_command(tmp_path, capsys) -> None:
    network, info = segmenter("repmlpnet_test")
    checkpoint, output, graph = (tmp_path / name for name in ("model.safetensors", "d.safetensors", "m.pt2"))
    visionmlp.save_dense(checkpoint, network, class_names=info.class_names, preprocessing=info.preprocessing)
    assert main(["export", str(checkpoint), "--output", str(output)]) == 0
    assert "the checkpoint read back at batch 1" in capsys.readouterr().out
    _, written = visionmlp.load_dense(output)
    assert (written.form, written.class_names) == ("deploy", info.class_names)
    export_model(network, info, graph, batch=1)
    other = ["export", str(checkpoint), "--output", str(tmp_path / "other.pt2")]
    for line, message in (
        ([*other, "--input-size", "1", "2", "3"], "takes a side, or height and width"),
        ([*other, "--checkpoint", str(checkpoint)], "holds weights already"),
        ([*other, "--dtype", "int8", "--calibration", str(tmp_path)], "calibration is for classifiers"),
        (["predict", str(graph), str(tmp_path), "--task", "classify"], "holds a network for segment"),
    ):
        assert main(line) == 2
        assert message in capsys.readouterr().err
