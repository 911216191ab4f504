"""A version's model, made again from what is on storage: the base's bytes, the mask, the deltas and the coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.mask import Mask
from talos_ray.core.merging import merged
from talos_ray.core.segments import Blend
from talos_ray.models import Family
from talos_ray.storage.run_folder import RunFolder


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

    def put(self, family: Family, base: str) -> None:
        """Compose it into a family's module, which holds the base (its fingerprint)."""
        segments = self.blend.segments(self.mask)
        Composer(family.module, self.mask, list(self.rows.values()), base, segments).compose(self.blend.values)


def edit_of(folder: RunFolder, version: Mapping, mask: Mask, deltas: Mapping[str, Delta]) -> Edit:
    """The edit of a version.

    Args:
        mask: the run's.
        deltas: those that the version names, by task.
    """
    blend, _ = folder.load_learned(version)
    if "rows" in version:
        mask, rows = folder.load_merged(version["rows"], mask.layout)
    else:
        how = dict(version.get("merge", {}))
        # Versions of earlier releases have a row a task and group of layers; since then groups are segments of the coefficients.
        groups = how.pop("groups", None)
        rows_by_group = any("@" in row for row in version["coefficients"])
        mask, rows = merged(deltas, mask, groups=groups if rows_by_group else None, **how)
    return Edit(mask=mask, rows=rows, blend=blend)
