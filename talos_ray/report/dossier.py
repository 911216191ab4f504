"""The dossier on a version as a page: `trust.dossier` has the facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from talos_ray.report.page import RESULTS, decision, some
from talos_ray.report.words import Words, words_of
from talos_ray.storage.version import Version
from talos_ray.templates import template


def dossier_page(
    facts: Mapping[str, Any], version: Version, approved: Mapping[str, Any] | None, language: str
) -> bytes:
    """The facts to read and to print: no script, and nothing from another server.

    Raises:
        SpecError: a language that the report does not speak.
    """
    w = words_of(language)
    standing, sentence = decision(version, approved, w)
    page = template("talos_ray.report", "dossier.html.jinja").render(
        w=w,
        language=language,
        facts=facts,
        version=version,
        standing=standing,
        sentence=sentence,
        results=RESULTS,
        limits=[_limit(limit, w) for limit in facts["limits"]],
        power=power,
    )
    return page.encode()


def power(value: float) -> Markup:
    """A large number as its first digits and a power of ten."""
    if not value:
        return Markup("0")
    exponent = math.floor(math.log10(value))
    digits = f"{value / 10**exponent:.3f}"
    if digits == "10.000":  # rounded up
        exponent += 1
        digits = "1.000"
    return Markup(f"{digits}&nbsp;&times;&nbsp;10<sup>{exponent}</sup>")


def _limit(limit: Mapping[str, Any], w: Words) -> Markup:
    values = {name: some(value, w) if isinstance(value, list) else value for name, value in limit.items()}
    kind = values.pop("limit")
    return w(f"limit_{kind}", **values)
