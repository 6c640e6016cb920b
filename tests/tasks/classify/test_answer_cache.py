"""The folder that keeps a teacher's answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from visionmlp.data import Preprocessing
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.tasks.classify.distillation import AnswerCache, Distillation
from visionmlp.tasks.classify.teacher import Teacher


def teacher() -> Teacher:
    own = Preprocessing(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Teacher(nn.Flatten(), name="t", model="m", preprocessing=own, student=own)


def names(*numbers: int) -> list[bytes]:
    return [np.array([0, number, number]).tobytes() for number in numbers]


def test_answers_come_back_bit_equal_by_epoch(tmp_path: Path) -> None:
    answers = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    cache = AnswerCache(tmp_path / "new" / "cache", {"seed": 1}, shard_rows=4)
    for epoch in (0, 1):
        assert cache.find(epoch, names(0, 1, 2)) is None
        cache.add(names(0, 1, 2), answers[:3] + epoch)
        cache.add(names(3, 4, 5), answers[3:] + epoch)
    cache.flush()
    again = AnswerCache(tmp_path / "new" / "cache", {"seed": 1})
    for epoch in (1, 0):
        found = again.find(epoch, names(5, 0))
        assert found is not None
        assert torch.equal(found, answers[[5, 0]] + epoch)
        assert again.find(epoch, names(5, 6)) is None
    again.add(names(0, 6), answers[:2])
    again.flush()
    third = AnswerCache(tmp_path / "new" / "cache", {"seed": 1})
    assert torch.equal(third.find(0, names(0, 6)), answers[:2])  # type: ignore[arg-type]
    newest = max((tmp_path / "new" / "cache").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(third._read(newest, tensors=True)[0]) == 1  # what was there is not kept twice


def test_what_is_not_whole_is_not_there(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"seed": 1}, shard_rows=4)
    assert cache.find(0, names(0)) is None
    cache.add(names(0, 1, 2, 3), torch.arange(4))
    cache.add(names(4), torch.arange(1))  # never written: the run is killed
    (tmp_path / ".epoch-00000-x.safetensors.partial").write_bytes(b"half")
    again = AnswerCache(tmp_path, {"seed": 1})
    assert again.find(0, names(3, 0)).tolist() == [3, 0]  # type: ignore[union-attr]
    assert again.find(0, names(4)) is None
    whole = next(tmp_path.glob("epoch-*"))
    whole.write_bytes(whole.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"epoch-00000-.*\.safetensors is damaged, or no teacher's answers; rem"):
        AnswerCache(tmp_path, {"seed": 1})
    save_file({"names": torch.zeros(1)}, whole)
    with pytest.raises(CheckpointError, match="is damaged, or no teacher's answers; remove it"):
        AnswerCache(tmp_path, {"seed": 1})


def test_other_answers_are_refused_by_the_first_difference(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"seed": 1, "crop_scale": (0.1, 1.0)}, shard_rows=1)
    assert cache.find(0, names(0)) is None
    cache.add(names(0), torch.arange(1))
    AnswerCache(tmp_path, {"seed": 1, "crop_scale": (0.1, 1.0)})
    with pytest.raises(InvalidConfig, match=r"holds a teacher's answers for seed = 1, not 2; give another"):
        AnswerCache(tmp_path, {"seed": 2, "crop_scale": (0.2, 1.0)})
    with pytest.raises(InvalidConfig, match=r"for crop_scale = \[0.1, 1.0\], not \[0.2, 1.0\]"):
        AnswerCache(tmp_path, {"seed": 1, "crop_scale": (0.2, 1.0)})
    with pytest.raises(InvalidConfig, match=r"for crop_scale = .*, not None"):
        AnswerCache(tmp_path, {"seed": 1})


def test_names_of_mixed_images_hang_on_the_draw_and_the_whole_part(tmp_path: Path) -> None:
    distillation = Distillation(teacher(), cache=AnswerCache(tmp_path, {}))
    keys = torch.tensor([[2, 0, 5], [2, 1, 9]])
    np.random.seed(3)  # noqa: NPY002
    plain, mixed = (distillation.names(keys, mixed=mixed) for mixed in (False, True))
    assert plain == [np.array([2, 0, 5]).tobytes(), np.array([2, 1, 9]).tobytes()]
    assert distillation.names(keys, mixed=True) == mixed
    assert len(set(mixed)) == 2
    assert not set(distillation.names(torch.tensor([[2, 0, 5], [2, 1, 8]]), mixed=True)) & set(mixed)
    np.random.seed(4)  # noqa: NPY002
    assert not set(distillation.names(keys, mixed=True)) & set(mixed)
    assert distillation.names(keys, mixed=False) == plain
    assert Distillation(teacher()).names(None, mixed=True) == []
