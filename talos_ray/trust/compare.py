"""Two versions on the same inputs: what became right, what became wrong, and whether that could be chance."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from talos_ray.core.paired import Answers, change
from talos_ray.data.split import Split
from talos_ray.inputs import Examples
from talos_ray.models import Family
from talos_ray.models.heads import answering
from talos_ray.shown import cell
from talos_ray.storage.version import Version


def diff(a: Version, b: Version, before: Answers, after: Answers) -> dict[str, Any]:
    """How version `b` differs from version `a`, with what each answered."""
    changes = {}
    for task in _comparable(before, after):
        changes[task] = asdict(change(before.right(task), after.right(task), after.strata(task)))
    # What a version does not hold has no share in it, which is a coefficient of 0.
    coefficients = {}
    for task in sorted({*a.coefficients, *b.coefficients}):
        coefficients[task] = [a.coefficients.get(task, 0.0), b.coefficients.get(task, 0.0)]
    deltas = {*a.deltas, *b.deltas}
    return {
        "versions": [a.number, b.number],
        "coefficients": coefficients,
        "deltas changed": sorted(task for task in deltas if a.deltas.get(task) != b.deltas.get(task)),
        "tasks": changes,
        "not comparable": sorted({*a.scores, *b.scores} - set(changes)),
        "same model": a.model == b.model,
    }


def _comparable(a: Answers, b: Answers) -> list[str]:
    """Tasks that both answered on the same inputs, by the fingerprints of these."""
    return [task for task, mark in a.data.items() if mark == b.data.get(task)]


@torch.no_grad()
def ask(
    family: Family,
    name: str,
    split: Split,
    head: tuple[str, torch.Tensor],
    metrics: Mapping[str, str] | None = None,
    batch_size: int = 256,
) -> Answers:
    """What a model answers on a split of a task. `head`: its kind (`config.scoring`), and itself; `metrics`: as those
    of `Answers`."""
    logits = answering(family, *head)
    examples = Examples(split, family.preprocess)
    predicted = []
    for rows in torch.arange(len(split)).split(batch_size):
        inputs = examples.batch(rows)[0]
        predicted.append(logits(inputs).argmax(-1))
    return Answers(
        predicted={name: torch.cat(predicted).int()},
        labels={name: split.labels},
        data={name: split.fingerprint()},
        metrics=metrics or {},
    )


def changed_inputs(
    a: Answers, b: Answers, classes: Mapping[str, Sequence[str]], splits: Mapping[str, Split | None]
) -> str:
    """CSV of every input that the two answer differently, so that a person can look at them.

    Args:
        classes: task -> class names.
        splits: task -> its inputs; None where they are out of reach, and only numbers can be told.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "number", "input", "label", "before", "after", "became"])
    for task in _comparable(a, b):
        names = classes[task]
        split = splits[task]
        before = a.predicted[task].tolist()
        after = b.predicted[task].tolist()
        labels = a.labels[task].tolist()
        for row, (was, now, label) in enumerate(zip(before, after, labels, strict=True)):
            if was == now:
                continue
            words = split.words(row) if split else f"row {row}"
            values = [task, row, words, names[label], names[was], names[now], _became(was, now, label)]
            writer.writerow([cell(value) for value in values])
    return out.getvalue()


def _became(was: int, now: int, label: int) -> str:
    """What a changed answer is now. Of two wrong ones neither counts in McNemar's test."""
    if now == label:
        return "right"
    return "wrong" if was == label else "wrong otherwise"
