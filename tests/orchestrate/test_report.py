"""The report in a real browser: no complaint, nothing cut off on a phone, and the version's own numbers."""

import re

import pytest

import talos_ray
from talos_ray.report.page import decision
from talos_ray.report.words import words_of

WIDTHS = {"desktop": 1280, "wall": 1920, "phone": 390}
# What is wider than the box that it stands in, so that a part of it is only seen when it is scrolled.
CUT = """return [...document.querySelectorAll('*')].filter(e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1
         && getComputedStyle(e).overflowX != 'visible').map(e => e.className)"""
FOLD = 640  # pixels that a small phone shows of a page before it is scrolled


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    run = talos_ray.open_run(finished[0].path)
    folder = tmp_path_factory.mktemp("pages")
    return run.folder.load_version(1), {
        lang: run.report(folder / f"{lang}.html", 1, language=lang) for lang in ("en", "ja")
    }


def luminance(color: str) -> float:
    """Relative luminance of 'rgb(r, g, b)', as WCAG 2 defines it."""
    shares = [int(c) / 255 for c in re.findall(r"\d+", color)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_opens_offline_and_shows_the_versions_numbers(browser, pages, language, width):
    version, written = pages
    wide = {"width": WIDTHS[width], "height": 900, "deviceScaleFactor": 1, "mobile": width == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wide)
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})  # fmt: skip
    browser.get(written[language].as_uri())
    ask = browser.execute_script
    assert browser.get_log("browser") == []
    assert ask("return performance.getEntriesByType('resource').length") == 0
    assert ask("return document.documentElement.scrollWidth") <= WIDTHS[width]
    assert width == "phone" or ask(CUT) == []
    assert ask("return document.documentElement.lang") == language
    line = "document.querySelector('.decision')"
    assert ask(f"return {line}.innerText") == decision(version, None, words_of(language))[1]
    assert ask(f"return {line}.getBoundingClientRect().bottom") < FOLD
    rows = ask("return [...document.querySelector('tbody').rows].map(r => [...r.cells].map(c => c.innerText))")
    shown = {r[0]: r for r in rows}
    assert set(shown) == set(version.scores)
    for task, s in version.scores.items():
        for cell, kind in ((2, "base"), (3, "merged"), (5, "single")):
            score = getattr(s, kind)
            wanted = [f"{x:.3f}" for x in (score.value, score.low, score.high)] if score is not None else []
            assert re.findall(r"\d\.\d{3}", shown[task][cell]) == wanted
        assert shown[task][-1] == str(s.base.n)
    foot = ask("return [...document.querySelector('tfoot').rows[0].cells].map(c => c.innerText)")
    for cell, name in ((2, "zero_shot"), (3, "merged"), (4, "gain")):
        wanted = [f"{x:.3f}" for x in version.summary.intervals[name]]
        assert all(x in foot[cell] for x in wanted)
    plots = ask("return [...document.querySelectorAll('svg')].map(s => [s.getAttribute('role'), s.getAttribute('aria-label'), s.getBoundingClientRect().height])")  # fmt: skip
    assert len(plots) >= 6 and all(role == "img" and label and height > 100 for role, label, height in plots)
    letters = ask("return [...document.querySelectorAll('svg text')].map(t => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().c, t.getScreenCTM().d))")  # fmt: skip
    assert min(letters) >= 6.5 and sorted(letters)[len(letters) // 2] >= 8  # pixels; names of tensors are the smallest
    assert all(ask("return [...document.querySelectorAll('.wide')].map(d => d.tabIndex)")[i] == 0 for i in (0, 1))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_in_light_and_dark(browser, pages, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(pages[1]["en"].as_uri())
    color = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    ground = luminance(browser.execute_script(color, "body", "backgroundColor"))
    assert (ground < 0.1) == (scheme == "dark")
    for part in ("body", "p.how", ".decision", "td small", "svg text"):
        ink = luminance(browser.execute_script(color, part, "fill" if part == "svg text" else "color"))
        contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert contrast >= 4.5, part  # WCAG 2, level AA
