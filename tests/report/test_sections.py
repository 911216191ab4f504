"""The page shows every section that there can be, in both languages, and whatever is filled in does nothing there."""

import html
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jinja2 import UndefinedError

from talos_ray.core.paired import Answers
from talos_ray.report import plots
from talos_ray.report.page import render
from talos_ray.report.words import LANGUAGES, words_of
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version
from talos_ray.templates import template

RELEASE_0_1 = Path(__file__).parents[1] / "storage/release_0_1.tar.gz"
NASTY = "<script>alert('\"')</script> {{ 7*7 }} {% raw %} {x} \x1b"
# In the page's order.
SECTIONS = (
    *(
        "scores",
        "by_class",
        "gate",
        "watched",
        "negation",
        "dense",
        "choice",
        "impact",
        "robustness",
        "drift",
        "search",
    ),
    *("learned", "xi", "training", "mask", "took", "facts"),
)


def score(value: float) -> dict:
    return {"value": value, "n": 100, "low": value - 0.05, "high": value + 0.05}


def scores() -> dict:
    models = ("base", "merged", "single", "probe", "merged_words")
    return {model: score(0.5) for model in models}


def everything() -> Version:
    """A version with all that a version can have; its second target and its forgotten task have hostile names."""
    search = {
        "candidates": [{"objective": 0.5, "coefficients": {"t": 0.5}}],
        "methods": {"linear": 0.5, "ties": 0.25},
        "granularities": {"row": 0.5, NASTY: 0.25},
        "by_tensor": {"t": {"w": 0.5}, NASTY: {"w": 0.25}},
        "curve": [[1, 2.0], [2, 1.0]],
        "teacher": "labels",
        "pressure": 2.0,
        "disentanglement": {"tasks": ["t", NASTY], "pairs": [[0, 0.1], [0.2, 0]], "together": {"t": 0.1, NASTY: 0.25}},
    }
    asked = {
        "kind": "target_keep",
        "what": "",
        "task": NASTY,
        "wanted": 0.9,
        "value": 0.8,
        "low": 0.7,
        "high": 0.95,
        "n": 9,
    }
    open_ended = {**asked, "result": "not enough data to tell", "more": 1234}
    setting = {"strategy": NASTY, "granularity": "row", "keep": 0.1, "lr": 0.5}
    run = {
        "setting": setting,
        "share": 0.1,
        "work": 0.5,
        "held": True,
        "single": 0.5,
        "merged": 0.4,
        "error": 0.1,
        "control": None,
    }
    knows = {"predicted": [1, 3], "labels": [2, 2], "probe": score(0.9), "retrained": score(0.8)}
    arm = {
        "coefficients": {"t": 0.5},
        "scores": {"t": scores(), NASTY: scores(), "c": scores()},
        "summary": {
            **dict.fromkeys(("zero_shot", "merged", "single", "normalized"), 0.5),
            "control_kept": {"c": 0.99},
            "intervals": {mean: [0.4, 0.6] for mean in ("zero_shot", "merged", "gain")},
        },
        "search": search,
        "cost": {"train_seconds": 1.0, "state_bytes": 1, "delta_bytes": 1, "weights_changed": 12345},
    }
    return Version.of(
        {
            **arm,
            **{"version": 1, "kind": "negation", "model": "m", "deltas": {"t": "d"}, "baseline": arm, "seconds": 9.0},
            **{"targets": ["t", NASTY], "controls": ["c"], "forgotten": [NASTY], "looks": {"t": 2}},
            "learned": {"file": "f", "granularity": "row", "count": 1000, "heads": [NASTY]},
            "impact": {"tensors": {"w": {"changed": 5, "weights": 9, "relative": 0.1}}, "flipped": {NASTY: 0.5}},
            "gate": {"result": "fail", "checks": [{**asked, "result": "fail"}, open_ended, {**open_ended, "most": 56789}], "settings": {}},
            "negation": {
                **{"task": NASTY, "keep": 0.95, "chance": 0.5, "classes": ["a", NASTY], "retrained_steps": 5},
                "curve": [{"pressure": 1.0, "target": 0.5, "kept": 0.9}],
                "beyond": {"base": knows, "before": knows, "now": {**knows, "predicted": [4, 0]}},
            },
            "choice": {"asked": {"auto": {"tolerance": 2.0}}, "chosen": setting, "tried": [{**run, "held": False, "merged": 0.9}, run], "seconds": 7.0},
            "stages": {"seconds": {"train": 5.0}, "slots": {"train": 2}, "first_step": 1.5},
        }
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> RunFolder:
    """Of a run in which an edit was brought in, and of whose mask all is known that can be."""
    with tarfile.open(RELEASE_0_1) as packed:
        packed.extractall(tmp_path, filter="data")
    found = RunFolder(str(tmp_path / "release_0_1"))
    about = {"strategy": NASTY, "stability": [{"round": 0, "wave": 1, "overlap": 0.5}], "overlap": {NASTY: 0.25}}
    mask = SimpleNamespace(k=12345, layout=SimpleNamespace(total=23456), density=lambda: {NASTY: 0.5}, info=about)
    edit = {"imported": NASTY, "lost": 0.125, "curve": [[1, 2.0], [2, 1.0]]}
    monkeypatch.setattr(found, "load_mask", lambda base: mask)
    monkeypatch.setattr(found, "delta_info", lambda task, mark: edit)
    monkeypatch.setattr(found, "load_heads", lambda: ({}, {"t": ["left", NASTY]}))
    return found


def everything_shown(folder: RunFolder, language: str) -> str:
    events = [
        {
            "data": NASTY,
            "task": "t",
            "time": "2026-01-02T03:04:05",
            "gate": "pass",
            "scores": {"base": score(0.5), "now": score(0.75)},
        }
    ]
    corrupted = {
        "t": {"none": {"base": score(0.8), "merged": score(0.8)}, NASTY: {"base": score(0.4), "merged": score(0.6)}}
    }
    labels = torch.tensor([0, 0, 1, 1])
    answers = Answers({"t": torch.tensor([0, 1, 1, 1])}, {"t": labels}, {"t": "x"}, {"t": torch.full((4,), 0.75)})
    info = {**folder.info(), "software": {NASTY: NASTY}}
    approved = {"by": NASTY, "reason": NASTY}
    rendered = render(
        folder, info, everything(), approved, corrupted, language=language, watched=events, answers=answers
    )
    return rendered["html"].decode()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_section_is_there_and_hostile_names_are_letters(folder, language):
    shown = everything_shown(folder, language)
    w = words_of(language)
    headings = [html.unescape(text) for text in re.findall("<h[23]>(.*?)</h[23]>", shown)]
    assert headings == [w.plain(key, task=NASTY.replace("\x1b", r"\x1b")) for key in SECTIONS]
    assert shown.count("<svg") == 12
    assert "<script" not in shown and "\x1b" not in shown
    assert shown.count("&lt;script&gt;") > 20 and "{{ 7*7 }} {% raw %} {x} \\x1b" in shown


def test_figures_are_those_of_the_version(folder, monkeypatch):
    for name in ("scores", "negation", "trade_off", "impact", "drift", "candidates", "coefficients", "training_curves", "heatmap", "mask_by_tensor", "stability"):  # fmt: skip
        monkeypatch.setattr(plots, name, lambda *given, **named: "<svg></svg>")
    rows = re.findall("<tr>(.*?)</tr>", everything_shown(folder, "en"), re.DOTALL)
    cells = [[re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)] for row in rows]
    half = "0.500 0.450-0.550"
    assert ["t", "target", half, f"{half} look 2", "+0.000", half, half, half, "0.50", "100"] in cells
    assert [
        "mean over targets",
        "",
        "0.500 0.400-0.600",
        "0.500 0.400-0.600",
        "+0.000 0.400-0.600",
        "0.500",
        "",
        "",
        "",
        "",
    ] in cells
    assert ["left", "2", "50.0%", "100.0%", html.escape(NASTY.replace("\x1b", r"\x1b")).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") + " (1)"] in cells  # fmt: skip
    results = [row[-1] for row in cells if row and row[1:2] == ["0.900"]]
    assert results == ["fail", "not enough data to tell, 1,234 more inputs needed, or many times as many", "not enough data to tell, 1,234 to 56,789 more inputs needed"]  # fmt: skip
    assert ["a", "2", "1", "1", "4"] in cells
    assert ["weights that may change", "12,345", "12,345"] in cells
    assert [row[6] for row in cells if len(row) == 10 and "&times;" in row[3]] == [
        "0.400 &plusmn; 0.100",
        "0.900 &plusmn; 0.100",
    ]
    assert ["train", "5.0 s", "2"] in cells


def test_a_template_refuses_what_nobody_gave_it():
    with pytest.raises(UndefinedError, match="'language' is undefined"):
        template("talos_ray.report", "page.html.jinja").render()
