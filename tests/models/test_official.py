"""The authors' files: wrappers, prefixes, layouts, sizes, and everything that can be wrong with them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import CheckpointError, CheckpointMismatch
from visionmlp.models.official import load_strictly, read_official
from visionmlp.models.registry import variant
from visionmlp.models.weights import OFFICIAL_FILES, family_prefix

TINY = visionmlp.list_models(test=True)
WITH_CODE = [name for name in TINY if family_prefix(name) in OFFICIAL_FILES]
DENSE = [name for name in TINY if "feature_norms" in vars(variant(name).config)]


def official_resmlp(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict with the authors' names, made from one of ours."""
    names = {
        "stem.": "patch_embed.",
        "stages.0.blocks.": "blocks.",
        ".spatial.fc.": ".attn.",
        ".channel.": ".mlp.",
        ".scale1.gamma": ".gamma_1",
        ".scale2.gamma": ".gamma_2",
        "head.fc.": "head.",
    }
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = value.clone()
    return state


@pytest.fixture
def trained():
    return randomise(visionmlp.create_model("resmlp_test"), seed=3).eval()


def same(model, other) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3, "args": {"lr": 0.1}},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"model_ema": s, "optimizer": {"step": 1}},
        lambda s: {k: v.numpy() for k, v in s.items()},
    ],
)
def test_wrappers_prefixes_and_arrays(trained, tmp_path, wrap):
    content = wrap(official_resmlp(trained))
    assert same(visionmlp.load_official(visionmlp.create_model("resmlp_test"), content), trained)
    if not isinstance(next(iter(content.values())), np.ndarray):
        torch.save(content, tmp_path / "theirs.pth")
        assert same(visionmlp.load_official(visionmlp.create_model("resmlp_test"), tmp_path / "theirs.pth"), trained)


def test_mixer_npz(tmp_path):
    model = randomise(visionmlp.create_model("mlpmixer_test"), seed=4)
    state = {}
    for name, value in model.state_dict().items():
        parts = name.replace("stages.0.blocks.", "MixerBlock_").replace("stem.proj", "stem").replace("head.fc", "head")
        for ours, theirs in {
            "norm1": "LayerNorm_0",
            "norm2": "LayerNorm_1",
            "spatial": "token_mixing",
            "channel": "channel_mixing",
            "fc1": "Dense_0",
            "fc2": "Dense_1",
        }.items():
            parts = parts.replace(ours, theirs)
        parts = "pre_head_layer_norm" + parts.removeprefix("norm") if parts.startswith("norm.") else parts
        array = value.numpy()
        if parts.endswith("weight"):
            leaf = "scale" if array.ndim == 1 else "kernel"
            parts = parts.removesuffix("weight") + leaf
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        state[parts.replace(".", "/")] = array
    np.savez(tmp_path / "Mixer.npz", **state)
    assert same(visionmlp.load_official(visionmlp.create_model("mlpmixer_test"), tmp_path / "Mixer.npz"), model)


def test_mismatch_lists_every_key_and_changes_nothing(trained):
    state = official_resmlp(trained)
    del state["norm.alpha"]
    state["extra.weight"] = torch.zeros(2)
    state["head.weight"] = torch.zeros(7, 16)
    target = randomise(visionmlp.create_model("resmlp_test"), seed=9)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(CheckpointMismatch) as info:
        visionmlp.load_official(target, state)
    assert info.value.missing == ["norm.alpha"]
    assert info.value.unexpected == ["extra.weight"]
    assert info.value.misshapen == ["head.fc.weight"]
    assert "head.fc.weight is 7x16, not 10x16" in str(info.value)
    assert "\n" not in str(info.value)
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_token_matrices_are_resized(trained):
    state = official_resmlp(trained)
    larger = visionmlp.load_official(visionmlp.create_model("resmlp_test", img_size=(64, 48)), state)
    weight = larger.stages[0].blocks[0].spatial.fc.weight
    assert weight.shape == (48, 48)
    from visionmlp.ops.resize import resize_grid, resize_token_matrix

    source = trained.stages[0].blocks[0].spatial.fc
    torch.testing.assert_close(weight, resize_token_matrix(source.weight, (4, 4), (8, 6)))
    torch.testing.assert_close(larger.stages[0].blocks[0].spatial.fc.bias, resize_grid(source.bias, (4, 4), (8, 6)))
    assert torch.equal(larger.stages[0].blocks[0].channel.fc1.weight, trained.stages[0].blocks[0].channel.fc1.weight)
    back = visionmlp.create_model("resmlp_test")
    with pytest.raises(CheckpointMismatch, match="misshapen"):
        visionmlp.load_official(back, official_resmlp(larger))
    visionmlp.load_official(back, official_resmlp(larger), img_size=(64, 48))


@pytest.mark.parametrize("name", ["mlpmixer_test", "repmlpnet_test"])
def test_resized_models_react_alike(name):
    """Twice the resolution, the same picture: the classifier sees nearly the same."""
    from visionmlp.models.official import resize_tokens

    model = randomise(visionmlp.create_model(name)).eval()
    size = 64
    larger = visionmlp.create_model(name, img_size=size).eval()
    larger.load_state_dict(resize_tokens(larger, model.state_dict(), None))
    assert larger(torch.randn(1, 3, size, size)).shape == (1, 10)


def test_a_given_size_counts_even_where_token_numbers_agree():
    """A 2x8 grid and a 4x4 grid both have 16 tokens, in other places."""
    state = official_resmlp(randomise(visionmlp.create_model("resmlp_test", img_size=(16, 64)), seed=3))
    square = visionmlp.load_official(visionmlp.create_model("resmlp_test"), state, img_size=(16, 64))
    copied = visionmlp.load_official(visionmlp.create_model("resmlp_test"), state)
    names = [n for n, v in square.state_dict().items() if not torch.equal(v, copied.state_dict()[n])]
    assert names == [n for n in square.state_dict() if ".spatial.fc." in n]


def test_tensors_of_a_wrong_rank_are_a_mismatch():
    with pytest.raises(CheckpointMismatch, match="does not fit"):
        visionmlp.load_official(
            visionmlp.create_model("repmlpnet_test"), {"stages.0.0.repmlp_block.fc3.weight": torch.zeros(3)}
        )
    with pytest.raises(CheckpointError, match="'head' that is no tensor"):
        visionmlp.load_official(visionmlp.create_model("resmlp_test"), {"head": np.array(["text"])})


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_bad_files_are_one_clear_error(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = visionmlp.create_model("resmlp_test")
    torch.save(official_resmlp(trained), tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "short.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"model": Bomb()}, protocol=2))
    (tmp_path / "bomb4.pth").write_bytes(pickle.dumps({"model": Bomb()}, protocol=4))
    torch.save({"model": Bomb()}, tmp_path / "zipbomb.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    expected = {
        "missing.pth": "no checkpoint file",
        "short.pth": "truncated",
        "empty.pth": "truncated",
        "text.pth": "truncated",
        "bad.npz": "truncated",
        "bomb.pth": "could run code",
        "bomb4.pth": "could run code",
        "zipbomb.pth": "could run code",
        "list.pth": "holds list",
        "nothing.pth": "'epoch' that is no tensor",
    }
    for name, message in expected.items():
        with pytest.raises(CheckpointError, match=message) as info:
            visionmlp.load_official(model, tmp_path / name)
        assert name in str(info.value)
        assert "\n" not in str(info.value)
    assert not (tmp_path / "exploded").exists()


def test_a_deploy_form_takes_no_official_weights(trained):
    with pytest.raises(CheckpointError, match="training form"):
        visionmlp.load_official(visionmlp.reparameterize(trained), official_resmlp(trained))


# writing


@pytest.mark.parametrize("name", WITH_CODE)
@pytest.mark.parametrize("wrapped", [True, False], ids=["native", "safetensors"])
def test_written_files_have_the_authors_layout_and_come_back_bit_by_bit(name, wrapped, tmp_path):
    model = randomise(visionmlp.create_model(name), seed=6)
    layout = OFFICIAL_FILES[family_prefix(name)]
    path = tmp_path / f"theirs{layout.suffix if wrapped else '.safetensors'}"
    visionmlp.save_official(path, model)
    assert list(tmp_path.iterdir()) == [path]
    expected = model.to_official(model.state_dict())
    if not wrapped:
        content = load_file(path)
    elif layout.suffix == ".npz":
        content = {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    else:
        content = torch.load(path, weights_only=True)
        assert layout.wrapper is None or list(content) == [layout.wrapper]
        content = content[layout.wrapper] if layout.wrapper else content
    assert content.keys() == expected.keys()
    assert all(torch.equal(content[key], value) for key, value in expected.items())
    assert same(visionmlp.load_official(visionmlp.create_model(name), path), model)


def test_what_cannot_be_written(trained, tmp_path):
    for model, file, message in (
        (visionmlp.reparameterize(trained), "a.pth", "is a deploy form"),
        (visionmlp.create_model("sparsemlp_moe_test"), "a.pth", "there is no authors' code for sparsemlp_moe_test"),
        (trained, "a.npz", r"a.npz: weights of resmlp_test go into a .pth or .safetensors file"),
        (visionmlp.create_model("mlpmixer_test"), "a.pth", r"go into a .npz or .safetensors file"),
        (visionmlp.create_model("mlpmixer_test").bfloat16(), "a.npz", "NumPy has no bfloat16"),
        (trained, "absent/a.pth", "cannot write"),
    ):
        with pytest.raises(CheckpointError, match=message):
            visionmlp.save_official(tmp_path / file, model)
    assert not list(tmp_path.iterdir())


# what some families need


@pytest.mark.parametrize("name", [name for name in TINY if visionmlp.create_model(name).official_constants()])
def test_constants_of_the_authors_are_checked(name):
    model = randomise(visionmlp.create_model(name), seed=7)
    state = model.to_official(model.state_dict())
    constants = model.official_constants()
    assert constants.keys() <= state.keys()
    assert same(visionmlp.load_official(visionmlp.create_model(name), state), model)
    # they hold nothing learned, so a file without them is whole
    learned = {key: value for key, value in state.items() if key not in constants}
    assert same(visionmlp.load_official(visionmlp.create_model(name), learned), model)
    first = sorted(constants)[0]
    for other in (constants[first] + 1, constants[first].flatten()[1:]):
        with pytest.raises(CheckpointMismatch, match="computes with another") as error:
            visionmlp.load_official(visionmlp.create_model(name), {**state, first: other})
        assert error.value.unexpected == [first]


@pytest.mark.parametrize("name", DENSE)
def test_dense_backbones_there_and_back(name, tmp_path):
    model = randomise(visionmlp.create_model(name, feature_norms=True, num_classes=0), seed=8)
    layout = OFFICIAL_FILES[family_prefix(name)]
    visionmlp.save_official(tmp_path / f"dense{layout.suffix}", model)
    state = read_official(tmp_path / f"dense{layout.suffix}")
    assert not {"norm.weight", "head.weight"} & state.keys()
    back = visionmlp.load_official(visionmlp.create_model(name, feature_norms=True, num_classes=0), state)
    final = [key for key in back.state_dict() if key.startswith("norm.")]
    for key, value in model.state_dict().items():
        assert key in final or torch.equal(back.state_dict()[key], value)
    with pytest.raises(CheckpointMismatch):
        load_strictly(visionmlp.create_model(name), back.state_dict(), "it")


def test_entries_that_no_parameter_can_hold_are_named(trained):
    for entries in ({0: torch.zeros(3)}, {"model": {0: torch.zeros(3)}}):
        with pytest.raises(CheckpointError, match="an entry 0 that is no tensor"):
            visionmlp.load_official(visionmlp.create_model("resmlp_test"), entries)
    for value in (torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)):
        with pytest.raises(CheckpointError, match=r"'head\.bias' that is no tensor"):
            visionmlp.load_official(
                visionmlp.create_model("resmlp_test"), {**official_resmlp(trained), "head.bias": value}
            )


def test_a_size_that_the_weights_were_not_made_for_is_named(trained):
    target = visionmlp.create_model("resmlp_test", img_size=(64, 48))
    with pytest.raises(CheckpointMismatch, match="not made for img_size 40x40"):
        visionmlp.load_official(target, official_resmlp(trained), img_size=40)
    with pytest.raises(CheckpointError, match="must be positive"):
        visionmlp.load_official(target, official_resmlp(trained), img_size=0)
