"""Write the catalog of models, fill in the generated tables of docs/families/*.md and draw their figures.

    python docs/build.py             # catalog, tables and figures
    python docs/build.py --tables    # without figures, which is quick

A new page needs the markers that the others have; tests/test_docs.py finds stale tables.
"""

import argparse
from pathlib import Path

from visionmlp.measure.catalog import CATALOG, write_catalog
from visionmlp.report.family_pages import draw_influence, fill_page, page_parts

DOCS = Path(__file__).parent
# the model whose blocks the figure shows
PAGES = {
    "repmlpnet": "repmlpnet_t224",
    "resmlp": "resmlp_s12",
    "mlpmixer": "mlpmixer_s16",
    "asmlp": "asmlp_t",
    "hiremlp": "hiremlp_t",
    "vip": "vip_s7",
    "cyclemlp": "cyclemlp_b1",
    "dynamixer": "dynamixer_s",
    "sparsemlp_moe": "sparsemlp_moe_s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="leave the figures alone")
    tables_only = parser.parse_args().tables
    write_catalog()  # the pages quote it
    print(CATALOG)
    for prefix, model in PAGES.items():
        page = DOCS / "families" / f"{prefix}.md"
        page.write_text(fill_page(page.read_text(), page_parts(prefix)))
        if not tables_only:
            draw_influence(model, DOCS / "figures" / f"influence_{prefix}.png")
        print(page)


if __name__ == "__main__":
    main()
