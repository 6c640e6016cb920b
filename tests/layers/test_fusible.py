"""Re-parameterisation: exact for random parameters and statistics, total, pure, idempotent, and able to fail."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig, NotInEvalMode
from visionmlp.layers.affine import Affine, LayerScale
from visionmlp.layers.fusible import Fusible, is_training_form, linear
from visionmlp.layers.locality import LocalityBranch

NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, Affine, LayerScale)
OPTIONS = [
    ("repmlpnet_test", {}, 0),
    ("repmlpnet_test", {"kernel_sizes": ()}, 0),
    ("repmlpnet_test", {"kernel_sizes": (3, 7)}, 0),
    ("repmlpnet_test", {"global_perceptron": False}, 0),
    ("repmlpnet_test", {"window_order": "authors"}, 0),
    ("repmlpnet_test", {"share_sets": (8, 16, 32)}, 0),
    ("repmlpnet_test", {"embed_kernel": 3}, 0),
    ("repmlpnet_test", {"embed_kernel": 5, "embed_depthwise": 3}, 0),
    ("repmlpnet_test", {"embed_depthwise": 5}, 0),
    ("repmlpnet_test", {"num_classes": 0}, 1),
    ("resmlp_test", {}, 0),
    ("resmlp_test", {"kernel_sizes": (1, 3)}, 0),
    ("resmlp_test", {"norm": "layernorm"}, 7),
    ("resmlp_test", {"norm": "layernorm", "kernel_sizes": (5,)}, 7),
    ("resmlp_test", {"global_pool": "class_mlp"}, 1),
    ("resmlp_test", {"num_classes": 0}, 1),
    ("resmlp_test", {"cross_patch": "none"}, 0),
    ("resmlp_test", {"cross_patch": "mlp"}, 6),
    ("resmlp_test", {"cross_patch": "mlp", "kernel_sizes": (1, 3)}, 6),
    ("resmlp_test", {"cross_patch": "conv3x3"}, 0),
    ("resmlp_test", {"cross_patch": "depthwise"}, 0),
    ("resmlp_test", {"cross_patch": "separable"}, 0),
    ("resmlp_test", {"cross_patch": "separable", "norm": "layernorm"}, 7),
    ("mlpmixer_test", {}, 7),
    ("mlpmixer_test", {"kernel_sizes": (1, 3)}, 7),
    ("sparsemlp_moe_test", {}, 9),
    ("sparsemlp_moe_test", {"kernel_sizes": (1, 3)}, 9),
    ("sparsemlp_moe_test", {"num_classes": 0}, 9),
    ("hiremlp_test", {}, 0),
    ("hiremlp_test", {"reweight": False}, 0),
    ("hiremlp_test", {"region_sizes": (4, 3)}, 0),
    ("hiremlp_test", {"step_padding": "zero"}, 0),
    ("hiremlp_test", {"region_padding": "zero"}, 0),
    ("hiremlp_test", {"step_padding": "zero", "region_padding": "replicate"}, 0),
    ("hiremlp_test", {"feature_norms": True}, 2),
    ("hiremlp_test", {"num_classes": 0}, 1),
    ("asmlp_test", {}, 19),
    ("asmlp_test", {"shift_size": 1}, 19),
    ("asmlp_test", {"shift_size": 3, "dilation": 2}, 19),
    ("asmlp_test", {"dim": 3}, 19),
    ("asmlp_test", {"feature_norms": True}, 21),
    ("asmlp_test", {"num_classes": 0}, 19),
    ("vip_test", {}, 9),
    ("vip_test", {"reweight": False}, 9),
    ("vip_test", {"segments": (4, 3, 24)}, 9),
    ("vip_test", {"num_classes": 0}, 9),
    ("dynamixer_test", {}, 9),
    ("dynamixer_test", {"mixing": "dense"}, 9),
    ("dynamixer_test", {"mixing": "random"}, 9),
    ("dynamixer_test", {"row_mixing": False}, 9),
    ("dynamixer_test", {"column_mixing": False}, 9),
    ("dynamixer_test", {"channel_mixing": False}, 9),
    ("dynamixer_test", {"shared_mixing": True}, 9),
    ("dynamixer_test", {"reweight": False}, 9),
    ("dynamixer_test", {"num_classes": 0}, 9),
    ("cyclemlp_test", {}, 9),
    ("cyclemlp_test", {"reweight": False}, 9),
    ("cyclemlp_test", {"pseudo_kernel_w": (1, 5), "pseudo_kernel_h": (3, 3), "dilation": 2}, 9),
    ("cyclemlp_test", {"feature_norms": True}, 11),
]


def image(size=(32, 32), dtype=torch.float64):
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("name", "options", "norms_left"), OPTIONS, ids=str)
@torch.no_grad()
def test_deploy_form_is_equal(name, options, norms_left):
    model = randomise(visionmlp.create_model(name, **options)).double().eval()
    before = copy.deepcopy(model.state_dict())
    deployed = visionmlp.reparameterize(model)
    sizes = [(32, 32), (64, 96)] if name.startswith("repmlpnet") else [(32, 32)]
    for size in sizes:
        x = image(size)
        expected = model(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(deployed(x), expected, rtol=0, atol=1e-11 * expected.abs().max().item())
    single = visionmlp.reparameterize(model.float())(image(dtype=torch.float32))
    expected = model.double()(image())
    assert (single - expected).abs().max() < 1e-5 * expected.abs().max()
    assert all(torch.equal(before[k], v) for k, v in model.double().state_dict().items()), "the model is untouched"
    assert not is_training_form(deployed)
    assert not [m for m in deployed.modules() if isinstance(m, LocalityBranch)]
    assert len([m for m in deployed.modules() if isinstance(m, NORMS)]) == norms_left


def test_wrong_fusions_would_be_noticed():
    """The equivalence test fails if a fold drops its biases, on the same random statistics."""
    model = randomise(visionmlp.create_model("repmlpnet_test")).double().eval()
    deployed = visionmlp.reparameterize(model)
    with torch.no_grad():
        expected = model(image())
        for block in deployed.stages[0].blocks:
            block.spatial.bias.zero_()
        assert (deployed(image()) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["repmlpnet_test", "resmlp_test"])
def test_a_folded_classifier_cannot_be_reset(name):
    """Its last norm would be lost, or a checkpoint would not fit."""
    for classes in (10, 0):
        deployed = visionmlp.reparameterize(visionmlp.create_model(name, num_classes=classes).eval())
        with pytest.raises(InvalidConfig, match="training form"):
            deployed.reset_classifier(3)
    mixer = visionmlp.reparameterize(visionmlp.create_model("mlpmixer_test").eval())
    mixer.reset_classifier(3)
    assert mixer(image(dtype=torch.float32)).shape == (3, 3)


@torch.no_grad()
def test_synchronised_norms_fold_and_others_are_refused():
    model = randomise(visionmlp.create_model("repmlpnet_test")).double().eval()
    expected = model(image())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    torch.testing.assert_close(visionmlp.reparameterize(synchronised)(image()), expected)
    model.stem.norm = nn.GroupNorm(1, 8).eval()
    with pytest.raises(ValueError, match="GroupNorm is no BatchNorm"):
        visionmlp.reparameterize(model)


@torch.no_grad()
def test_empty_batches_frozen_weights_and_pruned_models():
    for name in visionmlp.list_models(test=True):
        model = visionmlp.create_model(name).eval().requires_grad_(False)
        deployed = visionmlp.reparameterize(model)
        assert deployed(torch.empty(0, 3, 32, 32)).shape == (0, 10)
        assert not any(p.requires_grad for p in deployed.parameters())
        model.prune_intermediate_layers([0])
        visionmlp.reparameterize(model)


def test_twice_is_harmless_and_eval_is_required():
    model = randomise(visionmlp.create_model("resmlp_test"))
    with pytest.raises(NotInEvalMode, match=r"model\.eval\(\)"):
        visionmlp.reparameterize(model.train())
    once = visionmlp.reparameterize(model.eval())
    twice = visionmlp.reparameterize(once)
    x = image(dtype=torch.float32)
    assert once is not twice
    assert torch.equal(once(x), twice(x))
    assert next(once.parameters()) is not next(twice.parameters())


class Doubled(Fusible):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + self.layer(x)

    def fused(self):
        if isinstance(self.layer, Doubled):  # nested: the result holds a part that is Fusible itself
            return nn.Sequential(self.layer, linear(torch.eye(4) * 2, None, torch.empty(0)))
        return linear(self.layer.weight * 2, self.layer.bias * 2, self.layer.weight)


@torch.no_grad()
def test_roots_nested_parts_and_ties():
    x = torch.randn(2, 4)
    root = Doubled(nn.Linear(4, 4)).eval()
    torch.testing.assert_close(visionmlp.reparameterize(root)(x), root(x))
    nested = Doubled(Doubled(nn.Linear(4, 4))).eval()
    deployed = visionmlp.reparameterize(nested)
    torch.testing.assert_close(deployed(x), nested(x))
    assert not is_training_form(deployed)
    tied = nn.ModuleDict({"a": root, "b": root, "c": Doubled(nn.Linear(4, 4))}).eval()
    deployed = visionmlp.reparameterize(tied)
    assert deployed["a"] is deployed["b"]
    assert deployed["a"] is not deployed["c"]


@torch.no_grad()
def test_a_wrapped_backbone_is_reached():
    model = nn.Sequential(randomise(visionmlp.create_model("mlpmixer_test")), nn.ReLU()).double().eval()
    deployed = visionmlp.reparameterize(model)
    assert not is_training_form(deployed)
    torch.testing.assert_close(deployed(image()), model(image()))


@pytest.mark.parametrize("name", visionmlp.list_models(test=True))
def test_deploy_forms_can_be_tuned(name):
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model(name)).double().eval())
    x = image()
    deployed(x).square().sum().backward()
    assert not [n for n, p in deployed.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    analytic = deployed.stages[0].blocks[0].channel.fc1.bias.grad[0].item()
    bias = deployed.stages[0].blocks[0].channel.fc1.bias
    with torch.no_grad():
        losses = []
        for step in (1e-5, -2e-5):
            bias[0] += step
            losses.append(deployed(x).square().sum())
    assert ((losses[0] - losses[1]) / 2e-5).item() == pytest.approx(analytic, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["resmlp_test", "mlpmixer_test", "repmlpnet_test", "sparsemlp_moe_test"])
@torch.no_grad()
def test_add_locality(name):
    model = randomise(visionmlp.create_model(name)).eval()
    x = image(dtype=torch.float32)
    local = visionmlp.add_locality(model, (1, 7))
    torch.testing.assert_close(model(x), randomise(visionmlp.create_model(name)).eval()(x))
    sizes = {int(k) for m in local.modules() if isinstance(m, nn.ModuleDict) for k in m}
    existing = {1, 3, 5} if name == "repmlpnet_test" else set()
    assert sizes == existing | {1, 7} == set(local.config.kernel_sizes)
    assert sum(p.numel() for p in local.parameters()) > sum(p.numel() for p in model.parameters())
    local = randomise(local).double()
    assert (local(image()) - model.double()(image())).abs().max() > 1e-3
    torch.testing.assert_close(visionmlp.reparameterize(local)(image()), local(image()))
    rebuilt = visionmlp.create_model(name, kernel_sizes=local.config.kernel_sizes).double().eval()
    rebuilt.load_state_dict(local.state_dict())
    torch.testing.assert_close(rebuilt(image()), local(image()))


def test_table_5_counts_of_branches():
    """One share-set: 5 numbers for a 1x1 branch and 13 for a 3x3 one, per block (RepMLPNet, section 5.2)."""

    def numbers(model: nn.Module) -> int:
        counted = [v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")]
        return sum(v.numel() for v in counted)

    plain = visionmlp.create_model("resmlp_s12", img_size=32, patch_size=2, dim=256, num_classes=100)
    assert sum(p.numel() for p in plain.parameters()) == pytest.approx(7.1e6, rel=0.01)
    for sizes, extra in (((1,), 60), ((3,), 156), ((1, 3), 216)):
        assert numbers(visionmlp.add_locality(plain, sizes)) - numbers(plain) == extra
    bare = visionmlp.create_model("repmlpnet_cifar", kernel_sizes=())
    for sizes, extra in (((1,), 1200), ((3,), 3120)):
        # the paper says 720 and 2,640: its norms count 2 numbers instead of 4, or none for the 1x1 kernel
        assert numbers(visionmlp.add_locality(bare, sizes)) - numbers(bare) == extra


def test_locality_needs_a_matrix_and_odd_kernels():
    with pytest.raises(InvalidConfig, match="nothing in this model"):
        visionmlp.add_locality(nn.Linear(2, 2))
    with pytest.raises(InvalidConfig, match="odd and positive"):
        visionmlp.add_locality(visionmlp.create_model("resmlp_test"), (2,))
    with pytest.raises(InvalidConfig, match="cross_patch='depthwise' has none"):
        visionmlp.create_model("resmlp_test", cross_patch="depthwise", kernel_sizes=(3,))


@pytest.mark.parametrize("name", sorted({name for name, _, _ in OPTIONS}))
def test_no_form_stays_in_memory(name):
    """Whoever drops a model has its memory back at once, not when the garbage collector comes by."""
    gc.collect()
    gc.disable()
    try:
        training = visionmlp.create_model(name).eval()
        forms = [weakref.ref(training), weakref.ref(visionmlp.reparameterize(training))]
        assert forms[1]() is None
        deployed = visionmlp.reparameterize(training)
        forms.append(weakref.ref(deployed))
        with torch.no_grad():
            deployed(torch.zeros(1, 3, *training.config.img_size))
        del training, deployed
        assert all(form() is None for form in forms)
    finally:
        gc.enable()


@torch.no_grad()
def test_pruned_weights_are_those_of_now_not_of_the_last_call():
    model = randomise(visionmlp.create_model("resmlp_test")).eval()
    layer = model.stages[0].blocks[1].channel.fc1
    prune.custom_from_mask(layer, "weight", torch.rand_like(layer.weight) > 0.5)
    layer.weight_orig.mul_(3)
    deployed = visionmlp.reparameterize(model)
    x = image(dtype=torch.float32)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
