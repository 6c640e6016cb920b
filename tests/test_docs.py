"""Pages: their generated tables are those of the code, their links exist, and their Python runs."""

import re
from pathlib import Path

import pytest

import visionmlp
from visionmlp.errors import DataError
from visionmlp.models.registry import variant
from visionmlp.report.family_pages import draw_influence, field_documentation, fill_page, influence, page_parts

ROOT = Path(__file__).parents[1]
FAMILIES = ROOT / "docs" / "families"
PREFIXES = [name.removesuffix("_test") for name in visionmlp.list_models(test=True)]
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("*.md"))]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_tables_are_those_of_the_code(prefix):
    page = (FAMILIES / f"{prefix}.md").read_text()
    assert fill_page(page, page_parts(prefix)) == page, "run: python docs/build.py --tables"
    assert f"influence_{prefix}.png" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize(
    "page",
    [*(f"families/{prefix}.md" for prefix in PREFIXES), "timm.md", "recipes.md", "scale.md", "tasks/classify.md"],
)
def test_python_on_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- (?:[^:\n]+: )?([\w/]+\.md)$", site, re.MULTILINE)
    made = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert sorted(listed) == sorted(made | {"index.md"})


def test_pages_and_parts_must_agree():
    page = "text\n<!-- generated: a -->\nold\n<!-- end -->\nmore\n"
    assert fill_page(page, {"a": "new"}) == "text\n<!-- generated: a -->\n\nnew\n\n<!-- end -->\nmore\n"
    assert fill_page(fill_page(page, {"a": "new"}), {"a": "new"}) == fill_page(page, {"a": "new"})
    with pytest.raises(DataError, match="has the generated parts a, not b"):
        fill_page(page, {"b": ""})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_field_is_documented(prefix):
    config = type(variant(f"{prefix}_test").config)
    documentation = field_documentation(config)
    assert set(documentation) == set(config.__dataclass_fields__)
    assert all(text.endswith(".") for text in documentation.values())


def test_influence_is_what_moves_the_middle():
    import torch

    kernel = torch.zeros(2, 2, 3, 3)
    kernel[:, :, 1, 2] = 1.0  # the right-hand neighbour
    seen = influence(lambda x: torch.nn.functional.conv2d(x, kernel, padding=1), torch.randn(3, 2, 5, 7))
    assert seen[2, 4] > 0
    assert seen.count_nonzero() == 1


def test_figure_is_drawn(tmp_path):
    from PIL import Image

    width, height = Image.open(draw_influence("resmlp_test", tmp_path / "figure.png")).size
    assert width > 2 * height > 400
