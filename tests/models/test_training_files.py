"""Whole files, as training scripts leave them: the weights load, and what lies beside them is passed over."""

import argparse
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import visionmlp
from tests.models.test_official import Bomb, official_resmlp, same
from tests.randomise import randomise
from visionmlp.errors import CheckpointError
from visionmlp.models.official import read_official


@pytest.fixture
def trained():
    return randomise(visionmlp.create_model("resmlp_test"), seed=3).eval()


class CfgNode(dict):
    """Pickles as yacs's node does: a mapping with attributes, under the name of another module."""

    def __init__(self, values):
        super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in values.items()})
        self.__dict__["__immutable__"] = True


CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"


@pytest.fixture
def save(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Writes a checkpoint on a machine that has yacs; it is read on one that has not."""

    def write(content: object, **settings: object) -> Path:
        config = types.ModuleType("yacs.config")
        config.CfgNode = CfgNode  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
            patch.setitem(sys.modules, "yacs.config", config)
            torch.save(content, tmp_path / "theirs.pth", **settings)
        assert "yacs.config" not in sys.modules
        return tmp_path / "theirs.pth"

    return write


def optimiser(model) -> dict[str, object]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0)  # state, but the same weights
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimiser.step()
    return optimiser.state_dict()


def swin_layout(model, state):
    """AS-MLP: Swin's script with Apex."""
    return {
        "model": state,
        "optimizer": optimiser(model),
        "lr_scheduler": {"decay_rate": 0.1, "base_values": [1e-3], "_last": np.float64(1e-5)},
        "max_accuracy": np.float64(81.3),
        "epoch": 299,
        "config": CfgNode({"MODEL": {"TYPE": "swin", "AS_MLP": {"DEPTHS": [2, 2, 6, 2]}}, "TAG": "default"}),
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 1210}},
    }


def deit_layout(model, state):
    """Hire-MLP, CycleMLP: DeiT's script with a moving average and a loss scaler."""
    return {
        "model": state,
        "optimizer": optimiser(model),
        "lr_scheduler": {"param_group_field": "lr", "t_initial": 300, "noise_range_t": None},
        "epoch": np.int64(299),
        "model_ema": {name: value + 1 for name, value in state.items()},
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "args": argparse.Namespace(lr=1e-3, model="cycle", input_size=224, opt_betas=None, cutmix_minmax=[0.1]),
    }


def timm_layout(model, state):
    """ViP, DynaMixer: timm's script, distributed."""
    return {
        "epoch": 12,
        "arch": "vip_s7",
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "optimizer": optimiser(model),
        "version": 2,
        "args": argparse.Namespace(data="/data", amp=True),
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}},
        "state_dict_ema": {f"module.{name}": value + 1 for name, value in state.items()},
        "metric": np.float32(81.5),
    }


@pytest.mark.parametrize("layout", [swin_layout, deit_layout, timm_layout])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_scripts_leave_beside_the_weights_is_passed_over(layout, zipped, trained, save):
    content = layout(trained, official_resmlp(trained))
    path = save(content, _use_new_zipfile_serialization=zipped)
    assert same(visionmlp.load_official(visionmlp.create_model("resmlp_test"), path), trained)
    if layout is swin_layout:
        with pytest.raises(CheckpointError, match=r"theirs.pth holds no moving average .*model_ema, state_dict_ema"):
            visionmlp.load_official(visionmlp.create_model("resmlp_test"), path, ema=True)
    else:
        averaged = visionmlp.load_official(visionmlp.create_model("resmlp_test"), path, ema=True)
        for name, value in trained.state_dict().items():
            assert torch.equal(averaged.state_dict()[name], value + 1)


def test_numpy_scalars_of_older_versions_are_passed_over(trained, tmp_path):
    """Before NumPy 2 the module had another name."""
    state = official_resmlp(trained)
    torch.save({"model": state, "max_accuracy": np.float64(81.3)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.namelist():
            content = new.read(entry)
            if entry.endswith("data.pkl"):
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
                assert b"cnumpy.core.multiarray\nscalar" in content
            old.writestr(entry, content)
    assert same(visionmlp.load_official(visionmlp.create_model("resmlp_test"), tmp_path / "old.pth"), trained)


def test_leftovers_open_no_door(trained, save, tmp_path):
    """What is passed over is inert: its arguments do nothing, and calls that no data needs are refused."""
    state = official_resmlp(trained)
    for beside in (Bomb(), argparse.Namespace(a=Bomb()), CfgNode({"A": Bomb()}), [Bomb()]):
        with pytest.raises(CheckpointError, match="could run code"):
            visionmlp.load_official(visionmlp.create_model("resmlp_test"), save({"model": state, "args": beside}))
    for beside in (Path("x"), torch.nn.Linear(1, 1)):
        path = save({"model": state, "args": beside})
        assert same(visionmlp.load_official(visionmlp.create_model("resmlp_test"), path), trained)
    with pytest.raises(CheckpointError, match="'args' that is no tensor"):
        read_official(save({"args": argparse.Namespace(model=state)}))
    assert not list(tmp_path.glob("exploded"))
    # the stand-ins are gone with the call
    with pytest.raises(pickle.UnpicklingError):
        torch.load(save({"args": argparse.Namespace()}), weights_only=True)
