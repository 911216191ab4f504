"""The site that `make docs` makes of docs/: whole, without a link that leads nowhere, and without another server."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import talos_ray

pytest.importorskip("mkdocstrings", reason="the site is made where talos_ray[docs] is installed")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(where)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return where


class Page(HTMLParser):
    """What a page links to and loads, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.places |= {value for key, value in attributes if key in ("id", "name") and value}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        loads = tag in ("script", "img") or (tag == "link" and found.get("rel") in ("stylesheet", "icon"))
        source = found.get("src") or found.get("href")
        if loads and source:
            self.loaded.append(source)


def test_every_page_is_there_and_no_link_leads_nowhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}  # which lies at any depth
    named = {path.parent.relative_to(site).as_posix() for path in pages}
    assert {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"} <= named
    assert {"CONTRIBUTING", "cluster"} <= named and (site / "examples/first_edit.ipynb").is_file()
    lost = []
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                to.fragment and target in pages and unquote(to.fragment) not in pages[target].places
            ):
                lost.append((path.relative_to(site).as_posix(), link))
    assert len(pages) > 15 and lost == []


def test_nothing_is_loaded_from_another_server(site):
    loaded = [(path.name, source) for path in site.rglob("*.html") for source in Page(path).loaded]
    assert len(loaded) > 20 and [(name, source) for name, source in loaded if urlsplit(source).netloc] == []


def test_the_reference_has_all_of_the_public_interface(site):
    places = Page(site / "reference/index.html").places
    wanted = {f"talos_ray.{home}.{name}" for name, home in talos_ray._HOME.items()}
    assert wanted <= places and "talos_ray.api.Run.rollback" in places
