"""Plots as inline SVG, whose colours come from the page's own text colour, so that they work in light and dark; some
also as figures, for who calls from Python.

Without pyplot, which would keep every figure and change what a notebook shows by itself."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from talos_ray.shown import plain_lines
from talos_ray.storage.version import Candidate, Negation, ShortRun, TaskScores, TensorChange, Version

Say = Callable[..., str]  # `Words.plain`: matplotlib escapes what it draws

INK = "#123456"  # stands for the page's text colour, and is replaced by it
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.hashsalt": "talos_ray",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
PALETTE = ("#2a78d6", "#e07b28", "#3a9a5b", "#b0489a", "#8a6d3b", "#c23b3b", "#4aa3a3", "#7a6ad0")


def _style() -> AbstractContextManager[None]:
    settings: Any = STYLE  # matplotlib's types want its own names of the settings, one by one
    return matplotlib.rc_context(settings)


def _svg(figure: Figure, description: str) -> str:
    out = io.StringIO()
    # Text stays text: the reader's browser has the letters that our font lacks.
    with warnings.catch_warnings(), _style():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = plain_lines(out.getvalue())  # matplotlib escapes what it draws, but for controls
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"',
        lambda m: "<svg " + (m.group(1) or (m.group(2) or "") + (m.group(3) or "")),
        text,
        count=1,
    )
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)


def _axes(height: float, title_x: str, title_y: str) -> tuple[Figure, Axes]:
    with _style():
        figure = Figure(figsize=(7, height))
        axes = figure.subplots()
    axes.set_xlabel(title_x)
    axes.set_ylabel(title_y)
    return figure, axes


def _legend(axes: Axes, columns: int = 4) -> None:
    legend = axes.legend(frameon=False, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for text in legend.get_texts():
        text.set_color(INK)


def mask_by_tensor(density: Mapping[str, float], w: Say) -> str:
    """Share of masked weights in every tensor that could hold some."""
    return _bars(density, w("share_may_change"), w("mask_plot"), 1.0)


def impact(tensors: Mapping[str, TensorChange], w: Say) -> str:
    """Norm of the change over norm of the base, in every tensor that changed."""
    far = {name: t.relative for name, t in tensors.items()}
    return _bars(far, w("impact_axis"), w("impact_plot"))


def _bars(values: Mapping[str, float], title_x: str, description: str, limit: float | None = None) -> str:
    figure, axes = _axes(max(2.0, 0.16 * len(values)), title_x, "")
    axes.barh(range(len(values)), list(values.values()), color=PALETTE[0])
    axes.set_yticks(range(len(values)), list(values), fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(0, limit)
    return _svg(figure, description)


def drift(versions: Sequence[Version], w: Say) -> str:
    """Test accuracy of every task over versions; control tasks are dashed."""
    figure, axes = _axes(3.0, w("version"), w("accuracy_test"))
    tasks = list(dict.fromkeys(t for v in versions for t in v.scores))
    for task, color in zip(tasks, PALETTE * 100, strict=False):
        found = [(v.number, v.scores[task].merged.value) for v in versions if task in v.scores]
        style = "o--" if task in versions[-1].controls else "o-"
        axes.plot(*zip(*found, strict=True), style, label=task, color=color, markersize=3, linewidth=1.2)
    axes.set_xticks([v.number for v in versions if v.number is not None])
    axes.set_ylim(0, 1)
    _legend(axes)
    return _svg(figure, w("drift_plot"))


def stability(points: Sequence[Mapping[str, float]], w: Say) -> str:
    """Overlap of successive estimates of the mask as samples arrive, one line a round."""
    figure, axes = _axes(2.4, w("waves"), w("overlap_before"))
    for r, color in zip(sorted({p["round"] for p in points}), PALETTE * 100, strict=False):
        mine = [p for p in points if p["round"] == r]
        x = [p["wave"] for p in mine]
        y = [p["overlap"] for p in mine]
        axes.plot(x, y, "o-", label=w("round", n=r), color=color, markersize=3)
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return _svg(figure, w("stability_plot"))


def training_curves(curves: Mapping[str, Sequence[Sequence[float]]], w: Say, description: str | None = None) -> str:
    """Loss by step of every task."""
    figure, axes = _axes(3.2, w("step"), w("loss"))
    for (task, curve), color in zip(curves.items(), PALETTE * 100, strict=False):
        if curve:
            axes.plot([c[0] for c in curve], [c[1] for c in curve], label=task, color=color, linewidth=1.2)
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _svg(figure, description or w("training_plot"))


def candidates(arms: Mapping[str, Sequence[Candidate]], w: Say) -> str:
    """Objective of every candidate by its mean coefficient; those that let a control task fall are hollow, on the
    ground line."""
    figure, axes = _axes(2.8, w("mean_coefficient"), w("normalized_validation"))
    for (arm, found), color in zip(arms.items(), PALETTE, strict=False):
        points = [(sum(c.coefficients.values()) / max(1, len(c.coefficients)), c.objective) for c in found if c.whole]
        held = [(x, y) for x, y in points if y >= 0]
        if held:
            axes.plot(*zip(*held, strict=True), "o", label=arm, color=color, markersize=4)
        fallen = [x for x, y in points if y < 0]
        if fallen:
            axes.plot(fallen, [0.0] * len(fallen), "o", color=color, markersize=4, fillstyle="none")
    axes.set_ylim(bottom=-0.03)
    _legend(axes)
    return _svg(figure, w("search_plot"))


def heatmap(
    cells: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title_x: str,
    title_y: str,
    description: str,
) -> str:
    """Shares in [0, 1], each with its figure."""
    return _svg(heatmap_figure(cells, rows, columns, title_x, title_y), description)


def heatmap_figure(
    cells: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title_x: str, title_y: str
) -> Figure:
    figure, axes = _axes(max(2.2, 0.4 * len(rows)), title_x, title_y)
    top = max(0.01, *(v for row in cells for v in row))
    axes.pcolormesh(cells, cmap="Blues", vmin=0, vmax=top, edgecolors=INK, linewidth=0.3)
    for y, row in enumerate(cells):
        for x, value in enumerate(row):
            axes.text(
                x + 0.5, y + 0.5, f"{value:.1%}", ha="center", va="center", fontsize=7,
                color="#ffffff" if value > 0.6 * top else "#102030",
            )  # fmt: skip
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=30, ha="right")
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.invert_yaxis()
    return figure


def coefficients(rows: Mapping[str, Mapping[str, float]], w: Say) -> str:
    """Mean coefficient of every task in every tensor: a map, blue above zero and red below."""
    return _svg(coefficients_figure(rows, w), w("learned_plot"))


def coefficients_figure(rows: Mapping[str, Mapping[str, float]], w: Say) -> Figure:
    tensors = list(next(iter(rows.values())))
    figure, axes = _axes(max(2.2, 0.16 * len(tensors)), "", w("tensor"))
    cells = [[rows[task][name] for task in rows] for name in tensors]
    far = max(1e-6, *(abs(v) for row in cells for v in row))
    mesh = axes.pcolormesh(cells, cmap="RdBu", vmin=-far, vmax=far)
    axes.set_xticks([i + 0.5 for i in range(len(rows))], list(rows), rotation=30, ha="right")
    axes.set_yticks([i + 0.5 for i in range(len(tensors))], tensors, fontsize=7.5)
    axes.invert_yaxis()
    with _style():
        figure.colorbar(mesh, ax=axes, label=w("coefficient"))
    return figure


def trade_off(tried: Sequence[ShortRun], w: Say) -> str:
    """Merged and single-task validation accuracy of every short run, by the share of weights that may change."""
    figure, axes = _axes(3.0, w("share_may_change"), w("accuracy_validation"))
    by_kind: dict[str, list[ShortRun]] = {}
    for run in tried:
        by_kind.setdefault(f"{run.setting.strategy} {run.setting.granularity}", []).append(run)
    for (kind, mine), color in zip(by_kind.items(), PALETTE * 100, strict=False):
        for held in (True, False):
            points = [(r.setting.keep, r.merged) for r in mine if r.held is held]
            if points:
                fill, label = ("full", kind) if held else ("none", None)
                axes.plot(*zip(*points, strict=True), "o", color=color, fillstyle=fill, label=label, markersize=5)
        axes.plot([r.setting.keep for r in mine], [r.single for r in mine], "_", color=color, markersize=9)
    axes.set_xscale("log")
    ticks = sorted({r.setting.keep for r in tried})
    axes.set_xticks(ticks, [f"{t:.0%}" for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _legend(axes, 2)
    return _svg(figure, w("trade_off_plot"))


def negation(told: Negation, w: Say) -> str:
    """Accuracy of the task that is forgotten, and the share that the worst of the others keeps, by pressure; by
    coefficient in versions of earlier releases."""
    by = "pressure" if told.curve[0].pressure is not None else "coefficient"
    figure, axes = _axes(2.8, w(by), w("accuracy_kept"))
    x = [getattr(p, by) for p in told.curve]
    axes.plot(x, [p.target for p in told.curve], "o-", label=told.task, color=PALETTE[5], markersize=3)
    axes.plot(x, [p.kept for p in told.curve], "o-", label=w("kept_least"), color=PALETTE[2], markersize=3)
    axes.axhline(told.keep, color=PALETTE[2], linewidth=0.8, linestyle="--")
    axes.axhline(told.chance, color=PALETTE[5], linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _svg(figure, w("negation_plot"))


def scores(rows: Mapping[str, TaskScores], w: Say) -> str:
    """Base, merged and single-task accuracy of every task, with 95 % intervals."""
    return _svg(scores_figure(rows, w), w("scores_plot"))


def scores_figure(rows: Mapping[str, TaskScores], w: Say) -> Figure:
    names = list(rows)
    figure, axes = _axes(max(2.0, 0.42 * len(names)), w("accuracy_test"), "")
    for offset, (kind, color) in enumerate((("base", PALETTE[4]), ("merged", PALETTE[0]), ("single", PALETTE[2]))):
        have = [(i, score) for i, n in enumerate(names) if (score := getattr(rows[n], kind)) is not None]
        x = [s.value for _, s in have]
        errors = [
            [max(0.0, s.value - s.low) for _, s in have],
            [max(0.0, s.high - s.value) for _, s in have],
        ]
        axes.errorbar(
            x,
            [i + 0.22 * (offset - 1) for i, _ in have],
            xerr=errors,
            fmt="o",
            label=w(kind),
            color=color,
            markersize=4,
            linewidth=1,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    _legend(axes)
    return figure
