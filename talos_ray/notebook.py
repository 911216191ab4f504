"""What a notebook shows of a run: tables, which Jupyter asks objects for, and plots as matplotlib's figures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from talos_ray.errors import TalosError
from talos_ray.storage.version import TaskScores, Version
from talos_ray.templates import template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("base", "probe", "single", "merged")  # of a task's scores, as the README's table has them


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As HTML; whatever is in it is shown as what it is."""
    page = template("talos_ray.report", "table.html.jinja")
    return page.render(caption=caption, head=head, rows=rows)


def scores_table(version: Version, caption: str) -> str:
    """Test scores of a version, a row a task."""
    rows = []
    for task, scores in version.scores.items():
        rows.append([task, version.kind_of(task), version.coefficient_of(task), *_values(scores)])
    return table(caption, ["task", "kind", "coefficient", *KINDS], rows)


def _values(scores: TaskScores) -> list[str]:
    measured = scores.measured()
    return [f"{measured[kind].value:.3f}" if kind in measured else "" for kind in KINDS]


def show_versions() -> None:
    """In a notebook, versions are tables, too. They say so to IPython from here, because what is stored knows nothing
    of how it is shown."""
    ipython = sys.modules.get("IPython")  # there already, where somebody looks at objects through it
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        pages = shell.display_formatter.formatters["text/html"]
        pages.for_type(Version, lambda version: scores_table(version, f"Version {version.number}, {version.kind}"))


def run_page(path: str, head: int, versions: Sequence[Version]) -> str:
    """All versions of a run, oldest first, and the scores of the one in force."""
    rows = []
    for version in versions:
        mean = version.summary.merged
        state = "head" if version.number == head else "" if version.passes else "its gate does not hold"
        rows.append([str(version.number), version.kind, "" if mean is None else f"{mean:.3f}", state])
    all_versions = table(f"Run {path}", ["version", "kind", "mean of targets", "state"], rows)
    in_force = next(version for version in versions if version.number == head)
    return all_versions + scores_table(in_force, f"Version {head}, in force")


class Diff(dict[str, Any]):
    """How two versions differ: a dict, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows = []
        for task, change in self["tasks"].items():
            shares = [f"{change['before']:.3f}", f"{change['after']:.3f}"]
            counts = [str(change["won"]), str(change["lost"]), str(change["n"])]
            rows.append([task, *shares, *counts, f"{change['p']:.2g}"])
        before, after = self["versions"]
        head = ["task", "before", "after", "became right", "became wrong", "inputs", "p (McNemar)"]
        return table(f"Version {before} to {after}", head, rows)


class Plots:
    """Plots of a run, each of the version in force if none is named, as figures that belong to nobody: show them,
    `savefig` them, or change them. Of many tasks they show those that the report's do (`plots.tasks_shown`).

    Args:
        load: gives a version by its number, the one in force for None.
    """

    def __init__(self, load: Callable[[int | None], Version]) -> None:
        self._load = load

    def scores(self, version: int | None = None) -> Figure:
        """Base, merged and single-task test accuracy of every task, with 95 % intervals.

        Raises:
            TalosError: no such version, or it was not scored.
        """
        from talos_ray.report import plots

        shown = self._load(version)
        self._check(shown, shown.scores, "scores", "a version that `edit` made")
        rows = {task: shown.scores[task] for task in plots.tasks_shown(shown)}
        return self._white(plots.scores_figure(rows, _words()))

    def coefficients(self, version: int | None = None) -> Figure:
        """Mean coefficient of every task in every tensor: blue above zero, red below.

        Raises:
            TalosError: no such version, or its coefficients were not learned.
        """
        from talos_ray.report import plots

        shown = self._load(version)
        by_tensor = shown.search.by_tensor
        self._check(shown, by_tensor, "learned coefficients", "one whose merge was learned (search.method: learned)")
        columns = {task: by_tensor[task] for task in plots.tasks_shown(shown) if task in by_tensor}
        return self._white(plots.coefficients_figure(columns, _words()))

    def disentanglement(self, version: int | None = None) -> Figure:
        """Share of a task's validation inputs that are answered otherwise once one other task's edit joins: a row a
        task, a column the other.

        Raises:
            TalosError: no such version, or its edits were not looked at in pairs.
        """
        from talos_ray.report import plots

        shown = self._load(version)
        found = shown.search.disentanglement
        self._check(shown, found.pairs, "pairs of edits that were compared", "one that merges several tasks")
        words = _words()
        titles = words("joins"), words("inputs_of")
        return self._white(plots.heatmap_figure(found.pairs or [], found.tasks, found.tasks, *titles))

    @staticmethod
    def _check(version: Version, found: object, what: str, wanted: str) -> None:
        if not found:
            raise TalosError(f"version {version.number} has no {what} to plot; wanted {wanted}; name another version")

    @staticmethod
    def _white(figure: Figure) -> Figure:
        """The report's figures have no ground of their own, and dark letters, which a dark notebook would swallow."""
        figure.set_facecolor("white")
        return figure


def _words() -> Callable[..., str]:
    from talos_ray.report.words import words_of

    plain: Callable[..., str] = words_of("en").plain
    return plain
