"""Tables of what `protocol.reproduce` has found: for a terminal, and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from talos_ray.config import Spec
from talos_ray.core.metrics import Z95, normalized_accuracy, standard_error
from talos_ray.reproduce.protocol import ADDITION, NEGATION, Result

# Two-sided 95 % quantiles of Student's t by degrees of freedom; from there on, nearly that of the normal distribution.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NONE = ""  # a cell where nothing was measured


def tables(spec: Spec, found: Mapping[int, Sequence[Result]]) -> dict[str, pd.DataFrame]:
    """A table for addition, its accuracies by task, what the edits cost, and one for negation where it was measured: a
    row a method.

    Args:
        found: seed -> results.
    """
    by_method: dict[tuple[str, str], list[Result]] = {}
    for results in found.values():
        for result in results:
            by_method.setdefault((result.table, result.method), []).append(result)
    addition = {method: results for (table, method), results in by_method.items() if table == ADDITION}
    negation = {method: results for (table, method), results in by_method.items() if table == NEGATION}
    others = published(spec)
    made = {
        "addition": pd.DataFrame(_addition(method, results, others) for method, results in addition.items()),
        "tasks": pd.DataFrame(_by_task(addition, others)),
        "costs": pd.DataFrame(_costs(method, results) for method, results in addition.items() if results[0].seconds),
    }
    if negation:
        made["negation"] = pd.DataFrame(_negation(method, results) for method, results in negation.items())
    return made


def published(spec: Spec) -> dict[str, dict[str, float]]:
    """What others have published of this model on exactly these tasks: method -> task -> accuracy."""
    names = [task.name for task in spec.tasks]
    figures: dict[str, dict[str, float]] = {}
    for entry in _published():
        if spec.model in entry["models"] and set(names) == set(entry["tasks"]):
            for method, percent in entry["accuracy"].items():
                accuracy = dict(zip(entry["tasks"], percent, strict=True))
                figures[method] = {task: accuracy[task] / 100 for task in names}
    return figures


def sources(spec: Spec) -> list[str]:
    """Where these figures stand."""
    names = {task.name for task in spec.tasks}
    told = []
    for entry in _published():
        if spec.model in entry["models"] and names == set(entry["tasks"]):
            second_hand = " (second-hand: not who measured them)" if entry["second_hand"] else ""
            told.append(f"published: {entry['source']}{second_hand}")
    return told


def _published() -> list[dict[str, Any]]:
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = yaml.safe_load(text)
    return entries


def over_seeds(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean over seeds, by Student's t; None of a single seed."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    quantile = T95[freedom - 1] if freedom <= len(T95) else Z95
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _addition(method: str, results: Sequence[Result], others: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    means = [result.mean for result in results]
    first = results[0]
    normalized = [normalized_accuracy(result.accuracy, result.single) for result in results if result.single]
    kept = [result.kept for result in results if result.kept is not None]
    elsewhere = others.get(method)
    return {
        "method": method,
        "accuracy": _share(statistics.mean(means)),
        "± seeds": _share(over_seeds(means)),
        # Over test inputs the seeds' runs are not independent, so the interval is that of one of them.
        "± inputs": _share(Z95 * standard_error(first.accuracy, first.inputs)),
        "normalized": _share(statistics.mean(normalized) if normalized else None),
        "control kept": _share(min(kept, default=None)),
        "published": _share(statistics.mean(elsewhere.values()) if elsewhere else None),
    }


def _costs(method: str, results: Sequence[Result]) -> dict[str, str]:
    """Of the single edits that a method is made of, over all tasks."""
    seconds = [result.seconds for result in results if result.seconds is not None]
    first = results[0]
    return {
        "method": method,
        "training, s": f"{statistics.mean(seconds):.0f}",
        "deltas, MB": f"{first.bytes / 1e6:.1f}" if first.bytes else NONE,
        "optimizer, MB": f"{first.state / 1e6:.1f}" if first.state else NONE,
    }


def _by_task(
    addition: Mapping[str, Sequence[Result]], others: Mapping[str, Mapping[str, float]]
) -> list[dict[str, str]]:
    rows = []
    for method, results in addition.items():
        row = {"method": method}
        for task in results[0].accuracy:
            row[task] = _share(statistics.mean(result.accuracy[task] for result in results))
        rows.append(row)
    for method, accuracy in others.items():
        rows.append({"method": f"{method} (published)", **{task: _share(value) for task, value in accuracy.items()}})
    return rows


def _negation(method: str, results: Sequence[Result]) -> dict[str, str]:
    means = [result.mean for result in results]
    reached = []
    for result in results:
        at_chance = [task for task, value in result.accuracy.items() if value <= result.chance[task] + NEAR_CHANCE]
        reached.append(len(at_chance))
    first = results[0]
    return {
        "method": method,
        "target, base": _share(statistics.mean(first.before.values())),
        "target": _share(statistics.mean(means)),
        "± seeds": _share(over_seeds(means)),
        "± inputs": _share(Z95 * standard_error(first.accuracy, first.inputs)),
        "near chance": f"{statistics.mean(reached):.3g} of {len(first.accuracy)}",
        "control, base": _share(statistics.mean(result.control_before or 0.0 for result in results)),
        "control": _share(statistics.mean(result.control or 0.0 for result in results)),
        "control kept, least": _share(min(result.kept for result in results if result.kept is not None)),
    }


NEAR_CHANCE = 0.05  # accuracy above that of chance which still counts as forgotten


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def write(made: Mapping[str, pd.DataFrame], notes: Sequence[str], folder: Path) -> list[Path]:
    """Every table as Markdown, CSV and LaTeX (booktabs), under its name. Returns the files."""
    files = []
    for name, table in made.items():
        forms = {"md": _markdown(table, notes), "csv": table.to_csv(index=False), "tex": _latex(table, name, notes)}
        for form, text in forms.items():
            path = folder / f"{name}.{form}"
            path.write_text(text, encoding="utf-8")
            files.append(path)
    return files


def _markdown(table: pd.DataFrame, notes: Sequence[str]) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.fillna(NONE).values.tolist()]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*rows, "", *notes, ""])


def _latex(table: pd.DataFrame, name: str, notes: Sequence[str]) -> str:
    """A table of `booktabs`, whole as it stands in a document."""
    body = table.fillna(NONE).rename(columns=_escaped).map(_escaped).to_latex(index=False, escape=False)
    told = "\n".join(f"% {note}" for note in notes)
    return f"% \\usepackage{{booktabs}}; {name}, mean over tasks, test data\n{told}\n{body}"


def _escaped(text: str) -> str:
    """A text as LaTeX reads it."""
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", "$\\pm$")
