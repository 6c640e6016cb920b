"""What the site has beside the pages in docs/: README as home, the project's own pages, the examples, the API.

MkDocs calls this (``hooks`` in mkdocs.yml). Pages on a code host link to files; here such a link leads to the page that
shows the file, and to nothing where there is none.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "visionmlp"
ROOMS = ("models", "layers", "heads", "data", "deploy", "tasks", "engine")
PROJECT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages at the root of the repository, and where they stand in the site."""
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> None:
    """Add what is made here to the navigation."""
    rooms = [{room: [_api_page(module) for module in _modules(room)]} for room in ROOMS]
    assert config.nav is not None
    config.nav += [
        {"Examples": ["examples/index.md", *(f"examples/{file.stem}.md" for file in EXAMPLES)]},
        {"API": [{"Public names": "api/index.md"}, *rooms]},
        {"Project": [page for page in PROJECT.values() if page != "index.md"]},
    ]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages themselves."""
    pages = {page: (ROOT / name).read_text() for name, page in PROJECT.items()}
    pages["examples/index.md"] = _examples_overview()
    pages |= {f"examples/{file.stem}.md": _example(file) for file in EXAMPLES}
    names = (_directive(f"visionmlp.{name}", heading_level=2) for name in _public_names())
    pages["api/index.md"] = "\n\n".join(["# Public names", *names])
    for room in ROOMS:
        for module in _modules(room):
            pages[_api_page(module)] = (
                f"---\ntitle: {_short(module)}\n---\n\n::: {module}\n    options:\n      heading_level: 1\n"
            )
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the repository to their pages."""
    del config
    place = page.file.src_uri
    source = next((name for name, made in PROJECT.items() if made == place), f"docs/{place}")

    def replaced(link: re.Match[str]) -> str:
        text, target = link.groups()
        path, mark, anchor = target.partition("#")
        if "://" in target or not path:
            return link[0]
        found = _page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), files)
        if found is None:
            return text
        return f"[{text}]({posixpath.relpath(found, posixpath.dirname(place) or '.')}{mark}{anchor})"

    return _LINK.sub(replaced, markdown)


def _page_of(path: str, files: Files) -> str | None:
    """The page or file of the site that shows a file or folder of the repository."""
    file = Path(path)
    if path in PROJECT:
        return PROJECT[path]
    if file.parts[0] == "examples":
        return f"examples/{file.stem}.md" if file.suffix else "examples/index.md"
    if path.startswith("src/visionmlp/") and file.suffix == ".py":
        page = _api_page(".".join(file.with_suffix("").parts[1:]))
        return page if files.get_file_from_path(page) else None
    inside = posixpath.relpath(path, "docs")
    candidates = (inside, f"{inside}/README.md")
    return next((name for name in candidates if files.get_file_from_path(name)), None)


def _examples_overview() -> str:
    rows = [f"| [{file.name}]({file.name}) | {_docstring(file).splitlines()[0]} |" for file in EXAMPLES]
    return "\n".join(
        ["# Examples", "", "Each is one file, and each is run by the tests.", "", "| | |", "|---|---|", *rows]
    )


def _example(file: Path) -> str:
    first, _, rest = _docstring(file).partition("\n")
    code = file.read_text().split('"""', 2)[2].strip()
    return f"---\ntitle: {file.stem}\n---\n\n# {file.name}\n\n{first}\n{rest}\n\n```python\n{code}\n```\n"


def _docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def _public_names() -> list[str]:
    """``__all__``, without importing the package."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise ValueError("visionmlp has no __all__")


def _directive(name: str, *, heading_level: int) -> str:
    """What mkdocstrings fills in."""
    full_path = str(heading_level == 1).lower()
    options = f"    options:\n      heading_level: {heading_level}\n      show_root_full_path: {full_path}"
    return f"::: {name}\n{options}"


def _modules(room: str) -> list[str]:
    """Dotted names of the modules of a package, those of packages in it last."""
    files = sorted((PACKAGE / room).rglob("*.py"), key=lambda file: (len(file.parts), file))
    names = [file.relative_to(PACKAGE.parent).with_suffix("").parts for file in files if file.name[0] != "_"]
    return [".".join(parts) for parts in names]


def _api_page(module: str) -> str:
    return f"api/{'/'.join(module.split('.')[1:])}.md"


def _short(module: str) -> str:
    """The name within its room."""
    return ".".join(module.split(".")[2:])
