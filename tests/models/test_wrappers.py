"""State dicts as wrappers, averages and pre-training methods save them: the prefix is found, or shown."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import visionmlp
from tests.models.test_official import official_resmlp, same
from tests.randomise import randomise
from visionmlp.errors import CheckpointError, CheckpointMismatch
from visionmlp.models.official import read_official
from visionmlp.models.weights import OFFICIAL_FILES, family_prefix

State = dict[str, Tensor]
TINY = visionmlp.list_models(test=True)
WITH_CODE = [name for name in TINY if family_prefix(name) in OFFICIAL_FILES]


@pytest.fixture(scope="module")
def trained():
    return randomise(visionmlp.create_model("resmlp_test"), seed=3).eval()


def put(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def load(content: Any, **options: Any):
    return visionmlp.load_official(visionmlp.create_model("resmlp_test"), content, **options)


PREFIXES = (
    "_orig_mod.",
    "module.",
    "model.",
    "backbone.",
    "encoder.",
    "net.",
    "teacher.backbone.",
    "module.base_encoder.",
    "module.momentum_encoder.",
    "student.module.backbone.",
    "module.module.",
    "_orig_mod.module.",
    "module._orig_mod.module.",
    "model.module._orig_mod.backbone.",
    "a.name.that.nobody.knows.",
)
WRAPPERS: dict[str, Callable[[State], Any]] = {
    "lightning": lambda s: {
        "state_dict": put("model.")(s),
        "epoch": 1,
        "pytorch-lightning_version": "2.0",
        "loops": {},
    },
    "deepspeed": lambda s: {"module": put("module.")(s), "buffer_names": [], "optimizer": None},
    "timm": lambda s: {"epoch": 1, "arch": "x", "state_dict": s, "optimizer": {"state": {0: {"step": 1}}}},
    "only an average": lambda s: {"state_dict_ema": put("module.")(s), "epoch": 2},
    "averaged model": lambda s: {"n_averaged": torch.tensor(3), **put("module.")(s)},
    "averaged compiled": lambda s: {"state_dict": {"n_averaged": torch.tensor(3), **put("module._orig_mod.")(s)}},
    "dino's teacher": lambda s: {"teacher": {**put("backbone.")(s), "head.mlp.0.weight": torch.zeros(2, 2)}},
    "moco without momentum": lambda s: {
        "state_dict": {**put("module.base_encoder.")(s), "module.predictor.0.weight": torch.zeros(3)}
    },
    "basicsr": lambda s: {"params": s},
    "unknown": lambda s: {"who": {"knows": {"this": s}}, "seed": 1},
    "the same twice": lambda s: {"model": s, "state_dict": dict(s)},
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("names", ["authors", "ours"])
def test_a_prefix_that_explains_all_names_is_taken_off(prefix, names, trained, tmp_path):
    state = official_resmlp(trained) if names == "authors" else trained.state_dict()
    content = put(prefix)(state)
    assert same(load(content), trained)
    torch.save({"state_dict": content}, tmp_path / "x.pth")
    assert same(visionmlp.load_model("resmlp_test", checkpoint=tmp_path / "x.pth")[0], trained)
    save_file(content, tmp_path / "x.safetensors")
    assert same(visionmlp.load_model("resmlp_test", checkpoint=tmp_path / "x.safetensors")[0], trained)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers(kind, trained, tmp_path):
    content = WRAPPERS[kind](official_resmlp(trained))
    assert same(load(content), trained)
    torch.save(content, tmp_path / "x.pth")
    assert same(visionmlp.load_model("resmlp_test", checkpoint=tmp_path / "x.pth")[0], trained)


@pytest.mark.parametrize("name", WITH_CODE)
def test_every_family(name):
    model = randomise(visionmlp.create_model(name), seed=4)
    other = randomise(visionmlp.create_model(name), seed=5)
    for rename in (model.to_official, dict):
        content = {
            "student": put("module.backbone.")(rename(other.state_dict())),
            "teacher": put("_orig_mod.backbone.")(rename(model.state_dict())),
        }
        assert same(visionmlp.load_official(visionmlp.create_model(name), content, prefix="teacher"), model)


def test_no_name_of_a_model_is_part_of_a_wrapper():
    for name in TINY:
        model = visionmlp.create_model(name)
        names = [*model.state_dict(), *model.to_official(model.state_dict())]
        assert not [n for n in names if {"module", "_orig_mod"} & set(n.replace("/", ".").split("."))]


def test_wrappers_that_are_not_made_by_hand(trained):
    """torch.compile, of the model and of its parts, DataParallel, AveragedModel."""
    compiled = torch.compile(copy.deepcopy(trained))
    parts = copy.deepcopy(trained)
    parts.stages[0] = torch.compile(parts.stages[0])
    parts.stages[0].blocks[1].channel = torch.compile(parts.stages[0].blocks[1].channel)
    averaged = torch.optim.swa_utils.AveragedModel(copy.deepcopy(trained))
    for wrapper in (compiled, parts, nn.DataParallel(copy.deepcopy(trained)), averaged, torch.compile(averaged)):
        assert wrapper.state_dict().keys() != trained.state_dict().keys()
        assert same(load(wrapper.state_dict()), trained)


# two that would fit


def two(one: State, other: State) -> dict[str, Any]:
    return {
        "dino": {
            "student": {**put("module.backbone.")(one), **put("module.head.")({"mlp.weight": torch.zeros(2)})},
            "teacher": {**put("backbone.")(other), "head.mlp.weight": torch.zeros(2)},
            "epoch": 1,
        },
        "moco": {
            "state_dict": {**put("module.base_encoder.")(one), **put("module.momentum_encoder.")(other)},
            "arch": "x",
        },
        "keys": {"model": one, "best_state_dict": other},
    }


CHOICES = {
    "dino": ("student.backbone.", "teacher.backbone."),
    "moco": ("state_dict.base_encoder.", "state_dict.momentum_encoder."),
    "keys": ("model.", "best_state_dict."),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_between_two_nobody_guesses(kind, trained, tmp_path):
    other = randomise(visionmlp.create_model("resmlp_test"), seed=8)
    content = two(official_resmlp(trained), official_resmlp(other))[kind]
    torch.save(content, tmp_path / "x.pth")
    for read in (
        lambda **options: load(content, **options),
        lambda **options: load(tmp_path / "x.pth", **options),
        lambda **options: visionmlp.load_model("resmlp_test", checkpoint=tmp_path / "x.pth", **options)[0],
    ):
        with pytest.raises(CheckpointError, match="2 times") as error:
            read()
        assert "\n" not in str(error.value)
        assert all(prefix in str(error.value) for prefix in (*CHOICES[kind], "choose with prefix="))
        for prefix, expected in zip(CHOICES[kind], (trained, other), strict=True):
            assert same(read(prefix=prefix), expected)
            assert same(read(prefix=prefix.rstrip(".")), expected)
        with pytest.raises(CheckpointError, match=rf"no weights under the prefix 'nowhere'.*{CHOICES[kind][0]}"):
            read(prefix="nowhere")
    # as the file writes it
    if kind == "moco":
        assert same(load(content, prefix="module.momentum_encoder."), other)
        assert same(load(content, prefix="momentum_encoder"), other)
    if kind == "dino":
        assert same(load(content, prefix="student.module."), trained)


def test_an_average_beside_the_weights_is_chosen_by_ema(trained):
    average = randomise(visionmlp.create_model("resmlp_test"), seed=8)
    for content in (
        {"state_dict": official_resmlp(trained), "state_dict_ema": put("module.")(official_resmlp(average))},
        {"model": official_resmlp(trained), "model_ema": official_resmlp(average)},
        {"model": official_resmlp(trained), "ema": {"module": put("backbone.")(official_resmlp(average))}},
        {"state_dict": {**put("net.")(official_resmlp(trained)), **put("ema_model.")(official_resmlp(average))}},
    ):
        assert same(load(content), trained)
        assert same(load(content, ema=True), average)
    with pytest.raises(CheckpointError, match="no moving average"):
        load({"state_dict": official_resmlp(trained)}, ema=True)
    assert read_official({"model_ema": official_resmlp(average)}, ema=True).keys() == official_resmlp(average).keys()


# none that would fit


def test_what_fits_nowhere_shows_its_common_prefix(trained):
    state = official_resmlp(trained)
    del state["blocks.1.attn.weight"]
    with pytest.raises(CheckpointMismatch, match="1 missing") as error:
        load({"state_dict": put("net.encoder.")(state)})
    assert error.value.missing == ["stages.0.blocks.1.spatial.fc.weight"]
    assert not error.value.unexpected
    strange = {f"visual.trunk.layer{i}.w": torch.zeros(2) for i in range(3)}
    with pytest.raises(CheckpointMismatch, match=r"where all names begin with visual\.trunk\.") as error:
        load(strange)
    assert "\n" not in str(error.value)


def test_entries_beside_the_model_under_its_own_prefix_are_still_unexpected(trained):
    state = {**official_resmlp(trained), "extra.weight": torch.zeros(2)}
    for content in (state, put("backbone.")(state), {"model": put("module.")(state)}):
        with pytest.raises(CheckpointMismatch) as error:
            load(content)
        assert error.value.unexpected == ["extra.weight"]


def test_one_name_twice(trained):
    state = official_resmlp(trained)
    with pytest.raises(CheckpointError, match=r"has .* twice"):
        load({**state, **put("module.")(state)})


def test_deeper_models_do_not_pass_for_shallower_ones(trained):
    deeper = visionmlp.create_model("resmlp_test", depth=4)
    with pytest.raises(CheckpointMismatch) as error:
        load({"model": put("backbone.")(official_resmlp(deeper))})
    assert all("blocks.3" in name for name in error.value.unexpected)
    with pytest.raises(CheckpointMismatch) as error:
        visionmlp.load_official(deeper, put("backbone.")(official_resmlp(trained)))
    assert all("blocks.3" in name for name in error.value.missing)
    assert not error.value.unexpected
