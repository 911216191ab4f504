"""A language of the report: its texts by key, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from talos_ray.templates import readable


@dataclass(frozen=True)
class Words:
    """`Words(texts)("gain", before=...)` is the text of that key with its places filled in, as HTML: the texts are
    ours, and what is filled in is escaped. `Words(texts).plain("gain", ...)` is the same for what is no page."""

    texts: Mapping[str, str]

    def __call__(self, key: str, /, **values: object) -> Markup:
        shown = {name: readable(value) for name, value in values.items()}
        return Markup(self.texts[key]).format(**shown)

    def plain(self, key: str, /, **values: object) -> str:
        return self.texts[key].format(**values)
