"""What is read from storage passes here: a file that does not hold what its format says is named, with its field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, WrapValidator

from talos_ray.errors import CorruptError

AT_ONCE = (
    1 << 14
)  # values looked at together: so few start no threads of torch, which a process that forks later would miss


def _as_it_is(value: float, check: Callable[[float], float]) -> float:
    check(value)
    return value


# A whole number in the place of a float stays one: a file is written again byte by byte as it was.
Number = Annotated[FiniteFloat, Field(strict=True), WrapValidator(_as_it_is)]
Part = Annotated[FiniteFloat, Field(strict=True, ge=0, le=1), WrapValidator(_as_it_is)]
Many = Annotated[int, Field(strict=True, ge=0, le=1 << 60)]
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Shape = TypeVar("Shape", bound=BaseModel)
JsonObject = dict[str, Any]


class Stored(BaseModel):
    """Only what is read by name is asked for; a later release may write more, which is kept, and an earlier one less.
    Whatever is not as it should be is told by `fits`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def as_dict(self) -> dict[str, Any]:
        """What was given, field by field, as JSON takes it: no default is added and nothing is left out."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def with_fields(self, **more: object) -> Self:
        """The same with other fields, called and shaped as in the file."""
        return self.model_validate({**self.as_dict(), **more})


class _Task(Stored):
    name: Text
    data: Text | None = None


class _Spec(Stored):
    model: Text = ""
    seed: Annotated[int, Field(strict=True)] = 0
    tasks: list[_Task] = []
    control: list[_Task] = []
    search: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None


class _Run(Stored):
    format: Many
    spec: _Spec
    base: Text
    identity: dict[str, Any]
    software: dict[str, Text]


class _Delta(Stored):
    task: Text
    base: Text
    mask: Text
    fingerprint: Text
    seconds: Number | None = None
    state_bytes: Many | None = None


class _Mask(Stored):
    base: Text
    fingerprint: Text
    k: Many
    shapes: dict[str, list[Many]]


def fits(model: type[Shape], path: str, found: Mapping[str, object]) -> Shape:
    """What was found in a file, as its format's model.

    Raises:
        CorruptError: names file and field.
    """
    try:
        return model.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise CorruptError(f"{path}: field {where!r} is missing; restore it from a copy") from None
        value = repr(first.get("input"))[:60]
        wanted = first["msg"].removeprefix("Input should be ")
        raise CorruptError(f"{path}: field {where!r} is {value}; wanted {wanted}; restore it from a copy") from None


def run_of(path: str, found: JsonObject) -> JsonObject:
    """The content of run.json; raises as `fits`."""
    fits(_Run, path, found)
    return dict(found)


def delta_of(path: str, tensors: Mapping[str, torch.Tensor], info: JsonObject) -> torch.Tensor:
    """The values [k] of a delta's file; raises as `fits`, and where one of them is no number."""
    fits(_Delta, path, info)
    values = tensors.get("values")
    if values is None or values.dim() != 1 or not values.is_floating_point():
        found = "missing" if values is None else f"{values.dtype} {list(values.shape)}"
        raise CorruptError(f"{path}: tensor 'values' is {found}; wanted floats [k]; restore it from a copy")
    return values


def mask_of(path: str, info: JsonObject) -> JsonObject:
    """The metadata of a mask's file; raises as `fits`."""
    fits(_Mask, path, info)
    return dict(info)


def finite(path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises CorruptError if a value of a file's tensors is NaN or infinite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        for number, part in enumerate(torch.split(tensor.flatten(), AT_ONCE)):
            broken = (~torch.isfinite(part)).nonzero()
            if len(broken):
                first = int(broken[0])
                raise CorruptError(
                    f"{path}: value {number * AT_ONCE + first} of tensor {name!r} is {float(part[first])}; wanted "
                    "finite values; restore it from a copy"
                )
