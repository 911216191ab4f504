"""A language of the report: its texts by key, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """`Words(texts)("gain", before=...)` is the text of that key with its places filled in."""

    texts: Mapping[str, str]

    def __call__(self, key: str, /, **values: object) -> str:
        return self.texts[key].format(**values)
