"""The pages name files that there are, and the index names all pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md")]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def test_every_link_leads_to_a_file():
    links = [(page, link) for page in PAGES for link in LINK.findall(page.read_text())]
    assert len(links) > 20
    assert [(str(p.relative_to(ROOT)), link) for p, link in links if not (p.parent / link).exists()] == []


def test_the_index_has_every_page():
    named = set(LINK.findall((ROOT / "docs/index.md").read_text()))
    assert {p.name for p in (ROOT / "docs").glob("*.md")} - {"index.md"} <= named


def test_every_file_that_a_page_names_is_there():
    """`talos_ray/…`, `jobs/…`, `tests/…`, `examples/…`, `cluster/…` and `docs/…` in code spans."""
    span = re.compile(r"`(?:python |pytest )?((?:talos_ray|jobs|tests|examples|cluster|docs)/[\w./-]+\.(?:py|md|yaml|json))")
    named = {(p.name, name) for p in PAGES for name in span.findall(p.read_text())}
    assert len(named) > 30
    assert sorted((page, name) for page, name in named if "NAME" not in name and not (ROOT / name).exists()) == []
