"""The languages of the report: texts by key, from a file a language, filled in."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from talos_ray.errors import SpecError, nearest
from talos_ray.templates import readable

LANGUAGES = {"en": "english.toml", "ja": "japanese.toml"}  # files in languages/


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


@cache
def words_of(language: str) -> Words:
    """Raises SpecError if the report does not speak it."""
    if language not in LANGUAGES:
        raise SpecError(
            f"language {language!r} is not known{nearest(language, LANGUAGES)}; wanted one of: {', '.join(LANGUAGES)}"
        )
    source = files("talos_ray.report") / "languages" / LANGUAGES[language]
    return Words(tomllib.loads(source.read_text(encoding="utf-8")))
