"""Model families behind one small protocol; each is a file. `load_model` is the only door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch

from talos_ray.config import HUB_NAME, HUGGING_FACE
from talos_ray.core.layout import Layout, eligible_layout, fingerprint
from talos_ray.errors import SpecError, nearest
from talos_ray.models.family import Family as Family
from talos_ray.models.family import TextFamily
from talos_ray.models.weights import PICKLED, tensors_at

FAMILIES = (
    "demo",
    "open_clip:ARCHITECTURE/PRETRAINED",
    "hf:NAME_OR_FOLDER",
    "hf-bf16:NAME_OR_FOLDER",
    "python:MODULE:FUNCTION",
)
_HOME = {
    "demo": "clip",
    "open_clip": "clip",
    "hf": "hf",
    "hf-bf16": "hf",
    "python": "python",
}  # loaded when first used: each brings its library


class _Home(Protocol):
    """What the file of a family has."""

    def check(self, name: str) -> None: ...

    def load(self, name: str, pretrained: bool = True) -> Family: ...


def _home(name: str) -> _Home:
    """The family's own file."""
    kind = name.partition(":")[0]
    if kind not in _HOME or (kind == "demo") != (name == "demo"):
        hint = nearest(kind, _HOME)
        raise SpecError(f"model {name!r} is not known{hint}; wanted one of: {', '.join(FAMILIES)}")
    home: _Home = import_module(f"talos_ray.models.{_HOME[kind]}")
    return home


def allow_code(modules: str | Sequence[str]) -> None:
    """Let `python:` models of these modules run their code: see `talos_ray.models.python`."""
    if modules:
        import_module("talos_ray.models.python").allow(modules)


def runs_code(name: str) -> bool:
    """Whether a model of this name is somebody's code."""
    return name.partition(":")[0] == "python"


def check_model(name: str) -> None:
    """Raises SpecError, in milliseconds, unless `name` is a model that could be loaded."""
    home = _home(name)
    if name != "demo":
        home.check(name.partition(":")[2])


def hub_name(name: str) -> str | None:
    """What the Hugging Face Hub calls a model, OWNER/NAME or NAME; None where it does not have it, or nobody knows."""
    kind, _, place = name.partition(":")
    if kind == "open_clip":
        found: str | None = import_module(f"talos_ray.models.{_HOME[kind]}").hub_name(place)
        return found
    repository = place.partition("@")[0]
    known = kind in HUGGING_FACE and HUB_NAME.match(repository) and not Path(place).exists()
    return repository if known else None


def load_model(name: str, tokens: int | None = None) -> Family:
    """The model with its pretrained weights; `tokens`: of a text, that it reads at most.

    Raises:
        SpecError: not known, its checkpoint cannot be read, or `tokens` is given and it reads no texts.
    """
    check_model(name)
    return _reading(_home(name).load(name), name, tokens)


def _reading(family: Family, name: str, tokens: int | None) -> Family:
    if tokens is not None:
        length = getattr(family, "length", None)
        if length is None:
            raise SpecError(f"tokens is {tokens}, and model {name!r} reads no texts; leave it out")
        vars(family)["length"] = min(length, tokens)
    return family


def shape_of(name: str, tokens: int | None = None) -> Family:
    """The model on torch's meta device: shapes without data, of any size at no cost.

    Raises:
        SpecError: not known, or its configuration cannot be read.
    """
    check_model(name)
    with torch.device("meta"):
        return _reading(_home(name).load(name, pretrained=False), name, tokens)


def checkpoint_tensors(name: str) -> dict[str, torch.Tensor]:
    """Weights by name of a checkpoint: a safetensors file, a folder of them, or a model as `load_model` reads one.

    Raises:
        SpecError: nothing there, not readable, or a format that holds code (pickle).
    """
    path = Path(name).expanduser()
    if path.suffix.lower() in PICKLED:
        raise SpecError(
            f"checkpoint {name!r} is a {path.suffix} file, which may hold code; wanted safetensors; write its state "
            "dict with safetensors.torch.save_file, or name a model whose library reads it"
        )
    here = path.is_file() or (path.is_dir() and any(path.glob("*.safetensors*")))
    if not here and ":" not in name:
        raise SpecError(
            f"checkpoint {name!r} is no safetensors file and no folder that holds one; wanted either, or a model like "
            "'hf:FOLDER'; check the path"
        )
    return tensors_at(path, f"checkpoint {name!r}") if here else base_tensors(load_model(name))


def build_model(
    name: str, tensors: Mapping[str, torch.Tensor], private: Sequence[str], tokens: int | None = None
) -> Family:
    """The same model without reading a checkpoint: weights are *aliased* to `tensors`, except that those
    named in `private`, which will be written to, are copied. So all processes of a node can share one base."""
    family = _reading(_home(name).load(name, pretrained=False), name, tokens)
    written = set(private)
    # Tied weights under all their names: `tensors` may know them by any.
    places: dict[str, torch.Tensor] = dict(family.module.named_parameters(remove_duplicate=False))
    places |= dict(family.module.named_buffers())
    for key, value in tensors.items():
        places[key].data = value.clone() if key in written else value
    return family


def base_tensors(family: Family) -> dict[str, torch.Tensor]:
    """Every weight and stored buffer by name: what the fingerprint covers."""
    return {name: tensor.detach() for name, tensor in family.module.state_dict().items()}


def base_fingerprint(family: Family) -> str:
    return fingerprint(base_tensors(family))


def shortened(family: Family, inputs: torch.Tensor) -> torch.Tensor:
    """Inputs of a batch without padding that none of them needs, if the family has any."""
    return family.shorten(inputs) if isinstance(family, TextFamily) else inputs


def layout_of(family: Family) -> Layout:
    """The eligible weights of a family, in canonical order."""
    return eligible_layout(family.module, family.edited)
