"""Two and four processes train what one does with the same global batch, whole or in shards; checkpoints move between.

All in float64, from random weights, to 1e-10: weights, losses, metrics, statistics of routers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import visionmlp
from tests.randomise import randomise
from visionmlp.engine.checkpoints import saved_weights
from visionmlp.engine.run_folder import Table
from visionmlp.errors import InvalidConfig
from visionmlp.models.checkpoint import save_checkpoint
from visionmlp.tasks.translate.averaging import averaged
from visionmlp.tasks.translate.tokenizer import train_tokenizer

from .processes import group, run
from .segment.trees import camvid_tree

# one worker starts all processes, once
pytestmark = pytest.mark.xdist_group("processes")

CAN_SHARD = hasattr(torch.cpu.Stream, "record_event")
"""Without it (PyTorch 2.6) FSDP2 has no CPUs."""
SELF_SUPERVISED: dict[str, Any] = {"warmup_epochs": 0.5, "momentum": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "norms": {"model": "repmlpnet_test", "ema_decay": 0.9, "optimizer": "adamw"},
    "plain": {"model": "resmlp_test", "ema_decay": 0.9, "optimizer": "lamb", "save_every": 1, "clip_grad": 0.1},
    "experts": {
        "model": "sparsemlp_moe_test",
        # noise would be drawn by each process for itself; few places, so that some choices overflow
        "model_args": {"router_noise": False, "capacity_factor": 0.8},
        "optimizer": "adamw",
    },
    "dino": {
        "task": "dino",
        "model": "cyclemlp_test",  # takes local crops as they are, so its blocks are called twice
        "out_dim": 12,
        "hidden_dim": 8,
        "bottleneck_dim": 6,
        "local_crops": 2,
        "local_size": 16,
        **SELF_SUPERVISED,
        "clip_grad": 0.05,
        "lr": 0.5,
        "teacher_momentum": 0.5,
    },
    # by SGD as DINO: a shift in front of a BatchNorm has no gradient but rounding, of which Adam would make whole steps
    "moco": {"task": "moco", "model": "resmlp_test", "projector_dim": 6, "projector_hidden": 8, **SELF_SUPERVISED},
    "detect": {
        "task": "detect",
        "model": "cyclemlp_test",
        # other normalisers are of the images of one process
        "settings": {"dense_normaliser": "image", "score_thresh": 0.0},
        "fpn_channels": 8,
        "min_size": [64],
        "pictures": 0,
        "empty_images": "keep",
        "optimizer": "adamw",
    },
    # images have unequal numbers of valid pixels, and norms see all processes
    "segment": {
        "task": "segment",
        "model": "resmlp_test",
        "head_channels": 6,
        "auxiliary_channels": 4,
        "head_dropout": 0.0,
        "loss_normaliser": "valid_pixels",
        "dice_weight": 0.5,
    },
    # sentences of many lengths; a process may have none of a step's
    "translate": {
        "task": "translate",
        "model": "resmlp_seq2seq_test",
        "source": "xx",
        "target": "yy",
        "batch_size": 24,
        "optimizer": "adamw",
        "schedule": "inverse_sqrt",
        "warmup_steps": 2,
        "save_every": 1,
        "shown": 1,
    },
}
AT_FOUR = ["experts", "dino", "moco"]
COMMON: dict[str, Any] = {
    "task": "classify",
    "optimizer": "sgd",
    "lr": 1e-2,
    "warmup_epochs": 0.0,
    "max_steps": 3,
    "batch_size": 8,
    "sync_batch_norm": True,
    "drop_path_rate": 0.0,
    "precision": "64-true",
    "accelerator": "cpu",
    "num_workers": 0,
    "log_every": 1,
    "threads": 1,
    "knn_k": 3,
}
SHARDED = ["experts", "dino", "moco", "segment", "detect", "translate"]
"""The plain one is sharded when it moves between numbers of processes."""


def fields(folder: Path, case: str, name: str, **options: Any) -> dict[str, Any]:
    values = {**COMMON, **CASES[case], "data": str(folder / "images"), "output": str(folder / name), **options}
    values["checkpoint"] = str(folder / f"{values['model']}.safetensors")
    if values["task"] not in ("dino", "moco"):
        del values["knn_k"]
    if values["task"] == "segment":
        values["data"] = str(folder / "masked")
    if values["task"] == "translate":
        for of_images in ("drop_path_rate", "num_workers", "sync_batch_norm", "warmup_epochs"):
            del values[of_images]
        values |= {"data": str(folder / "text"), "model": values.pop("checkpoint")}
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and everything that one, two and four processes made of them."""
    folder = tmp_path_factory.mktemp("processes")
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 5)):
        for level, name in enumerate(("dark", "light")):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(100 * level, 100 * level + 150, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{number}.png")
    annotate(folder / "images")
    camvid_tree(folder / "masked", train=16, val=5)
    write_text(folder / "text")
    tokenizer = train_tokenizer(["a b c d", "e f"], 270)
    translator = randomise(visionmlp.create_translator("resmlp_seq2seq_test", vocab_size=tokenizer.size, dropout=0.0))
    visionmlp.save_translator(
        folder / "resmlp_seq2seq_test.safetensors", translator, tokenizer=tokenizer.model, languages=("xx", "yy")
    )
    for model in {case["model"] for case in CASES.values()} - {"resmlp_seq2seq_test"}:
        save_checkpoint(folder / f"{model}.safetensors", randomise(visionmlp.create_model(model)))  # type: ignore[arg-type]
    for case in CASES:
        run(fields(folder, case, f"{case} one"))
    run(fields(folder, "plain", "begun by one"), stop_after=2)
    group(2, two(folder), folder)
    if CAN_SHARD:
        for name in ("four", "one", "damaged"):
            shutil.copytree(folder / "begun by two", folder / f"continued by {name}")
        group(4, four(folder), folder)
    return folder


def write_text(folder: Path) -> None:
    """Sentences of 1 to 7 letters, and the same backwards."""
    folder.mkdir()
    random = np.random.default_rng(2)
    for split, count in (("train", 20), ("val", 5)):
        words = [random.choice([*"abcdef"], random.integers(1, 8)).tolist() for _ in range(count)]
        (folder / f"{split}.xx").write_text("".join(" ".join(letters) + "\n" for letters in words))
        (folder / f"{split}.yy").write_text("".join(" ".join(letters[::-1]) + "\n" for letters in words))


def annotate(images: Path) -> None:
    """Boxes on the same images; every fourth has none, so that a process may have none."""
    random = np.random.default_rng(1)
    for split, count in (("train", 16), ("val", 5)):
        names = [f"{split}/{name}/{number}.png" for number in range(count) for name in ("dark", "light")]
        objects = [
            {
                "id": place,
                "image_id": place,
                "category_id": 1 + place % 2,
                "bbox": random.uniform((0, 0, 8, 8), (18, 18, 18, 18)).tolist(),
            }
            for place in range(len(names))
            if place % 4
        ]
        listed = [{"id": place, "file_name": name} for place, name in enumerate(names)]
        categories = [{"id": 1, "name": "dark"}, {"id": 2, "name": "light"}]
        content = {"images": listed, "annotations": objects, "categories": categories}
        (images / f"{split}.json").write_text(json.dumps(content))


def two(folder: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = [{"fields": fields(folder, case, f"{case} two")} for case in CASES]
    if not CAN_SHARD:
        refused = r"strategy fsdp does not work with optimizer lamb, PyTorch 2\.6.* and device cpu"
        return [*runs, {"fields": fields(folder, "plain", "refused", strategy="fsdp"), "refused": refused}]
    for case in SHARDED:
        runs.append({"fields": fields(folder, case, f"{case} two in shards", strategy="fsdp")})
    adamp = {**fields(folder, "plain", "refused", strategy="fsdp"), "optimizer": "adamp"}
    return [
        *runs,
        {"fields": adamp, "refused": "strategy fsdp does not work with optimizer adamp"},
        {"fields": fields(folder, "plain", "begun by two", strategy="fsdp"), "stop_after": 2},
        {"fields": fields(folder, "plain", "begun by one", strategy="fsdp"), "resume": True},
    ]


def four(folder: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = [{"fields": fields(folder, case, f"{case} four")} for case in AT_FOUR]
    return [*runs, {"fields": fields(folder, "plain", "continued by four", strategy="fsdp"), "resume": True}]


def assert_equal(one: Path, other: Path) -> None:
    """To 1e-10, what both runs have written."""
    weights = load_file(other / "model.safetensors")
    for name, value in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(
            weights[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )
    for name in ("train.csv", "metrics.csv", "router.csv"):
        rows, others = Table(one / name).rows(), Table(other / name).rows()
        assert len(rows) == len(others)
        for row, theirs in zip(rows, others, strict=True):
            assert row.keys() == theirs.keys()
            for column in row.keys() - {"images_per_second", "tokens_per_second"}:
                nobody = column.startswith("ap_")  # of sizes that no object has
                assert theirs[column] == pytest.approx(row[column], rel=1e-10, abs=1e-10, nan_ok=nobody), (
                    f"{name} {column}"
                )


@pytest.mark.parametrize("case", CASES)
def test_what_one_process_learns_is_more_than_its_start(folder: Path, case: str) -> None:
    start = load_file(folder / f"{CASES[case]['model']}.safetensors")
    prefix = "levels.net.model." if case in ("segment", "detect") else ""
    end = load_file(folder / f"{case} one/model.safetensors")
    end = {name.removeprefix(prefix): value for name, value in end.items() if name.startswith(prefix)}
    shared = [name for name in end if name in start and end[name].shape == start[name].shape]
    moved = [name for name in shared if not close(end[name], start[name], 1e-6)]
    assert len(moved) > len(end) / 2
    dtypes = (torch.float64, torch.int64, torch.uint8)  # the last of a tokenizer
    assert all(value.dtype in dtypes for value in end.values())


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("processes", ["two", "four"])
def test_several_processes_equal_one(folder: Path, case: str, processes: str) -> None:
    if processes == "four" and (case not in AT_FOUR or not CAN_SHARD):
        pytest.skip("moco has norms too, and the plain one is sharded over four")
    assert_equal(folder / f"{case} one", folder / f"{case} {processes}")
    if case == "experts":
        rows = Table(folder / "experts one/router.csv").rows()
        assert any(value > 0 for row in rows for name, value in row.items() if "overflow" in name)


@pytest.mark.skipif(not CAN_SHARD, reason="PyTorch 2.6 cannot shard on CPUs, which is refused")
class TestShards:
    @pytest.mark.parametrize("case", SHARDED)
    def test_two_processes_with_shards_equal_one(self, folder: Path, case: str) -> None:
        assert_equal(folder / f"{case} one", folder / f"{case} two in shards")
        files = {path.name for path in (folder / f"{case} two in shards/checkpoints/step-000003.shards").iterdir()}
        assert files == {".metadata", "__0_0.distcp", "__1_0.distcp"}

    def test_the_mean_of_checkpoints_in_shards(self, folder: Path) -> None:
        one, steps = (averaged(folder / "translate one")[place] for place in (0, 2))
        other, others = (averaged(folder / "translate two in shards")[place] for place in (0, 2))
        assert len(steps) == 2
        assert steps == others
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-10, atol=1e-10)
        last = saved_weights(folder / "translate two in shards/checkpoints", 3)
        assert not torch.equal(last["embedding.weight"], other.state_dict()["embedding.weight"])

    def test_a_run_moves_between_numbers_of_processes(self, folder: Path) -> None:
        assert_equal(folder / "plain one", folder / "continued by four")
        assert_equal(folder / "plain one", folder / "begun by one")  # and continued by two
        run(fields(folder, "plain", "continued by one"), resume=True)
        assert_equal(folder / "plain one", folder / "continued by one")

    def test_a_damaged_or_unfinished_checkpoint_falls_back_to_the_one_before(self, folder: Path) -> None:
        checkpoints = folder / "continued by damaged/checkpoints"
        shard = checkpoints / "step-000002.shards/__1_0.distcp"
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        # killed while it wrote
        shutil.copytree(checkpoints / "step-000001.shards", checkpoints / "step-000003.shards")
        with pytest.warns(UserWarning, match="checkpoint of step 2 is damaged .*; trying an earlier one"):
            run(fields(folder, "plain", "continued by damaged"), resume=True)
        assert_equal(folder / "plain one", folder / "continued by damaged")


def test_sharding_alone_is_refused(folder: Path) -> None:
    run(fields(folder, "plain", "alone", strategy="fsdp"), refused="splits a model over several devices")
    assert not (folder / "alone").exists()
    with pytest.raises(InvalidConfig, match="batch_size 8 must be a multiple of nodes x devices x accumulate = 3"):
        run({**fields(folder, "plain", "alone"), "nodes": 3})
    run({**fields(folder, "plain", "alone"), "nodes": 2}, refused="started by torchrun or SLURM's srun")
