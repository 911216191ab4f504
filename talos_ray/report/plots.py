"""Plots as inline SVG, whose colours come from the page's own text colour, so that they work in light and dark; some
also as figures, for who calls from Python.

Without pyplot, which would keep every figure and change what a notebook shows by itself."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from talos_ray.shown import plain_lines
from talos_ray.storage.version import Candidate, Negation, ShortRun, TaskScores, TensorChange, Version

MOST_TASKS = 40  # in one plot: of more, nobody could read the names
Item = TypeVar("Item")
Say = Callable[..., str]  # `Words.plain`: matplotlib escapes what it draws

INK = "#123456"  # stands for the page's text colour, and is replaced by it
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.hashsalt": "talos_ray",  # the same plot has the same bytes
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
# What matplotlib says of the size, with what stands between and around it: in either order.
SIZE = re.compile(
    r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"',
)
PALETTE = ("#2a78d6", "#e07b28", "#3a9a5b", "#b0489a", "#8a6d3b", "#c23b3b", "#4aa3a3", "#7a6ad0")


def tasks_shown(version: Version) -> list[str]:
    """The tasks that plots show, in the version's order: all, or MOST_TASKS of many. Control tasks come before others,
    and those with the least gain over the base before those that did well: what went wrong is to be seen."""
    scores = version.scores
    if len(scores) <= MOST_TASKS:
        return list(scores)

    def comes_first(task: str) -> tuple[bool, float]:
        return task not in version.controls, scores[task].merged.value - scores[task].base.value

    chosen = set(sorted(scores, key=comes_first)[:MOST_TASKS])
    return [task for task in scores if task in chosen]


def _style() -> AbstractContextManager[None]:
    settings: Any = STYLE  # matplotlib's types want its own names of the settings, one by one
    return matplotlib.rc_context(settings)


def _svg(figure: Figure, description: str) -> str:
    """A figure as an element of a page. It is closed: matplotlib holds on to every one that is open."""
    out = io.StringIO()
    # Text stays text: the reader's browser has the letters that our font lacks.
    with warnings.catch_warnings(), _style():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = plain_lines(out.getvalue())  # matplotlib escapes what it draws, but for controls
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # The page gives the width and the viewBox the height; with a size of its own a plot would not shrink on a phone.
    text = SIZE.sub(_without_size, text, count=1)
    # Who hears the page is told what is seen.
    label = html.escape(description)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _without_size(tag: re.Match[str]) -> str:
    rest = tag.group(1) or (tag.group(2) or "") + (tag.group(3) or "")
    return f"<svg {rest}"


def _axes(height: float, title_x: str, title_y: str) -> tuple[Figure, Axes]:
    """A figure of the page's width, `height` inches high."""
    with _style():
        figure = Figure(figsize=(7, height))
        axes = figure.subplots()
    axes.set_xlabel(title_x)
    axes.set_ylabel(title_y)
    return figure, axes


def _legend(axes: Axes, columns: int = 4) -> None:
    # Above the plot, where it covers no point.
    legend = axes.legend(frameon=False, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for text in legend.get_texts():
        text.set_color(INK)


def _colored(items: Iterable[Item]) -> Iterator[tuple[Item, str]]:
    """Each with its colour. There are more tasks than colours: they begin anew."""
    return zip(items, cycle(PALETTE), strict=False)


def _middles(count: int) -> list[float]:
    """Where a map's cells have their names."""
    return [place + 0.5 for place in range(count)]


def mask_by_tensor(density: Mapping[str, float], w: Say) -> str:
    """Share of masked weights in every tensor that could hold some."""
    return _bars(density, w("share_may_change"), w("mask_plot"), 1.0)


def impact(tensors: Mapping[str, TensorChange], w: Say) -> str:
    """Norm of the change over norm of the base, in every tensor that changed."""
    lengths = {name: tensor.relative for name, tensor in tensors.items()}
    return _bars(lengths, w("impact_axis"), w("impact_plot"))


def _bars(values: Mapping[str, float], title_x: str, description: str, limit: float | None = None) -> str:
    places = range(len(values))
    figure, axes = _axes(max(2.0, 0.16 * len(values)), title_x, "")
    axes.barh(places, list(values.values()), color=PALETTE[0])
    axes.set_yticks(places, list(values), fontsize=6)
    axes.invert_yaxis()  # the first tensor on top, as one reads
    axes.set_xlim(0, limit)
    return _svg(figure, description)


def drift(versions: Sequence[Version], w: Say) -> str:
    """Test accuracy of the tasks over versions; control tasks are dashed."""
    figure, axes = _axes(3.0, w("version"), w("accuracy_test"))
    # Every task that a version was ever scored on and that plots of it show, in the order in which they came.
    tasks = dict.fromkeys(task for version in versions for task in tasks_shown(version))
    for task, color in _colored(tasks):
        scored = [version for version in versions if task in version.scores]
        points = [(version.number, version.scores[task].merged.value) for version in scored]
        style = "o--" if task in versions[-1].controls else "o-"
        axes.plot(*zip(*points, strict=True), style, label=task, color=color, markersize=3, linewidth=1.2)
    axes.set_xticks([version.number for version in versions if version.number is not None])
    axes.set_ylim(0, 1)
    _legend(axes)
    return _svg(figure, w("drift_plot"))


def stability(points: Sequence[Mapping[str, float]], w: Say) -> str:
    """Overlap of successive estimates of the mask as samples arrive, one line a round."""
    figure, axes = _axes(2.4, w("waves"), w("overlap_before"))
    rounds = sorted({point["round"] for point in points})
    for number, color in _colored(rounds):
        of_round = [point for point in points if point["round"] == number]
        waves = [point["wave"] for point in of_round]
        overlaps = [point["overlap"] for point in of_round]
        axes.plot(waves, overlaps, "o-", label=w("round", n=number), color=color, markersize=3)
    axes.set_ylim(0, 1.02)  # a dot at 1 is seen whole
    _legend(axes)
    return _svg(figure, w("stability_plot"))


def training_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    w: Say,
    description: str | None = None,
    looks: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> str:
    """Loss by step of every task: task -> [step, loss]; dashed those of `looks`, on validation data, of which the
    least is marked."""
    figure, axes = _axes(3.2, w("step"), w("loss"))
    for (task, curve), color in _colored(curves.items()):
        # One without a curve, because it was brought in, takes its colour all the same: others keep theirs.
        if curve:
            steps = [point[0] for point in curve]
            losses = [point[1] for point in curve]
            axes.plot(steps, losses, label=task, color=color, linewidth=1.2)
        if looks and looks.get(task):
            steps = [point[0] for point in looks[task]]
            losses = [point[1] for point in looks[task]]
            best = losses.index(min(losses))
            axes.plot(steps, losses, "--", color=color, linewidth=1.2)
            axes.plot(steps[best], losses[best], "o", color=color, markersize=4)
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _svg(figure, description or w("training_plot"))


def candidates(arms: Mapping[str, Sequence[Candidate]], w: Say) -> str:
    """Objective of every candidate by its mean coefficient; those that let a control task fall are hollow, on the
    ground line."""
    figure, axes = _axes(2.8, w("mean_coefficient"), w("normalized_validation"))
    for (arm, tried), color in zip(arms.items(), PALETTE, strict=False):
        whole = [candidate for candidate in tried if candidate.whole]
        points = [(_mean_coefficient(candidate), candidate.objective) for candidate in whole]
        held = [(x, y) for x, y in points if y >= 0]
        if held:
            axes.plot(*zip(*held, strict=True), "o", label=arm, color=color, markersize=4)
        # Below zero an objective says that a control task falls. It is no accuracy to be compared.
        fallen = [x for x, y in points if y < 0]
        if fallen:
            axes.plot(fallen, [0.0] * len(fallen), "o", color=color, markersize=4, fillstyle="none")
    axes.set_ylim(bottom=-0.03)
    _legend(axes)
    return _svg(figure, w("search_plot"))


def _mean_coefficient(candidate: Candidate) -> float:
    coefficients = candidate.coefficients.values()
    return sum(coefficients) / max(1, len(coefficients))


def heatmap(
    cells: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title_x: str,
    title_y: str,
    description: str,
) -> str:
    """Shares in [0, 1], each with its figure. `cells`: [rows][columns]."""
    return _svg(heatmap_figure(cells, rows, columns, title_x, title_y), description)


def heatmap_figure(
    cells: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title_x: str, title_y: str
) -> Figure:
    figure, axes = _axes(max(2.2, 0.4 * len(rows)), title_x, title_y)
    # The darkest cell is the largest share that there is; where there is none, all are light.
    top = max(0.01, *(share for row in cells for share in row))
    axes.pcolormesh(cells, cmap="Blues", vmin=0, vmax=top, edgecolors=INK, linewidth=0.3)
    for y, row in enumerate(cells):
        for x, share in enumerate(row):
            color = "#ffffff" if share > 0.6 * top else "#102030"  # on the cell's blue, in light and dark alike
            axes.text(x + 0.5, y + 0.5, f"{share:.1%}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(_middles(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(_middles(len(rows)), rows)
    axes.invert_yaxis()
    return figure


def coefficients(rows: Mapping[str, Mapping[str, float]], w: Say) -> str:
    """Mean coefficient of every task in every tensor: a map, blue above zero and red below."""
    return _svg(coefficients_figure(rows, w), w("learned_plot"))


def coefficients_figure(rows: Mapping[str, Mapping[str, float]], w: Say) -> Figure:
    tensors = list(next(iter(rows.values())))
    figure, axes = _axes(max(2.2, 0.16 * len(tensors)), "", w("tensor"))
    cells = [[rows[task][name] for task in rows] for name in tensors]
    # Zero is white only where the scale reaches as far below as above.
    largest = max(1e-6, *(abs(value) for row in cells for value in row))
    mesh = axes.pcolormesh(cells, cmap="RdBu", vmin=-largest, vmax=largest)
    axes.set_xticks(_middles(len(rows)), list(rows), rotation=30, ha="right")
    axes.set_yticks(_middles(len(tensors)), tensors, fontsize=7.5)
    axes.invert_yaxis()
    with _style():
        figure.colorbar(mesh, ax=axes, label=w("coefficient"))
    return figure


def trade_off(tried: Sequence[ShortRun], w: Say) -> str:
    """Merged and single-task validation accuracy of every short run, by the share of weights that may change."""
    figure, axes = _axes(3.0, w("share_may_change"), w("accuracy_validation"))
    by_kind: dict[str, list[ShortRun]] = {}
    for run in tried:
        kind = f"{run.setting.strategy} {run.setting.granularity}"
        by_kind.setdefault(kind, []).append(run)
    for (kind, runs), color in _colored(by_kind.items()):
        held = [(run.setting.keep, run.merged) for run in runs if run.held]
        if held:
            axes.plot(*zip(*held, strict=True), "o", color=color, fillstyle="full", label=kind, markersize=5)
        fallen = [(run.setting.keep, run.merged) for run in runs if not run.held]
        if fallen:
            axes.plot(*zip(*fallen, strict=True), "o", color=color, fillstyle="none", markersize=5)
        shares = [run.setting.keep for run in runs]
        singles = [run.single for run in runs]
        axes.plot(shares, singles, "_", color=color, markersize=9)
    # Shares are tried by factors, and each is named: a logarithm's own ticks would name others.
    axes.set_xscale("log")
    ticks = sorted({run.setting.keep for run in tried})
    axes.set_xticks(ticks, [f"{share:.0%}" for share in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _legend(axes, 2)
    return _svg(figure, w("trade_off_plot"))


def negation(forgetting: Negation, w: Say) -> str:
    """Accuracy of the task that is forgotten, and the share that the worst of the others keeps, by pressure; by
    coefficient in versions of earlier releases."""
    curve = forgetting.curve
    by = "pressure" if curve[0].pressure is not None else "coefficient"
    figure, axes = _axes(2.8, w(by), w("accuracy_kept"))
    strengths = [getattr(attempt, by) for attempt in curve]
    accuracies = [attempt.target for attempt in curve]
    shares = [attempt.kept for attempt in curve]
    axes.plot(strengths, accuracies, "o-", label=forgetting.task, color=PALETTE[5], markersize=3)
    axes.plot(strengths, shares, "o-", label=w("kept_least"), color=PALETTE[2], markersize=3)
    # In the colour of what they bound: what the others had to keep, and chance for the task.
    axes.axhline(forgetting.keep, color=PALETTE[2], linewidth=0.8, linestyle="--")
    axes.axhline(forgetting.chance, color=PALETTE[5], linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _svg(figure, w("negation_plot"))


def scores(rows: Mapping[str, TaskScores], w: Say) -> str:
    """Base, merged and single-task accuracy of every task, with 95 % intervals."""
    return _svg(scores_figure(rows, w), w("scores_plot"))


def scores_figure(rows: Mapping[str, TaskScores], w: Say) -> Figure:
    places = range(len(rows))
    figure, axes = _axes(max(2.0, 0.42 * len(rows)), w("accuracy_test"), "")
    models = {"base": PALETTE[4], "merged": PALETTE[0], "single": PALETTE[2]}
    for offset, (model, color) in enumerate(models.items()):
        by_place = dict(zip(places, (getattr(task, model) for task in rows.values()), strict=True))
        measured = {place: score for place, score in by_place.items() if score is not None}
        # Wilson's interval holds the accuracy, but for the last digit of a float; matplotlib takes no negative length.
        below = [max(0.0, score.value - score.low) for score in measured.values()]
        above = [max(0.0, score.high - score.value) for score in measured.values()]
        axes.errorbar(
            x=[score.value for score in measured.values()],
            y=[place + 0.22 * (offset - 1) for place in measured],  # beside one another within a task's row
            xerr=[below, above],
            fmt="o",
            label=w(model),
            color=color,
            markersize=4,
            linewidth=1,
        )
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    _legend(axes)
    return figure
