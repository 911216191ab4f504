"""One module that many edits take turns in: at each time it holds the base and one of them, to the bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import nn

from talos_ray.core.blocks import Block, blocks
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import Mask
from talos_ray.errors import MismatchError
from talos_ray.models import Family, base_tensors
from talos_ray.trust.recompose import Edit

BASE = "base"  # what the module holds where it holds no edit
KEPT_BYTES = 4 << 30  # of composed weights that are kept, so that to come back to an edit is to copy them


@dataclass(frozen=True, eq=False, kw_only=True)
class Place:
    """Where a mask's weights are in a module, and what the base has there.

    Args:
        parts: parameters, and the blocks of their masked weights.
        base: [k], in the module's dtype.
    """

    parts: list[tuple[nn.Parameter, Block]]
    base: torch.Tensor

    @classmethod
    def of(cls, module: nn.Module, mask: Mask) -> Place:
        """In a module that holds the base."""
        # Parameters themselves and not their names: where a mask lies is looked up once, and every switch writes there.
        parameters = dict(module.named_parameters())
        device = parameters[mask.layout.names[0]].device
        parts = [(parameters[block.name], block) for block in blocks(mask, device)]
        return cls(parts=parts, base=_gathered(parts))

    def values(self) -> torch.Tensor:
        """What the module has there now, [k]."""
        return _gathered(self.parts)

    @torch.no_grad()
    def write(self, values: torch.Tensor) -> None:
        """Put values [k] there."""
        for parameter, block in self.parts:
            block.scatter(parameter, values[block.place])


def _gathered(parts: list[tuple[nn.Parameter, Block]]) -> torch.Tensor:
    return torch.cat([block.gather(parameter.detach()) for parameter, block in parts])


class Switch:
    """Puts edits into one module and takes them out again. Not for several threads at once.

    Args:
        family: its module holds the base; it stays on its device.
        base: the base's fingerprint.

    The module never differs from the base but at `Place`s of `_inside`, which is set before the first weight is
    written: so whatever goes wrong, what is written back there makes it the base.
    """

    def __init__(self, family: Family, base: str) -> None:
        self.family = family
        self.base = base
        self.holds: Hashable = BASE
        self._inside: Place | None = None
        self._places: dict[str, Place] = {}  # by the mask's fingerprint
        self._kept: OrderedDict[Hashable, tuple[Place, torch.Tensor]] = OrderedDict()  # the last used one at the end

    def to(self, name: Hashable, load: Callable[[], Edit], model: str | None = None) -> bool:
        """Have the module hold the edit of this name, or the base. Returns whether it held another.

        Args:
            load: reads the edit, where it was not here before or is not kept.
            model: fingerprint that the module is to have then; None where none was recorded.

        Raises:
            MismatchError: it has another. The module holds the base then, as after any other error.
        """
        if name == self.holds:
            return False
        # Read first: while storage fails, or takes its time, the module still holds what it did.
        edit = None if name == BASE or name in self._kept else load()
        try:
            self._take_out()
            if edit is not None:
                self._compose(name, edit, model)
            elif name != BASE:
                self._inside, values = self._kept[name]
                self._inside.write(values)
                self._kept.move_to_end(name)
        except BaseException:
            self._take_out()
            raise
        self.holds = name
        return True

    def _take_out(self) -> None:
        if self._inside is not None:
            self._inside.write(self._inside.base)
            self._inside = None
        self.holds = BASE

    def _compose(self, name: Hashable, edit: Edit, model: str | None) -> None:
        """Put an edit in that was not here before, and keep the weights that it makes."""
        module = self.family.module
        mark = edit.mask.fingerprint
        if mark not in self._places:
            self._places[mark] = Place.of(module, edit.mask)
        self._inside = self._places[mark]
        edit.put(self.family, self.base)
        if model is not None:
            composed = fingerprint(
                {tensor_name: tensor.cpu() for tensor_name, tensor in base_tensors(self.family).items()}
            )
            if composed != model:
                raise MismatchError(
                    f"{name} composes to {composed[:12]}, but was recorded as {model[:12]}; mask or deltas were changed"
                )
        # As the module has them, rounded to its dtype: to put them back is to copy, and makes the same bits.
        self._kept[name] = (self._inside, self._inside.values())
        # The one that is in use stays, however large it is; of the others those go that were not asked for the longest.
        while sum(values.nbytes for _, values in self._kept.values()) > KEPT_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
