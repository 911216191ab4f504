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
    tasks = {t: asdict(change(before.right(t), after.right(t))) for t in _comparable(before, after)}
    names = sorted({*a.coefficients, *b.coefficients})
    changed = sorted(t for t in {*a.deltas, *b.deltas} if a.deltas.get(t) != b.deltas.get(t))
    return {
        "versions": [a.number, b.number],
        "coefficients": {t: [a.coefficients.get(t, 0.0), b.coefficients.get(t, 0.0)] for t in names},
        "deltas changed": changed,
        "tasks": tasks,
        "not comparable": sorted({*a.scores, *b.scores} - set(tasks)),
        "same model": a.model == b.model,
    }


def _comparable(a: Answers, b: Answers) -> list[str]:
    """Tasks that both answered on the same inputs."""
    return [t for t in a.data if a.data[t] == b.data.get(t)]


@torch.no_grad()
def ask(family: Family, name: str, split: Split, head: tuple[str, torch.Tensor], batch_size: int = 256) -> Answers:
    """What a model answers on a split of a task. `head`: its kind ('words' or 'linear'), and itself."""
    logits = answering(family, *head)
    examples = Examples(split, family.preprocess)
    index = torch.arange(len(split)).split(batch_size)
    predicted = torch.cat([logits(examples.batch(i)[0]).argmax(-1) for i in index])
    return Answers({name: predicted.int()}, {name: split.labels}, {name: split.fingerprint()})


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
        for i, (was, now, wanted) in enumerate(zip(before, after, labels, strict=True)):
            if was == now:
                continue
            became = "right" if now == wanted else "wrong" if was == wanted else "wrong otherwise"
            words = split.words(i) if split else f"row {i}"
            told = [task, i, words, names[wanted], names[was], names[now], became]
            writer.writerow([cell(value) for value in told])
    return out.getvalue()
