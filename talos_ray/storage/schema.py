"""What is read from storage passes here: a file that does not hold what its format says is named, with its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from talos_ray.errors import CorruptError

AT_ONCE = (
    1 << 14
)  # values looked at together: so few start no threads of torch, which a process that forks later would miss
Number = Annotated[FiniteFloat, Field(strict=True)]
Part = Annotated[FiniteFloat, Field(strict=True, ge=0, le=1)]
Many = Annotated[int, Field(strict=True, ge=0)]
Text = Annotated[str, Field(strict=True)]


class _Stored(BaseModel):
    """Only what is read by name is asked for; a later release may write more, an earlier one less."""

    model_config = ConfigDict(extra="allow")


class _Score(_Stored):
    value: Part
    n: Many
    low: Part
    high: Part


class _Check(_Stored):
    kind: Text = ""
    what: Text
    task: Text
    wanted: Number
    value: Number
    low: Number
    high: Number
    n: Many
    result: Text
    more: Many | None = None


class _Judged(_Stored):
    result: Literal["pass", "fail", "not enough data to tell"]
    checks: list[_Check]
    settings: dict[str, Any]


class _Version(_Stored):
    version: Many
    model: Text
    coefficients: dict[str, Number]
    kind: Text | None = None
    created: Text | None = None
    base: Text | None = None
    mask: Text | None = None
    rows: Text | None = None
    deltas: dict[str, Text] | None = None
    targets: list[Text] | None = None
    others: list[Text] | None = None
    controls: list[Text] | None = None
    forgotten: list[Text] | None = None
    scores: dict[str, dict[str, _Score]] | None = None
    summary: dict[str, Any] | None = None
    merge: dict[str, Any] | None = None
    gate: _Judged | None = None


class _Run(_Stored):
    format: Many
    spec: dict[str, Any]
    base: Text
    identity: dict[str, Any]
    software: dict[str, Text]


class _Delta(_Stored):
    task: Text
    base: Text
    mask: Text
    fingerprint: Text
    seconds: Number | None = None
    state_bytes: Many | None = None


class _Mask(_Stored):
    base: Text
    fingerprint: Text
    k: Many
    shapes: dict[str, list[Many]]


def version_of(path: str, found: Mapping, number: int) -> dict:
    """A version's content, as it is, if it fits.

    Raises:
        CorruptError: names file and field.
    """
    _fits(_Version, path, found)
    if found["version"] != number:
        raise CorruptError(f"{path}: field 'version' is {found['version']}; wanted {number}; restore it from a copy")
    return dict(found)


def run_of(path: str, found: Mapping) -> dict:
    """The content of run.json; raises as `version_of`."""
    _fits(_Run, path, found)
    return dict(found)


def delta_of(path: str, tensors: Mapping[str, torch.Tensor], info: Mapping) -> torch.Tensor:
    """The values [k] of a delta's file; raises as `version_of`, and where one of them is no number."""
    _fits(_Delta, path, info)
    values = tensors.get("values")
    if values is None or values.dim() != 1 or not values.is_floating_point():
        found = "missing" if values is None else f"{values.dtype} {list(values.shape)}"
        raise CorruptError(f"{path}: tensor 'values' is {found}; wanted floats [k]; restore it from a copy")
    return values


def mask_of(path: str, info: Mapping) -> dict:
    """The metadata of a mask's file; raises as `version_of`."""
    _fits(_Mask, path, info)
    return dict(info)


def finite(path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises CorruptError if a value of a file's tensors is NaN or infinite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        for number, part in enumerate(tensor.flatten().split(AT_ONCE)):
            if not bool(torch.isfinite(part).all()):
                first = int((~torch.isfinite(part)).nonzero()[0])
                raise CorruptError(
                    f"{path}: value {number * AT_ONCE + first} of tensor {name!r} is {float(part[first])}; wanted "
                    "finite values; restore it from a copy"
                )


def _fits(model: type[BaseModel], path: str, found: Mapping) -> None:
    try:
        model.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        value = repr(first.get("input"))[:60]
        wanted = first["msg"].removeprefix("Input should be ")
        raise CorruptError(f"{path}: field {where!r} is {value}; wanted {wanted}; restore it from a copy") from None
