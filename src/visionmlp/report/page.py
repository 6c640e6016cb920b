"""One HTML file that tells a run: numbers, figures, configuration, environment, and how to repeat it."""

import base64
import html
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionmlp.engine.run_folder import RunFolder
from visionmlp.files import write_beside
from visionmlp.report.plots import router_curves

_SHOWN_EVALUATIONS = 200

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }}
img {{ max-width: 100%; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }}
th {{ font-weight: 600; color: #555; }} pre {{ background: #f4f4f4; padding: .8rem; overflow-x: auto; }}
.numbers {{ display: flex; gap: 2.5rem; }} .numbers b {{ display: block; font-size: 1.8rem; font-weight: 600; }}
details {{ margin-top: 1rem; }}
</style></head><body>
<h1>{title}</h1>
<div class="numbers">{numbers}</div>
{sections}
</body></html>
"""


def write_page(
    folder: Path,
    *,
    title: str,
    numbers: Mapping[str, str],
    figures: Mapping[str, Path],
    tables: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
) -> Path:
    """Write ``report.html`` into a run folder, from what lies in it; of a model with routed experts ``router.png`` too.

    Args:
        folder: run folder with tables, configuration and environment.
        title: what was trained on what.
        numbers: the results to show large, by name.
        figures: PNG files by heading.
        tables: rows of text by heading, behind the figures.

    Raises:
        RunFolderError: if something cannot be written.
        MissingExtra: if matplotlib is not installed.
    """
    run = RunFolder(folder)
    config, sessions, evaluations = run.read_config(), run.read_sessions(), run.metrics.rows()
    sections = [(heading, embedded(path)) for heading, path in figures.items()]
    if routing := run.router.rows():
        sections.append(("Routers", embedded(router_curves(routing, folder / "router.png"))))
    sections += [(heading, table_of(rows)) for heading, rows in (tables or {}).items()]
    sections.append(("Evaluations", _table(evaluations[-_SHOWN_EVALUATIONS:])))
    if run.bad_images.exists():
        text = run.bad_images.read_text(encoding="utf-8", errors="replace")  # of file names that are not UTF-8
        count = text.count("\n")
        sections.append((f"Images left out: {count}", f"<pre>{html.escape(text)}</pre>"))
    sections += [
        ("Configuration", _pairs(config)),
        ("Environment", "".join(_pairs(session) for session in sessions)),
        ("How to reproduce", _reproduction(sessions)),
    ]
    path = folder / "report.html"
    # class names are those of folders, not always UTF-8
    write_beside(path, page(title=title, numbers=numbers, sections=sections).encode(errors="backslashreplace"))
    return path


def page(*, title: str, numbers: Mapping[str, str], sections: Sequence[tuple[str, str]]) -> str:
    """A page of headings and their HTML."""
    return _PAGE.format(
        title=html.escape(title),
        numbers="".join(f"<div>{name}<b>{value}</b></div>" for name, value in numbers.items()),
        sections="".join(f"<h2>{heading}</h2>{body}" for heading, body in sections),
    )


def embedded(path: Path) -> str:
    """A PNG file within the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{path.stem}" src="data:image/png;base64,{data}">'


def _table(rows: Sequence[Mapping[str, float]]) -> str:
    names = list(rows[0])
    return table_of([{name: f"{row[name]:.6g}" if name in row else "" for name in names} for row in rows])


def table_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of text with the same columns."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _pairs(values: Mapping[str, Any]) -> str:
    rows = []
    for name, value in values.items():
        text = _pairs(value) if isinstance(value, dict) and value else html.escape(str(value))
        rows.append(f"<tr><th>{html.escape(name)}</th><td>{text}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _reproduction(sessions: Sequence[Mapping[str, Any]]) -> str:
    if not sessions:
        return "<p>The environment was not recorded.</p>"
    first = sessions[0]
    lines = [f"# {name} {version}" for name, version in first["versions"].items()]
    if first["git"]:
        state = "with uncommitted changes" if first["git"]["dirty"] else "clean"
        lines.append(f"# git commit {first['git']['commit']}, {state}")
    program, *arguments = first["command"]
    # an installed script or python -m visionmlp; a program of the user's own stays as it is
    ours = Path(program).stem == "visionmlp" or Path(program).parts[-2:] == ("visionmlp", "__main__.py")
    lines.append(shlex.join(["visionmlp" if ours else program, *arguments]))
    if len(sessions) > 1:
        lines.append(f"# was interrupted and resumed {len(sessions) - 1} times, which changes nothing in the result")
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
