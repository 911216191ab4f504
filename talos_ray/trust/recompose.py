"""A version's model, made again from what is on storage: the base's bytes, the mask, the deltas and the
coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from talos_ray.core.blocks import gather, scatter
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.mask import Mask
from talos_ray.core.merging import merged
from talos_ray.core.segments import Blend
from talos_ray.errors import TalosError
from talos_ray.models import Family
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What a version adds to the base.

    Args:
        mask: that the rows are on.
        rows: task -> the delta as the version's merge method leaves it.
        blend: how much of each.
    """

    mask: Mask
    rows: Mapping[str, Delta]
    blend: Blend

    def put(self, family: Family, base: str) -> torch.Tensor:
        """Compose it into a family's module, which holds the base (its fingerprint). Returns the base's values, [k]."""
        segments = self.blend.segments(self.mask)
        composer = Composer(family.module, self.mask, list(self.rows.values()), base, segments)
        composer.compose(self.blend.values)
        return composer.base


@dataclass(frozen=True, eq=False, kw_only=True)
class Composed:
    """What a module holds, and what it takes to have the base in it again.

    Args:
        version: that it was composed of.
        mask: where its weights may differ from the base's; None where it is the base.
        base: the base's weights there, [k].
    """

    version: Version
    mask: Mask | None = None
    base: torch.Tensor | None = None


@contextmanager
def exchanged(module: nn.Module, holds: Composed, mask: Mask, deltas: Sequence[Delta], base: str) -> Iterator[None]:
    """A module with these deltas alone in it, each as it was trained (coefficient 1); afterwards, whatever happens in
    between, with its own bytes again.

    Args:
        mask: of the deltas. base: fingerprint of what they belong to.
    """
    with ExitStack() as back:
        # What the module holds goes out first, and comes back last.
        if holds.mask is not None:
            assert holds.base is not None
            back.callback(scatter, module, holds.mask, gather(module, holds.mask))
            scatter(module, holds.mask, holds.base)
        if deltas:
            composer = Composer(module, mask, deltas, base)
            back.callback(composer.rollback)
            composer.compose(dict.fromkeys(composer.deltas, 1.0))
        yield


def deltas_of(folder: RunFolder, mask: Mask, base: str, wanted: Mapping[str, str | None]) -> dict[str, Delta]:
    """The deltas of a run by task, each with the fingerprint that is wanted; where that is None, the one on storage.

    Raises:
        TalosError: one is missing. MismatchError: one belongs to another base or mask.
    """
    deltas = {}
    for task, mark in wanted.items():
        delta = folder.load_delta(task, mark)
        if delta is None:
            raise TalosError(
                f"run {folder.store.uri!r} misses the delta {(mark or '')[:12]} of task {task!r}; restore deltas/ from "
                "a copy"
            )
        delta.check(base, mask.fingerprint)
        deltas[task] = delta
    return deltas


def edit_of(folder: RunFolder, version: Version, mask: Mask, deltas: Mapping[str, Delta]) -> Edit:
    """The edit of a version.

    Args:
        mask: the run's.
        deltas: those that the version names, by task.
    """
    blend, _ = folder.load_learned(version)
    if version.rows is not None:
        mask, rows = folder.load_merged(version.rows, mask.layout)
    else:
        how = version.how
        groups = how.groups if version.rows_by_group else None
        mask, rows = merged(deltas, mask, groups=groups, **how.model_dump(exclude={"groups"}))
    return Edit(mask=mask, rows=rows, blend=blend)
