"""Adapters of Hugging Face's PEFT, in and out. PEFT itself reads, merges and writes them, and is loaded for that only.

In: whatever PEFT can merge into a base is weights like any other checkpoint's. Out: what an edit changed in linear
layers, as a SHiRA adapter (Bhardwaj et al., 2024), whose form is a delta's: positions, and float32 values that are
added to the base.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

from talos_ray.errors import SpecError, TalosError
from talos_ray.models.weights import ADAPTER, ADAPTER_WEIGHTS, check_file

if TYPE_CHECKING:
    from peft import PeftModel

Weights = Mapping[str, torch.Tensor]

ENTRY = 12  # bytes of one weight in a SHiRA adapter: two int32 positions and a float32
INSIDE = "base_model.model."  # stands before every name of the model in an adapter
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
FAILED = (  # what peft raises, mostly of a configuration that it does not expect
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError,
    ValueError, re.error,
)  # fmt: skip


def library(what: str) -> ModuleType:
    """The library. Raises SpecError, with what it is needed for, where it is not installed."""
    try:
        return import_module("peft")
    except ImportError as error:
        raise SpecError(
            f"{what} needs the library peft ({error}); wanted it installed; pip install 'talos_ray[peft]'"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without peft's warnings, and with the random numbers of the caller: layers that it makes draw some."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# ------------------------------------------------------------------------------------------------ in


def other_base(folder: Path, model: str) -> str | None:
    """What an adapter says of its base, where that is called otherwise than a run's model (as a spec names it):
    shapes may fit all the same, and then nothing else would tell."""
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):  # whoever loads it names what is wrong
        return None
    own = model.partition(":")[2] or model
    # By the last part of the name: the same model may lie in another folder, or under another owner.
    return base if isinstance(base, str) and Path(base).name != Path(own).name else None


def merged(folder: Path, module: nn.Module, what: str) -> dict[str, torch.Tensor]:
    """Weights by name of a model into which an adapter has been merged, as `merge_and_unload` does it.

    Args:
        folder: as `PeftModel.save_pretrained` writes it.
        module: a copy of the base, for this alone: it is written to.
        what: what the adapter is called in an error.

    Raises:
        SpecError: peft is not installed, the adapter cannot be read or merged, or belongs to another model.
    """
    peft = library(what)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise SpecError(
            f"{what} is an adapter without {ADAPTER_WEIGHTS}; wanted weights as safetensors; save it again with "
            f"`model.save_pretrained(FOLDER, safe_serialization=True)`"
        )
    check_file(folder / ADAPTER_WEIGHTS, what)
    with _quiet():
        config = _config(peft, folder, what)
        kind = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning:
            raise _unmerged(what, kind, "it adds to what the model reads and changes none of its weights")
        config.task_type = None  # the classes of a task want a head that the base may not have
        before = _names(module)
        try:
            adapted = peft.PeftModel(module, config)
            loaded = adapted.load_adapter(str(folder), "default", torch_device="cpu")
        except FAILED as error:
            raise SpecError(
                f"{what}, of type {kind}, does not fit the model: {_first(error)}; give one of this base"
            ) from None
        if not isinstance(adapted.base_model, peft.tuners.tuners_utils.BaseTuner):
            raise _unmerged(what, kind, "it adds layers and changes no weights")
        _check_loaded(loaded, adapted, what)
        # Only merging shows whether this kind of adapter can be merged: peft keeps no list of those that can.
        try:
            whole = adapted.merge_and_unload()
        except FAILED as error:
            raise _unmerged(what, kind, _first(error)) from None
        # An adapter may repeat layers or leave some out, and what it learned for these has no place in the base.
        if other := sorted(_names(whole) ^ before):
            raise SpecError(
                f"{what}, of type {kind}, makes another network of the base: {len(other)} tensors came or went, the "
                f"first is {other[0]!r}; wanted the base's own layers; train one without `layer_replication`"
            )
    return {name: tensor.detach() for name, tensor in whole.state_dict().items()}


def _names(module: nn.Module) -> set[str]:
    """Of all parameters; one that is used twice has two."""
    return {name for name, _ in module.named_parameters(remove_duplicate=False)}


def _config(peft: ModuleType, folder: Path, what: str) -> Any:
    """An adapter's configuration, as peft has it. Raises SpecError where that cannot read it."""
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except FAILED as error:
        raise SpecError(
            f"{what}: its adapter_config.json cannot be read by peft {peft.__version__}: {_first(error)}"
        ) from None
    if config.peft_type is None:
        raise SpecError(
            f"{what}: its adapter_config.json has no peft_type; wanted what `save_pretrained` writes; save it again"
        )
    # peft loads a module by the name that such a configuration gives, and what is loaded may run.
    if getattr(config, "megatron_config", None) is not None:
        raise SpecError(
            f"{what} is for layers of Megatron, which no run has; wanted an adapter of this very network; train one"
        )
    return config


def _unmerged(what: str, kind: str, why: str) -> SpecError:
    return SpecError(
        f"{what} is of type {kind}, which cannot be merged into a model: {why}; wanted an adapter that can be merged "
        f"(LoRA, DoRA, IA3, SHiRA, …); train one of these"
    )


class Loaded(Protocol):
    """What peft says of the tensors that it was given."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def _check_loaded(loaded: Loaded, adapted: PeftModel, what: str) -> None:
    """Raises SpecError where a tensor of the adapter found no place, or a place no tensor. A head that only the adapter
    has does not count."""
    own = adapted.base_model.prefix
    missing = set(loaded.missing_keys)
    tensors = adapted.state_dict(keep_vars=True)
    # VB-LoRA's vectors stand under a name in every layer, are one tensor, and are saved once.
    filled = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    lost = [name for name in loaded.unexpected_keys if own in name]
    empty = [name for name in loaded.missing_keys if own in name and id(tensors.get(name)) not in filled]
    if lost or empty:
        name, fault = (lost[0], "no place in the model") if lost else (empty[0], "no value in the adapter")
        raise SpecError(
            f"{what}: tensor {name.removeprefix(INSIDE)!r} has {fault} ({len(lost)} and {len(empty)} such); "
            f"wanted an adapter of this very network; if it was trained with a head around it, merge it there "
            f"(`merge_and_unload`) and import the whole"
        )


# ----------------------------------------------------------------------------------------------- out


@dataclass(frozen=True, eq=False)
class Entries:
    """What has to be added to one matrix, in this order.

    Args:
        index: int64 [n], row-major. A position may come twice.
        values: float32 [n].
    """

    index: torch.Tensor
    values: torch.Tensor


def entries(before: torch.Tensor, after: torch.Tensor) -> Entries:
    """What makes `after` of `before` bit by bit, added in float32 and rounded to the matrix's dtype, as peft adds it.

    Their difference, rounded, mostly does. Where it does not, a neighbour may; and where a weight has become so small
    that no float32 leads to it, two entries do: the first takes the old value away, the second brings the new one.
    """
    index = (bits(before) != bits(after)).flatten().nonzero().flatten()
    old = before.flatten()[index]
    new = after.flatten()[index]
    values = new.float() - old.float()

    def exact(values: torch.Tensor) -> torch.Tensor:
        return bits((old.float() + values).to(old.dtype)) == bits(new)

    # A float32 above or below, where adding and rounding to 16 bits just misses.
    for side in (float("inf"), float("-inf")):
        near = values.nextafter(torch.tensor(side))
        values = torch.where(~exact(values) & exact(near), near, values)
    # The old value and its negative make 0, to which any float32 adds exactly.
    twice = (~exact(values)).nonzero().flatten()
    values[twice] = -old[twice].float()
    return Entries(torch.cat([index, index[twice]]), torch.cat([values, new[twice].float()]))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same as integers, which tell 0.0 from -0.0."""
    return tensor.contiguous().view(BITS[tensor.element_size()])


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not bitwise the same."""
    return [name for name, tensor in before.items() if not torch.equal(bits(tensor), bits(after[name]))]


def save_shira(
    copy: Callable[[], nn.Module],
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    to: Path,
    base_name: str | None,
) -> None:
    """Write an edit as a SHiRA adapter that makes `after` of the base bit by bit, and prove it by loading it again.

    Args:
        copy: a new copy of the base's network at each call.
        before, after: tensors by name, of the base and of the edited model.
        to: folder.
        base_name: what transformers loads the base by, if it does.

    Raises:
        SpecError: something else than weights of nn.Linear changed, too much of them, or nothing; then none is written.
    """
    peft = library("an export as an adapter")
    module = copy()
    # Not by `isinstance`: what derives from it may compute otherwise, and peft would not know.
    layers = {name: layer for name, layer in module.named_modules() if type(layer) is nn.Linear}
    changes = _linear_changes(layers, before, after)
    rank, whole = _rank({name: (layers[name], len(added.index)) for name, added in changes.items()})
    sparse = {name: added for name, added in changes.items() if name not in whole}
    config = peft.ShiraConfig(
        r=rank,
        target_modules=f"({'|'.join(map(re.escape, sparse))})",  # a list would also match longer names that end alike
        modules_to_save=whole or None,
        base_model_name_or_path=base_name,
    )
    with _quiet():
        adapted = peft.PeftModel(module, config)
        for name, needed in sparse.items():
            # The configuration names this layer. From Python 3.12 on no `isinstance` sees what a module only registers.
            layer = cast(ShiraLayer, adapted.get_submodule(f"{INSIDE}{name}"))
            _fill(layer, needed)
        for name in whole:
            saved = adapted.get_submodule(f"{INSIDE}{name}").modules_to_save["default"]
            saved.weight.data.copy_(after[f"{name}.weight"])
        adapted.save_pretrained(str(to), save_embedding_layers=False)
        # From the files and in another copy of the base: what is on the disk is what somebody will load.
        again = peft.PeftModel.from_pretrained(copy(), str(to)).merge_and_unload().state_dict()
    if wrong := changed(after, again):
        raise TalosError(
            f"the adapter in {str(to)!r} does not make tensor {wrong[0]!r} bit by bit with peft {peft.__version__}; "
            f"do not use it; export with --delta, and report this"
        )


def _linear_changes(layers: Mapping[str, nn.Linear], before: Weights, after: Weights) -> dict[str, Entries]:
    """What changed, by layer. Raises SpecError if that is not only weights of linear layers."""
    names = changed(before, after)
    weights = {f"{layer}.weight": layer for layer in layers}
    if others := [name for name in names if name not in weights]:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise SpecError(
            f"a SHiRA adapter holds weights of linear layers, and {len(others)} other tensors changed: "
            f"{', '.join(others[:3])}{more}; wanted none; export with --delta, which holds any tensor"
        )
    if not names:
        raise SpecError(
            "no weight differs from the base; wanted an edit; name a version or task that changes something"
        )
    return {weights[name]: entries(before[name], after[name]) for name in names}


def _rank(layers: Mapping[str, tuple[nn.Linear, int]]) -> tuple[int, list[str]]:
    """SHiRA's r, and the layers that are saved whole beside it.

    Every layer of an adapter has r * (inputs + outputs) entries, with one r for all, and no more than it has weights.
    So r is what the fullest layer needs. Where another layer cannot have as many, it is the r with the fewest bytes
    in all, and the layers that do not fit are saved whole (`modules_to_save`).
    """
    width = {name: layer.in_features + layer.out_features for name, (layer, _) in layers.items()}
    least = {name: -(-count // width[name]) for name, (_, count) in layers.items()}  # rounded up
    most = {name: layer.weight.numel() // width[name] for name, (layer, _) in layers.items()}

    def left_out(rank: int) -> list[str]:
        return [name for name in layers if not least[name] <= rank <= most[name]]

    def size(rank: int) -> int:
        whole = left_out(rank)
        as_entries = sum(rank * ENTRY * width[name] for name in layers if name not in whole)
        saved_whole = sum(layers[name][0].weight.nbytes for name in whole)
        return as_entries + saved_whole

    fullest = max(least.values())
    if not left_out(fullest):
        return fullest, []
    # Between two layers' needs a larger r only adds empty entries, so no others are tried.
    possible = sorted(rank for rank in set(least.values()) if len(left_out(rank)) < len(layers))
    if not possible:
        name, (layer, count) = next(iter(layers.items()))
        raise SpecError(
            f"no layer that changed fits into a SHiRA adapter: {name!r} needs {count:,} entries for its "
            f"{layer.weight.numel():,} weights; wanted a sparse edit; export the whole model"
        )
    best = min(possible, key=size)
    return best, left_out(best)


class ShiraLayer(Protocol):
    """What peft puts around a linear layer."""

    in_features: int
    shira_weight: nn.ParameterDict
    shira_indices: dict[str, torch.Tensor]


def _fill(layer: ShiraLayer, needed: Entries) -> None:
    """Put entries into a SHiRA layer, and -0.0 into the places that are left: adding it changes no number's bits."""
    # peft has as many places as its r says, and knows no empty one: each needs a position.
    values = layer.shira_weight["default"]
    free = values.numel() - len(needed.index)
    index = torch.cat([needed.index, needed.index[:1].expand(free)])
    width = layer.in_features
    layer.shira_indices["default"] = torch.stack([index // width, index % width]).int()
    values.data = torch.cat([needed.values, torch.full((free,), -0.0)])
