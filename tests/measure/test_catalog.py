import pytest
import torch

from visionmlp.errors import UnknownModel
from visionmlp.measure import catalog as catalog_module
from visionmlp.measure.catalog import (
    CATALOG,
    catalog,
    catalog_rows,
    catalog_table,
    count_macs,
    count_params,
    count_text,
    read_catalog,
    write_catalog,
)
from visionmlp.models.checkpoint import load_model
from visionmlp.models.registry import list_models, published_weights, variant


def test_all_models() -> None:
    assert [entry.name for entry in catalog()] == list_models()


def test_the_file_is_what_the_code_says(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "CATALOG", tmp_path / "catalog.json")
    write_catalog()
    assert (tmp_path / "catalog.json").read_text() == CATALOG.read_text(), "run python docs/build.py --tables"
    assert list(read_catalog()) == [*list_models(), *list_models(test=True)]
    entry = read_catalog()["resmlp_s24"]
    assert entry.tags == tuple(weights.tag for weights in published_weights("resmlp_s24")) != ()
    assert (entry.params, entry.macs) == (variant("resmlp_s24").params, variant("resmlp_s24").macs)


@pytest.mark.parametrize("family", ["ResMLP", "resmlp", "mlp-mixer", "Sparse-MLP (MoE)", "sparsemlp_moe"])
def test_families_are_those_of_the_registry(family: str) -> None:
    assert [entry.name for entry in catalog(family=family)] == list_models(family)


def test_an_unknown_family_is_refused_in_the_words_of_the_registry() -> None:
    with pytest.raises(UnknownModel) as registry:
        list_models("convnet")
    with pytest.raises(UnknownModel) as listed:
        catalog(family="convnet")
    assert str(listed.value) == str(registry.value)


def test_patterns_and_family() -> None:
    assert [entry.name for entry in catalog("resmlp_*_p8")] == ["resmlp_s12_p8", "resmlp_b24_p8"]
    assert {entry.family for entry in catalog("b", family="mlpmixer")} == {"MLP-Mixer"}


def test_no_match_names_the_nearest() -> None:
    with pytest.raises(UnknownModel, match="resmlp_s12"):
        catalog("resmpl_s12")


def test_published_numbers_are_quoted_and_own_numbers_counted() -> None:
    (entry,) = catalog("repmlpnet_t224")
    published = variant("repmlpnet_t224").published
    assert (entry.paper_params, entry.paper_macs, entry.paper_top1) == (
        published.params,
        published.macs,
        published.top1,
    )
    assert entry.source == published.source != ""
    assert entry.params / 1e6 == pytest.approx(38.3, abs=0.05)
    assert entry.macs / 1e9 == pytest.approx(2.8, abs=0.05)


def test_counting_uses_no_memory_and_leaves_the_model_alone() -> None:
    model, _ = load_model("resmlp_test")
    macs = count_macs(model, (3, 32, 32))
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert macs == count_macs(model.double(), (3, 32, 32))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32, dtype=torch.float64))


def test_a_shared_parameter_counts_once_and_a_linear_layer_counts_its_products() -> None:
    layer = torch.nn.Linear(5, 7)
    assert count_params(torch.nn.ModuleList([layer, layer])) == 42
    assert count_macs(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 7)), (3, 2, 2)) == 84


def test_count_text() -> None:
    assert [count_text(count) for count in (7, 26_567, 38_293_608, 2_814_000_000)] == [
        "7",
        "26.57 k",
        "38.29 M",
        "2.81 G",
    ]


def test_table_and_rows() -> None:
    entries = catalog("resmlp_s12_p8")
    assert catalog_table(entries).row_count == 1
    (row,) = catalog_rows(entries)
    assert row["img_size"] == (224, 224)
    assert "tags" not in row
