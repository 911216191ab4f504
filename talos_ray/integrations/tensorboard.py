"""A run's record as TensorBoard reads it. Written from what is stored, so it can be done at any time, from any machine
that sees the folder, and costs no training anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from talos_ray.errors import TalosError
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version

Scalar = tuple[str, float, int]  # its name, the value, and the step


def write(folder: RunFolder, to: Path) -> None:
    """One file of events in a new folder.

    Raises:
        TalosError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TalosError(
            f"writing for TensorBoard needs the library tensorboard ({error}); wanted it installed; "
            "pip install 'talos_ray[tensorboard]'"
        ) from None
    versions = [folder.load_version(number) for number in folder.versions()]
    with SummaryWriter(str(to)) as writer:
        for name, value, step in [*_trained(folder, versions), *_scored(versions)]:
            writer.add_scalar(name, value, step)


def _trained(folder: RunFolder, versions: list[Version]) -> Iterator[Scalar]:
    """The training loss of every delta that a version is made of, once each, by its task's own updates."""
    deltas = {(task, mark) for version in versions for task, mark in version.deltas.items()}
    trainings = Counter(task for task, _ in deltas)
    for task, mark in sorted(deltas):
        # Two curves of one name would be drawn as one, to and fro.
        name = f"{task}@{mark[:8]}" if trainings[task] > 1 else task
        for step, loss in (folder.delta_info(task, mark) or {}).get("curve") or []:
            yield f"train/{name}/loss", loss, step


def _scored(versions: list[Version]) -> Iterator[Scalar]:
    """Of every version what it scores, with its number as the step; and the loss of learning how to merge it."""
    for version in versions:
        number = version.number
        assert number is not None  # it is on storage
        for task, scores in version.scores.items():
            for kind, score in scores.measured().items():
                yield f"test/{task}/{kind}", score.value, number
        for kind, mean in version.summary:
            if isinstance(mean, float):
                yield f"test/{kind}", mean, number
        for step, loss in version.search.curve:
            yield f"merge/version_{number}/loss", loss, int(step)
