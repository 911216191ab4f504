"""Where people look: tables and figures in a notebook, and TensorBoard."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from recorded import add_version, made
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from talos_ray import SpecError, TalosError, open_run
from talos_ray.core.delta import Delta
from talos_ray.notebook import Diff
from talos_ray.storage.version import Version

EVIL = "<script>alert(1)</script>"


def score(value: float) -> dict:
    return {"value": value, "n": 40, "low": value - 0.1, "high": value + 0.1}


def scored(number: int, **more) -> Version:
    """A version of two tasks, of which one has a name that would run in a page."""
    scores = {
        task: {"base": score(0.25), "single": score(0.75), "merged": score(0.5 + 0.125 * number)}
        for task in ("a", EVIL)
    }
    return Version.model_validate(
        {
            "version": number,
            "kind": "addition",
            "model": "m",
            "targets": ["a", EVIL],
            "coefficients": {"a": 0.5, EVIL: 0.25},
            "scores": scores,
            "summary": {"merged": 0.5 + 0.125 * number},
            **more,
        }
    )


SEARCH = {
    "by_tensor": {"a": {"t1": 0.5, "t2": -0.25}, EVIL: {"t1": 0.125, "t2": 1.0}},
    "disentanglement": {"tasks": ["a", EVIL], "pairs": [[0.0, 0.25], [0.5, 0.0]], "together": {"a": 0.25, EVIL: 0.5}},
    "curve": [[0, 2.0], [5, 1.0]],
}


class Cells(HTMLParser):
    """Cells of all tables of a page; a tag that is none of ours is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.ended = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        assert tag in ("table", "caption", "thead", "tbody", "tr", "th", "td"), tag
        self.ended = False
        if tag == "tr":
            self.found.append([])
        elif tag in ("td", "th"):
            self.found[-1].append("")

    def handle_data(self, text: str) -> None:
        if self.get_starttag_text() in ("<td>", "<th>") and not self.ended:
            self.found[-1][-1] += text

    def handle_endtag(self, tag: str) -> None:
        self.ended = True


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Version 2 has scores, a learned merge and a task with such a name."""
    run = made(tmp_path_factory.mktemp("run"), "bert")
    old = run.deltas["animals"]
    new = Delta("animals", -old.values, old.base, old.mask, {**old.info, "curve": [[1, 2.0], [4, 1.5]]})
    run.folder.save_delta(new)
    deltas = {**run.version.deltas, "animals": new.fingerprint}
    add_version(run.folder, scored(2, search=SEARCH, deltas=deltas), run.folder.load_answers(1))
    return run


def test_a_run_is_shown_as_tables(run):
    assert run.head == 2
    cells = Cells(run._repr_html_()).found
    assert ["2", "addition", "0.750", "head"] in cells and ["0", "base", "", ""] in cells
    assert ["a", "target", "0.50", "0.250", "", "0.750", "0.750"] in cells
    assert [EVIL, "target", "0.25", "0.250", "", "0.750", "0.750"] in cells


def test_a_diff_is_a_dict_and_shown_as_a_table(run):
    found = run.diff(0, 1)
    assert isinstance(found, dict) and found["versions"] == [0, 1]
    change = found["tasks"]["animals"]
    (row,) = [row for row in Cells(found._repr_html_()).found if row[0] == "animals"]
    assert row[1:6] == [
        f"{change['before']:.3f}",
        f"{change['after']:.3f}",
        str(change["won"]),
        str(change["lost"]),
        str(change["n"]),
    ]
    odd = Diff(found | {"tasks": {EVIL: change}})
    assert Cells(odd._repr_html_()).found[1][0] == EVIL
    assert run.compare(0, 1)[0] == found


def test_a_version_is_shown_as_a_table(run):
    shell = InteractiveShell.instance()
    try:
        version = open_run(run.path).folder.load_version(2)
        shown, _ = shell.display_formatter.format(version)
        assert ["a", "target", "0.50", "0.250", "", "0.750", "0.750"] in Cells(shown["text/html"]).found
    finally:
        InteractiveShell.clear_instance()


def test_plots_are_figures_of_what_is_recorded(run, tmp_path):
    scores, coefficients, entangled = run.plot.scores(), run.plot.coefficients(), run.plot.disentanglement()
    assert all(type(figure) is Figure for figure in (scores, coefficients, entangled))
    (axes,) = scores.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [EVIL, "a"]
    merged = axes.containers[1]
    assert merged.get_label() == "merged" and merged[0].get_xdata().tolist() == [0.75, 0.75]
    mesh = coefficients.axes[0].collections[0]
    assert mesh.get_array().tolist() == [[0.125, 0.5], [1.0, -0.25]]  # a row a tensor, tasks by name
    assert entangled.axes[0].collections[0].get_array().tolist() == [[0.0, 0.25], [0.5, 0.0]]
    scores.savefig(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_plotted_says_why(run):
    with pytest.raises(
        TalosError, match=r"version 1 has no learned coefficients to plot; wanted .*; name another version"
    ):
        run.plot.coefficients(1)
    with pytest.raises(TalosError, match="version 1 has no scores"):
        run.plot.scores(1)
    with pytest.raises(TalosError, match="version 9"):
        run.plot.disentanglement(9)


def test_plotting_leaves_pyplot_alone():
    """A notebook chooses its backend itself, and pyplot keeps what it made until somebody closes it."""
    script = "import sys, talos_ray.report.plots; assert 'matplotlib.figure' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tensorboard_reads_what_is_recorded(run, tmp_path):
    run.tensorboard(tmp_path / "events")
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/a/merged")] == [(2, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("test/merged")] == [(2, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("merge/version_2/loss")] == [(0, 2.0), (5, 1.0)]
    mark = run.version.deltas["animals"][:8]  # the task was trained twice, and once without a curve
    assert [(e.step, e.value) for e in events.Scalars(f"train/animals@{mark}/loss")] == [(1, 2.0), (4, 1.5)]
    assert [tag for tag in events.Tags()["scalars"] if tag.startswith("train/")] == [f"train/animals@{mark}/loss"]
    with pytest.raises(SpecError, match="events"):
        run.tensorboard(tmp_path / "events")


def test_the_page_runs_as_it_stands(run, tmp_path, monkeypatch):
    """docs/integrations.md."""
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "run.plot" in b)
    monkeypatch.chdir(tmp_path)
    exec(block, {"run": run})
    assert EventAccumulator(str(tmp_path / "events")).Reload().Tags()["scalars"]
