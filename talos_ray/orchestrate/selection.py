"""How the weights of a mask are selected, once nothing of it is left to be chosen by trying, and by which inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from talos_ray.config import Mask as MaskSettings
from talos_ray.config import Spec
from talos_ray.core.mask import Granularity, Strategy

if TYPE_CHECKING:
    from talos_ray.data.split import Split
    from talos_ray.tasks import TaskData


@dataclass(frozen=True, kw_only=True)
class Selection:
    """`mask` of a spec without `auto`: what `core.mask.select` takes."""

    strategy: Strategy
    granularity: Granularity
    keep: float
    layers: float


def selection_of(settings: MaskSettings) -> Selection:
    """The selection that settings stand for. Short runs have replaced every `auto` before anything asks for it."""
    assert settings.strategy != "auto" and settings.granularity != "auto"
    assert not isinstance(settings.keep, str) and not isinstance(settings.layers, str)
    return Selection(
        strategy=settings.strategy,
        granularity=settings.granularity,
        keep=settings.keep,
        layers=settings.layers,
    )


def calibration_split(spec: Spec, data: TaskData) -> Split:
    """The training inputs of one task that are scored: drawn by seed, in a fixed order."""
    return data.train.drawn(spec.calibration.samples_per_task, spec.seed, data.task.name, "calibration")
