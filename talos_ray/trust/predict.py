"""What a version answers on new inputs: names of classes and their probabilities, in the inputs' order."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talos_ray import user_files
from talos_ray.core.metrics import Score, accuracy
from talos_ray.data.given import NO_LABEL
from talos_ray.data.split import Split
from talos_ray.data.tables import decoded
from talos_ray.errors import SpecError, TalosError
from talos_ray.inputs import Examples
from talos_ray.models import Family
from talos_ray.models.heads import answering
from talos_ray.shown import cell
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version
from talos_ray.tasks import load_inputs
from talos_ray.trust.versions import is_held

BATCH = 256  # inputs at once, as versions are scored: other batches would end in other last bits
DIGITS = 6  # of a probability, as float32 has them
FILES = (".csv", ".json")  # that predictions are written to


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """The best `k` classes of each of `n` inputs, in the inputs' order.

    Args:
        task, version: who answered.
        classes: names, in label order.
        inputs: each so that a person finds it: its text, its file, or its number.
        best: places among the classes, int64 [n, k], the likeliest first.
        scores: their probabilities, float32 [n, k]: the softmax over the task's classes.
        wanted: places of the labels that were given, int64 [n], `NO_LABEL` where an input has none; None where none
            were read.
        notes: what somebody should know.
    """

    task: str
    version: int
    classes: Sequence[str]
    inputs: Sequence[str]
    best: torch.Tensor
    scores: torch.Tensor
    wanted: torch.Tensor | None = None
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labels(self) -> list[str]:
        """The likeliest class of every input, by name."""
        return [self.classes[i] for i in self.best[:, 0].tolist()]

    @property
    def accuracy(self) -> Score | None:
        """Over the inputs whose label was given; None where there is none."""
        if self.wanted is None or not (known := self.wanted != NO_LABEL).any():
            return None
        right = self.best[known, 0] == self.wanted[known]
        return accuracy(int(right.sum()), len(right))

    def answers(self, i: int) -> list[dict[str, Any]]:
        """Of one input: a class's `label` and its `score`, the likeliest first."""
        places = self.best[i].tolist()
        scores = self.scores[i].tolist()
        return [{"label": self.classes[p], "score": round(s, DIGITS)} for p, s in zip(places, scores, strict=True)]

    def rows(self) -> list[dict[str, Any]]:
        """A mapping an input: `number`, `input`, `label`, `score`; `top` (as `answers`), where more than one class was
        asked for; `given` (the label that came with it, or None) and `right`, where labels were read."""
        found = []
        for i, words in enumerate(self.inputs):
            top = self.answers(i)
            row = {"number": i, "input": words, **top[0]}
            if len(top) > 1:
                row["top"] = top
            if self.wanted is not None:
                place = int(self.wanted[i])
                row["given"] = None if place == NO_LABEL else self.classes[place]
                row["right"] = None if place == NO_LABEL else place == int(self.best[i, 0])
            found.append(row)
        return found

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        told = {"task": self.task, "version": self.version, "classes": list(self.classes), "notes": list(self.notes)}
        if (score := self.accuracy) is not None:
            told["accuracy"] = score.as_dict()
        return {**told, "predictions": self.rows()}

    def as_csv(self) -> str:
        """A line an input: number, input, label, score, then label_2, score_2 and so on, then given and right."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        more = []
        for rank in range(2, self.best.shape[1] + 1):
            more += [f"label_{rank}", f"score_{rank}"]
        told = [] if self.wanted is None else ["given", "right"]
        writer.writerow(["number", "input", "label", "score", *more, *told])
        for row in self.rows():
            values = [row["number"], row["input"], row["label"], row["score"]]
            for answer in row.get("top", ())[1:]:
                values += answer.values()
            if told:
                judged = {True: "right", False: "wrong", None: ""}[row["right"]]
                values += [row["given"] or "", judged]
            writer.writerow([cell(value) for value in values])
        return out.getvalue()

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """As CSV or JSON, by the file's name.

        Raises:
            SpecError: another name, or a file that is there already, without `overwrite`.
        """
        check_output(path, overwrite=overwrite)
        text = self.as_csv() if Path(path).suffix.lower() == ".csv" else json.dumps(self.as_dict(), indent=1) + "\n"
        user_files.write(path, text.encode(), overwrite=overwrite)


def check_output(path: str | Path, *, overwrite: bool = False, inputs: Sequence[str | Path] = ()) -> None:
    """Raises SpecError unless predictions of some inputs can be written to a file of this name: asked before an hour
    is spent."""
    if Path(path).suffix.lower() not in FILES:
        raise SpecError(f"output {str(path)!r} is neither {' nor '.join(FILES)}; wanted one of them; rename it")
    user_files.check_free(path, overwrite=overwrite, inputs=inputs)


def inputs_of(words: Sequence[str]) -> str | list[str] | list[Path]:
    """What a command line names: one file or folder, several, or, with `-`, the lines of standard input.

    Raises:
        SpecError: standard input is not UTF-8.
    """
    if list(words) == ["-"]:
        lines = decoded(sys.stdin.buffer.read(), "standard input").split("\n")
        if not lines[-1]:  # what stands behind the last line's end is no line
            lines.pop()
        return [line.removesuffix("\r") for line in lines]
    return words[0] if len(words) == 1 else [Path(word) for word in words]


class Pipeline:
    """One task of one version, in memory and ready to answer: `pipe(["a text", …])`.

    Args:
        model: the composed model. It may be moved (`pipe.module.to("cuda")`): inputs follow it.
        version: its number.
        settings: of the task.
        classes: names, in label order.
        head: what the version's scores were measured with: its kind (`config.scoring`), and itself.
        notes: what somebody should know of this version and this task.
    """

    def __init__(
        self,
        *,
        model: Family,
        version: int,
        settings: Mapping[str, Any],
        classes: Sequence[str],
        head: tuple[str, torch.Tensor],
        notes: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.version = version
        self.settings = settings
        self.classes = classes
        self.kind, self.head = head
        self.notes = notes

    def __repr__(self) -> str:
        return f"Pipeline(task={self.settings['name']!r}, version={self.version}, classes={len(self.classes)})"

    @property
    def module(self) -> nn.Module:
        """The network, which `Run.only` exchanges the edit of."""
        return self.model.module

    def __call__(self, inputs: str | Path | Sequence[Any], top_k: int | None = None) -> list[Any]:
        """A class's `label` and its `score` for each input; with `top_k`, a list of so many, the likeliest first.

        Args:
            inputs: as `Run.predict` takes them.

        Raises:
            SpecError: an input, by its place; or `top_k`.
        """
        most = 1 if top_k is None else top_k
        found = self.answer(load_inputs(self.settings, inputs, self.classes), most)
        answers = [found.answers(i) for i in range(len(found))]
        return [best for (best,) in answers] if top_k is None else answers

    @torch.no_grad()
    def answer(self, split: Split, top_k: int = 1, *, labelled: bool = False) -> Predictions:
        """What it makes of a split, a batch at a time."""
        check_top(top_k, self.classes)
        examples = Examples(split, self.model.preprocess)
        device = next(self.module.parameters()).device  # asked each time, because the caller may have moved it
        logits = answering(self.model, self.kind, self.head.to(device))
        best = []
        scores = []
        for part in torch.arange(len(split)).split(BATCH):
            # Read anew each time and kept nowhere: nobody comes back to an input.
            found = logits(examples.fresh(part.tolist()).to(device)).cpu()
            if (bad := found.isnan().any(1)).any():
                raise TalosError(
                    f"version {self.version} answers input {split.words(int(part[bad][0]))!r} with values that are no "
                    "numbers; wanted finite ones; use another version"
                )
            # By logits and not by probabilities, two of which may round to the same; of equals the first, as argmax.
            order = found.argsort(dim=1, descending=True, stable=True)[:, :top_k]
            best.append(order)
            scores.append(found.softmax(1).gather(1, order))
        return Predictions(
            task=self.settings["name"],
            version=self.version,
            classes=self.classes,
            inputs=[split.words(i) for i in range(len(split))],
            best=torch.cat(best),
            scores=torch.cat(scores),
            wanted=split.labels if labelled else None,
            notes=(*self.notes, *split.notes),
        )


def check_top(top_k: int, classes: Sequence[str]) -> None:
    """Raises SpecError unless a task of these classes has so many best ones."""
    if not (isinstance(top_k, int) and 1 <= top_k <= len(classes)):
        raise SpecError(f"top_k is {top_k!r}; wanted 1 to {len(classes)}, as many as the task has classes; change it")


def notes_on(folder: RunFolder, version: Version, task: str) -> list[str]:
    """What somebody should know who asks this version about this task."""
    number = version.number
    notes = []
    if is_held(folder, version):
        notes.append(f"version {number} is kept aside by its gate; head is {folder.head}")
    elif number != folder.head:
        notes.append(f"version {number} is not in force; head is {folder.head}")
    kind = version.kind_of(task)
    if kind == "other" or (kind == "target" and task not in version.deltas):
        notes.append(f"version {number} holds no edit of task {task!r}: it is answered by the rest of the model")
    elif kind == "forgotten":
        notes.append(f"version {number} has forgotten task {task!r}")
    return notes
