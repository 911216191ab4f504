"""The languages of the report say the same things, with the same figures."""

import re
from pathlib import Path
from string import Formatter

import pytest

from talos_ray import SpecError, report
from talos_ray.report.words import words_of
from talos_ray.trust import dossier
from talos_ray.trust.dossier import STAND_INS

ENGLISH = words_of("en").texts
JAPANESE = words_of("ja").texts


def places(text: str) -> list[tuple[str, str]]:
    return sorted((name, form) for _, name, form, _ in Formatter().parse(text) if name)


def test_both_languages_have_every_text_with_the_same_figures():
    assert list(ENGLISH) == list(JAPANESE)
    for key, text in ENGLISH.items():
        assert places(text) == places(JAPANESE[key]), key
        assert re.findall("<code>.*?</code>", text) == re.findall("<code>.*?</code>", JAPANESE[key]), key
    assert all(re.search("[ぁ-んァ-ヶ一-龠]", t) for t in JAPANESE.values() if re.search("[a-z]{3}", t))


def test_no_text_is_without_use():
    home = Path(report.__file__).parent
    source = "".join(p.read_text() for p in (*home.glob("p*.py"), *home.glob("templates/*.jinja")))
    facts = Path(dossier.__file__).read_text()
    composed = {
        "next_hold",
        "next_open",
        "next_pass",
        "control_keep",
        "target_keep",
        "target_gain",
        "disentanglement",
        "target",
        "control",
        "other",
        *(f"by_{granularity}" for granularity in ("task", "group", "tensor", "row")),
        *(f"teacher_{teacher}" for teacher in ("edits", "labels", "both")),
        *(f"limit_{limit}" for limit in ("unreachable", "changed", *re.findall(r'"limit": "(\w+)"', facts))),
        *(f"stage_{stage}" for stage in ("choice", "calibration", "training", "merge", "scoring")),
        *(f"stand_in_{name}" for name in STAND_INS),
        *(f"data_{state}" for state in ("as_recorded", "changed", "unreachable")),
        *(f"data_of_{part}" for part in ("train", "validation", "test")),
    }
    assert [k for k in ENGLISH if not re.search(f"['\"]{k}['\"]", source) and k not in composed] == []


def test_another_language_is_refused():
    with pytest.raises(SpecError, match=r"language 'jp' is not known \(did you mean 'ja'\?\); wanted one of: en, ja"):
        words_of("jp")
