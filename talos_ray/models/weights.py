"""Files of weights: which of a folder's are the model, and whether they are what they look like."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from talos_ray.errors import SpecError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
OPEN_CLIP = "open_clip_model.safetensors"  # the same, as open_clip names it
# as peft names them
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTERS_WEIGHTS = (ADAPTER_WEIGHTS, "adapter_model.bin")
POINTER = b"version https://git-lfs"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
HEADER = 8  # bytes that say how long a safetensors header is
LONGEST_HEADER = 100 << 20  # bytes of one, as its own specification has it
Json = TypeVar("Json", dict[str, Any], list[Any])
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes of weights
FLOATS = ("F16", "BF16", "F32", "F64")  # the same, as safetensors names them


def check_file(path: Path, what: str) -> None:
    """Raises SpecError, in milliseconds, where a file is not what its name says: a pointer of Git LFS, or cut off.
    `what` it belongs to."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(POINTER))
    # What git leaves in place of a large file that was not fetched: a few lines of text under its name.
    if start == POINTER:
        raise SpecError(
            f"{what}: {path.name} is a pointer of Git LFS ({size} bytes) and not the file itself; run `git lfs pull` "
            f"in {str(path.parent)!r}, or download it again"
        )
    if path.suffix == ".safetensors":
        _dtypes(path, what)


def _dtypes(path: Path, what: str) -> dict[str, str]:
    """Every tensor's dtype in a safetensors file, which is looked at without reading a tensor.

    Raises:
        SpecError: it is no such file, or cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(HEADER)
        header = int.from_bytes(start, "little")
        if header > LONGEST_HEADER:  # a name does not make a file: what torch saves is a ZIP, and errors are web pages
            raise SpecError(
                f"{what}: {path.name} begins with {start!r}, as no safetensors file does; wanted one; write its "
                "tensors with safetensors.torch.save_file, or download it again"
            )
        if header > size - HEADER:
            raise SpecError(_cut(path, what, size, HEADER + header))
        try:
            told = json.loads(file.read(header))
            tensors = {name: t for name, t in told.items() if name != "__metadata__"}
            # Tensors lie behind the header, by places from its end: the last one says how long the file has to be.
            end = max((t["data_offsets"][1] for t in tensors.values()), default=0)
            dtypes = {name: t["dtype"] for name, t in tensors.items()}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise SpecError(f"{what}: {path.name} is no safetensors: {error}; write or download it again") from None
    wanted = HEADER + header + end
    if size < wanted:
        raise SpecError(_cut(path, what, size, wanted))
    return dtypes


def _check_weights(path: Path, what: str) -> None:
    """Raises SpecError where a safetensors file holds weights of integers or of 8-bit floating-point numbers: they mean
    something only together with scales that stand elsewhere."""
    odd = {}
    for name, dtype in _dtypes(path, what).items():
        if name.endswith("weight") and dtype not in FLOATS:
            odd[name] = dtype
    if odd:
        first = next(iter(odd))
        raise SpecError(
            f"{what}: {len(odd)} weights of {path.name} are of other dtypes than floating-point ones of 16 or 32 bits, "
            f"the first is {first!r} of {odd[first]}; wanted float32, bfloat16 or float16; take the model that it was "
            "made of"
        )


def _cut(path: Path, what: str, size: int, wanted: int) -> str:
    return (
        f"{what}: {path.name} is cut off: it has {size:,} bytes, and its header says {wanted:,}; download or copy it "
        "again"
    )


def check_folder(folder: Path, what: str) -> None:
    """The same for a model's folder; and that it holds a whole model.

    Raises:
        SpecError: an adapter, a quantised model, a shard that is missing, a file that is broken.
    """
    check_one_meant(folder, what)
    config_file = folder / "config.json"
    if is_adapter(folder) and not config_file.is_file():
        raise SpecError(
            f"{what} is an adapter, which changes a model and is none; wanted whole weights; "
            f"name the model that it was made for, and bring the adapter in with `talos import RUN TASK FOLDER`"
        )
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix not in (".json", ".safetensors", ".bin", ".model"):
            continue
        check_file(path, what)
        if path.suffix == ".safetensors":
            _check_weights(path, what)
    config = read_json(config_file, what) if config_file.is_file() else {}
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "?") if isinstance(quantization, Mapping) else "?"
        raise SpecError(
            f"{what} is quantised ({method}), and weights of a few bits cannot be edited by a sparse delta; wanted "
            "float32, bfloat16 or float16; take the model that it was made of"
        )
    if (folder / INDEX).is_file():
        shards_of(folder, what)


@overload
def read_json(path: Path, what: str) -> dict[str, Any]: ...
@overload
def read_json(path: Path, what: str, kind: type[Json]) -> Json: ...
def read_json(path: Path, what: str, kind: type[Any] = dict) -> Any:
    """An object of a JSON file, or a list. Raises SpecError if it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{what}: {path.name} is no JSON: {error}; download or write it again") from None
    if not isinstance(found, kind):
        raise SpecError(
            f"{what}: {path.name} holds {type(found).__name__}; wanted {kind.__name__}; download or write it again"
        )
    return found


def is_adapter(folder: Path) -> bool:
    """Whether a folder is what peft saves: a change to a model."""
    return (folder / ADAPTER).is_file()


def shards_of(folder: Path, what: str) -> list[Path]:
    """The files that an index names, each with the tensors that it is said to hold.

    Raises:
        SpecError: one of them is not there, lies elsewhere or holds others; a tensor stands in two; beside them there
            are whole weights.
    """
    places = read_json(folder / INDEX, what).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise SpecError(
            f"{what}: {INDEX} has no weight_map from tensors to files; wanted what save_pretrained writes; download or "
            "write it again"
        )
    names = sorted(set(places.values()))
    # A path would lead out of the folder, and any other file may hold code.
    odd = [name for name in names if Path(name).name != name or Path(name).suffix != ".safetensors"]
    if odd:
        raise SpecError(
            f"{what}: {INDEX} names the file {odd[0]!r}; wanted safetensors files that lie beside it; download or "
            "write them again"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise SpecError(
            f"{what}: {len(missing)} of the {len(names)} files that {INDEX} names are missing, the first is "
            f"{missing[0]!r}; download or copy them"
        )
    if WHOLE not in names and (folder / WHOLE).is_file():
        raise SpecError(
            f"{what} holds {WHOLE} and {INDEX}, which names other files; wanted one of the two, because nobody can "
            f"tell which is the model; move the other away"
        )
    _check_shards(folder, places, what)
    return [folder / name for name in names]


def _check_shards(folder: Path, places: Mapping[str, str], what: str) -> None:
    """Raises SpecError unless every tensor stands in the file that an index names for it, and in no other of these."""
    shard_of: dict[str, str] = {}
    for shard in sorted(set(places.values())):
        check_file(folder / shard, what)
        for tensor in _dtypes(folder / shard, what):
            if tensor in shard_of:
                raise SpecError(
                    f"{what}: tensor {tensor!r} stands in {shard_of[tensor]!r} and in {shard!r}; wanted it in one of "
                    f"the files that {INDEX} names; download or write them again"
                )
            shard_of[tensor] = shard
    misplaced = [tensor for tensor, shard in places.items() if shard_of.get(tensor) != shard]
    if misplaced:
        first = misplaced[0]
        raise SpecError(
            f"{what}: {len(misplaced)} tensors are not in the files that {INDEX} names for them, the first is "
            f"{first!r} in {places[first]!r}; wanted what save_pretrained writes; download or write it again"
        )


def tensors_at(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Weights by name of a safetensors file, or of the model in a folder: what its index names, or model.safetensors,
    and nothing else.

    Raises:
        SpecError: several files and no word on which are the model, an adapter's weights alone, a file that is broken.
    """
    files = _files_of(path, what) if path.is_dir() else [path]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        check_file(file, what)
        _check_weights(file, what)
        try:
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
            # As peft names an adapter's tensors.
            if any("lora_" in name for name in names):
                raise SpecError(
                    f"{what} is the weights of an adapter alone; wanted its folder, with {ADAPTER}; name the folder"
                )
            tensors |= load_file(file)
        except SafetensorError as error:
            raise SpecError(f"{what}: {file.name} is no safetensors: {error}; write it again") from None
    return tensors


def check_one_meant(folder: Path, what: str) -> None:
    """Raises SpecError where a folder holds an adapter and whole weights beside it: nobody can tell which is meant."""
    adapter = [name for name in (ADAPTER, *ADAPTERS_WEIGHTS) if (folder / name).is_file()]
    whole = [name for name in (INDEX, WHOLE, OPEN_CLIP) if (folder / name).is_file()]
    if adapter and whole:
        raise SpecError(
            f"{what} holds an adapter ({adapter[0]}) and whole weights ({whole[0]}); wanted one of the two; "
            f"name the weights' file itself, or a folder of the adapter alone"
        )


def _files_of(folder: Path, what: str) -> list[Path]:
    check_one_meant(folder, what)
    if (folder / INDEX).is_file():
        return shards_of(folder, what)
    for name in (WHOLE, OPEN_CLIP):
        if (folder / name).is_file():
            return [folder / name]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise SpecError(
            f"{what} holds {len(files)} safetensors files ({', '.join(f.name for f in files[:4])}) and neither "
            f"{WHOLE} nor {INDEX}; "
            f"wanted one that is the model; name the file itself"
        )
    return files


def compared(tuned: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], what: str) -> str | None:
    """What somebody should know of a fine-tuned checkpoint before it is imported: that it is the base, or the base but
    for rounding.

    Raises:
        SpecError: a value that is not finite.
    """
    changed = 0
    rounded = 0
    for name, before in base.items():
        after = tuned[name]
        if not after.is_floating_point():
            continue
        if not after.isfinite().all():
            raise SpecError(
                f"{what}: tensor {name!r} holds NaN or infinite values; wanted finite weights; train it again, or "
                "take an earlier checkpoint"
            )
        if torch.equal(after.to(before.dtype), before):
            continue
        changed += 1
        rounded += _is_rounded(after, before)
    if not changed:
        return f"{what} is the base itself in every weight that may change; there is nothing in it to import"
    if changed == rounded:
        return (
            f"{what} is the base but for rounding to 16 bits; there is nothing in it to import; was it saved before "
            "it was trained?"
        )
    return None


def _is_rounded(after: torch.Tensor, before: torch.Tensor) -> bool:
    return any(torch.equal(after.float(), before.to(kind).float()) for kind in (torch.bfloat16, torch.float16))


def told_left_out(
    tuned: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], kept: Collection[str], what: str
) -> str | None:
    """That a checkpoint has also changed tensors that no run changes, if it has: without them it may answer otherwise.

    Args:
        kept: names of the tensors that may change.
    """
    changed = []
    for name, before in base.items():
        if name in kept or name not in tuned or not before.is_floating_point():
            continue
        after = tuned[name]
        same = after.shape == before.shape and torch.equal(after.to(before.dtype), before)
        # What was saved in 16 bits differs everywhere, without having been trained.
        if not same and not _is_rounded(after, before):
            changed.append(name)
    if not changed:
        return None
    return (
        f"{what}: {len(changed)} of its tensors that no run changes differ from the base, the first is {changed[0]!r}; "
        "they are left out, so it may answer otherwise than it did where it was trained"
    )
