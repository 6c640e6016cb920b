"""The table of published weights, and what is said of weights that are not there."""

import pytest
import timm
import torch

import visionmlp
from tests.models.test_pretrained import TINY, one_line
from visionmlp.errors import CheckpointError, UnknownModel
from visionmlp.models import pretrained
from visionmlp.models.registry import variant
from visionmlp.models.weights import OFFICIAL_FILES, WEIGHTS


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dynamixer_s", ["DynaMixer's authors released no weights"]),
        ("sparsemlp_moe_s", ["released no weights"]),
        ("vip_s7", ["links on https://github.com/houqb/VisionPermutator (on Google Drive)", "load_official"]),
        ("asmlp_t", ["links on https://github.com/svip-lab/AS-MLP (on OneDrive)", "load_official"]),
        ("repmlpnet_d256", ["RepMLPNet-D256-train-acc*.pth", "load_official"]),
        ("vip_s14", ["no weights of vip_s14 were published", "vip_s7, vip_m7, vip_l7"]),
        ("hiremlp_l", ["no weights of hiremlp_l were published", "hiremlp_t"]),
        ("resmlp_s12_p14", ["resmlp_s12, resmlp_s24"]),
    ],
)
def test_what_cannot_be_fetched_says_so(name, parts):
    for create in (timm.create_model, visionmlp.create_model):
        with torch.device("meta"), pytest.raises(CheckpointError) as error:
            create(name, pretrained=True)
        assert name in one_line(error)
        assert all(part in one_line(error) for part in parts)


def test_unknown_tags():
    for create in (timm.create_model, visionmlp.create_model):
        with pytest.raises(UnknownModel, match="has no weights 'dist2'; there are no_dist, dist, dino"):
            create("resmlp_s24.dist2")
        with pytest.raises(UnknownModel, match="resmlp_test has no weights 'x'; it has none"):
            create("resmlp_test.x")


def test_the_table():
    prefixes = {name.removesuffix("_test") for name in TINY}
    assert {name.partition("_")[0] for name in OFFICIAL_FILES} <= prefixes
    for name, entries in WEIGHTS.items():
        assert variant(name).name == name
        assert visionmlp.published_weights(name) == entries
        assert len({entry.tag for entry in entries}) == len(entries)
        for entry in entries:
            cfg = timm.get_pretrained_cfg(f"{name}.{entry.tag}")
            assert (cfg.url, cfg.license, cfg.origin_url) == (entry.url, entry.licence, entry.page)
            assert cfg.num_classes == entry.num_classes
            assert entry.top1 is None or f"{entry.top1} % top-1" in cfg.description
            assert entry.url is None or entry.url.endswith(f"/{entry.file}")
            assert (f"{name}.{entry.tag}" in timm.list_pretrained()) == (entry.url is not None)
            assert entry.sha256 is None
        assert timm.get_pretrained_cfg(name).tag == entries[0].tag
    # one cache for all: no two files under one name
    addresses = [entry.url for entries in WEIGHTS.values() for entry in entries if entry.url]
    assert len({pretrained._file_name(url) for url in addresses}) == len(addresses) == 25
    assert visionmlp.published_weights("dynamixer_s") == ()
    with pytest.raises(UnknownModel):
        visionmlp.published_weights("resnet50")
