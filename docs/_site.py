"""Hooks of mkdocs: pages that lie beside docs/ in the repository lie in it on the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = (
    "CHANGELOG.md", "CONTRIBUTING.md", "RELEASE.md", "SECURITY.md", "cluster/README.md", "examples/first_edit.ipynb"
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in BESIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead from docs/ to what lies beside it, or back."""
    if page.file.src_uri in BESIDE:
        return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    return re.sub(r"\]\(\.\./", "](", markdown)
