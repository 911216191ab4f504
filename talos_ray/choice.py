"""What `mask: auto` tries, and how long: known before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from talos_ray.config import Mask as MaskSettings
from talos_ray.config import Spec
from talos_ray.core.layout import Layout


@dataclass(frozen=True)
class Setting:
    """What one short run tries; `lr` is a factor on the spec's learning rate."""

    strategy: str
    granularity: str
    keep: float
    lr: float
    layers: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.strategy} {self.granularity} {self.keep:g} layers {self.layers:g} lr x {self.lr:g}"

    @property
    def mask(self) -> MaskSettings:
        return MaskSettings(strategy=self.strategy, granularity=self.granularity, keep=self.keep, layers=self.layers)


def first_round(spec: Spec) -> list[Setting]:
    """Every strategy and granularity that the spec leaves open, at its keep or the middle of those to be tried."""
    mask = spec.mask
    auto = spec.auto
    strategies = auto.strategies if mask.strategy == "auto" else (mask.strategy,)
    granularities = auto.granularities if mask.granularity == "auto" else (mask.granularity,)
    keep = auto.middle if isinstance(mask.keep, str) else mask.keep
    layers = 1.0 if isinstance(mask.layers, str) else mask.layers
    return [Setting(s, g, keep, 1.0, layers) for s in strategies for g in granularities]


def second_round(spec: Spec, best: Setting, layout: Layout) -> list[Setting]:
    """The best of the first with every other share of weights, with every other share of layers that closes some and
    leaves room, and with every other learning rate. Fewer layers learn less in as many steps, so they are tried with
    the higher ones, too."""
    mask = spec.mask
    auto = spec.auto
    keeps = [k for k in auto.keeps if mask.keep == "auto" and k != best.keep]
    layers = [s for s in auto.layers if mask.layers == "auto" and layout.closed(s) and best.keep <= layout.room(s)]
    return [
        *(replace(best, keep=k) for k in keeps),
        *(replace(best, layers=s, lr=f) for s in layers for f in sorted({best.lr, *auto.lr_factors}) if f >= best.lr),
        *(replace(best, lr=f) for f in auto.lr_factors if f != best.lr),
    ]


def both_rounds(spec: Spec, layout: Layout) -> list[Setting]:
    """All that is tried, as if the first of the first round were the best of it."""
    first = first_round(spec)
    return [*first, *second_round(spec, first[0], layout)]


def share_of_each(spec: Spec, layout: Layout) -> float:
    """How much of the whole training every short run gets."""
    return min(1.0, spec.auto.budget / len(both_rounds(spec, layout)))
