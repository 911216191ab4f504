"""Models of the Hugging Face Hub, or of a folder: which family reads one, and what all of them share."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, overload

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from talos_ray.config import HUB_NAME, OTHER_WEIGHTS
from talos_ray.errors import SpecError
from talos_ray.models.family import Family
from talos_ray.models.weights import Json, check_folder, is_adapter, read_json

Model = Any  # of transformers: which methods and settings it has, only the class knows that its checkpoint names
Tokenizer = Any  # PreTrainedTokenizerBase of transformers, whose sources mypy does not read

LONGEST = 512  # tokens, where neither the model nor its tokenizer says less
COLUMNS = 8  # whose multiples a GPU takes at once; and so its batches have few lengths
PAD = -1  # stands for "no token" in inputs and heads: not every tokenizer has a token for it
LENGTH = "sentence_bert_config.json"  # where sentence-transformers says how many tokens are read
TWO_TOWERS = ("clip", "siglip")  # model types that read images and, for their heads, texts


def check(name: str) -> None:
    """Raises SpecError unless `name` is a folder with a model, or could be one of the Hugging Face Hub."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / "config.json").is_file() and not is_adapter(path):
            raise SpecError(
                f"model 'hf:{name}': folder {name!r} has no config.json; wanted what save_pretrained writes; check "
                "the path"
            )
        check_folder(path, f"model 'hf:{name}'")
    # What looks like a path was meant as one, and is not asked for at the Hub.
    elif name.startswith((".", "~")) or not HUB_NAME.match(name.partition("@")[0]):
        raise SpecError(
            f"model 'hf:{name}': {name!r} is no folder and no name of the Hub; wanted a path, OWNER/NAME, or "
            "OWNER/NAME@REVISION; check it"
        )


def load(name: str, pretrained: bool = True) -> Family:
    """Build `hf:NAME` by the family that reads it, or `hf-bf16:NAME`, the same with weights in bfloat16; with
    `pretrained=False` the weights are left random. `NAME@REVISION` is a branch, tag or commit of the Hub.

    Raises:
        SpecError: it cannot be reached or read, or no family reads it.
    """
    kind, _, given = name.partition(":")
    where = _at_revision(name, given)
    dtype = torch.bfloat16 if kind == "hf-bf16" else torch.float32
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(where)
        family = import_module(f"talos_ray.models.{_family(name, config)}")
        tokenizer = AutoTokenizer.from_pretrained(where)
        missing: set[str] = set()
        extra: set[str] = set()
        if pretrained:
            # Shapes that differ are passed over here, because transformers' own error is pages long.
            module, report = family.AUTO.from_pretrained(
                where, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
            _check_shapes(name, report["mismatched_keys"])
            missing = set(report["missing_keys"])
            extra = set(report["unexpected_keys"])
        else:
            module = family.AUTO.from_config(config, dtype=dtype)
    except ImportError as error:  # before the others: what is missing is said first
        raise SpecError(
            f"model {name!r} needs a library that is not here: {_first(error)}; install it with pip"
        ) from None
    except SpecError:
        raise
    except (SafetensorError, UnpicklingError, EOFError, struct.error) as error:
        raise SpecError(
            f"model {name!r}: its weights cannot be read: {_first(error)}; they were cut off or are not what their "
            "name says; download them again"
        ) from None
    except Exception as error:  # of whatever kind: files that others wrote lead transformers anywhere
        raise SpecError(f"model {name!r} cannot be loaded: {_other_kind(where) or _first(error)}") from None
    if getattr(config, "quantization_config", None) is not None:
        raise SpecError(
            f"model {name!r} is quantised, and weights of a few bits cannot be edited by a sparse delta; take the "
            "model that it was made of"
        )
    _check_all_layers(name, module, extra)
    _check_words(name, module, tokenizer)
    made: Family = family.make(module, tokenizer, where, _length(where, config, module, tokenizer))
    _check_complete(name, config, made, missing)
    return made


# Files of what is no model by itself -> what it is, and what would be one.
OTHER_KINDS = {
    "talos.json": "the weights that a version of talos_ray changed; wanted a whole model: push that with --whole",
    "adapter_config.json": "an adapter; wanted the model that it was trained on",
}


def _other_kind(where: str) -> str:
    """What a folder or repository holds, if that is not a model but a change of one."""
    for file, what in OTHER_KINDS.items():
        if _holds(where, file) and not _holds(where, "config.json"):
            return f"it holds {what}, and give this as `checkpoint` of a task"
    return ""


def _holds(where: str, file: str) -> bool:
    if Path(where).exists():
        return (Path(where) / file).exists()
    try:
        return HfApi().file_exists(where, file)
    except Exception:  # the Hub's library raises many kinds, and why it cannot be loaded is told already
        return False


def _at_revision(name: str, given: str) -> str:
    """What transformers loads a model by: a folder, a name of the Hub, or the folder of a revision's files.

    Raises:
        SpecError: no such revision, or the Hub cannot be reached.
    """
    repository, _, revision = given.partition("@")
    folder = Path(given).expanduser()
    if not revision or folder.exists():
        return str(folder)
    # Downloaded as a whole, so that configuration, tokenizer and weights are all of one commit.
    try:
        return snapshot_download(repository, revision=revision, ignore_patterns=list(OTHER_WEIGHTS))
    except Exception as error:  # the Hub's library raises many kinds
        raise SpecError(
            f"model {name!r} cannot be had from the Hub: {_first(error)}; wanted OWNER/NAME@REVISION with a branch, "
            "tag or commit; check both, and the network"
        ) from None


def _length(where: str, config: PretrainedConfig, module: Model, tokenizer: Tokenizer) -> int:
    """How many tokens a model reads: the least that anything beside it says."""
    positions = getattr(config, "max_position_embeddings", None)
    longest = beside(where, LENGTH).get("max_seq_length") or positions or LONGEST
    limits = (longest, LONGEST, _positions(module), tokenizer.model_max_length)
    return min(limit for limit in limits if limit > 0)  # -1 where there is none (XLNet)


def _check_complete(name: str, config: PretrainedConfig, family: Family, missing: Iterable[str]) -> None:
    """Raises SpecError where a checkpoint lacks weights that are read: they are random, and others at every loading."""
    unread = getattr(family, "unread", ())
    random = sorted(weight for weight in missing if not weight.startswith(unread))
    if random:
        which = "to be edited" if any(weight.startswith(family.edited) for weight in random) else "that are read"
        raise SpecError(
            f"model {name!r}: its checkpoint, a {_made_for(config)}, lacks {len(random)} of the weights "
            f"{which}, the first is {random[0]!r}; wanted all of a {type(family.module).__name__}; name a checkpoint "
            "that has them"
        )


def _check_shapes(name: str, odd: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Raises SpecError where tensors of a checkpoint have other shapes than its configuration says.

    Args:
        odd: names, shapes that were found and shapes that were wanted.
    """
    if odd := sorted(odd):
        tensor, found, wanted = odd[0]
        raise SpecError(
            f"model {name!r}: tensor {tensor!r} of its weights has shape {list(found)}; wanted {list(wanted)}, as its "
            f"config.json says ({len(odd)} such); correct config.json, or download the weights again"
        )


def _positions(module: nn.Module) -> int:
    """How many tokens a model of RoBERTa's kin has positions for: theirs begin behind the number of the padding token.
    -1 for all others."""
    positions = []
    for name, table in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            positions.append(table.num_embeddings - table.padding_idx - 1)
    return min(positions, default=-1)


def _check_words(name: str, module: Model, tokenizer: Tokenizer) -> None:
    """Raises SpecError where a tokenizer has more words than its model: that of another model."""
    reader: Model = getattr(module, "text_model", module)  # of two towers, the one that reads texts
    known = len(reader.get_input_embeddings().weight)
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):  # which transformers makes up where there are no files
        raise SpecError(
            f"model {name!r}: its tokenizer knows no words; wanted the tokenizer that it was trained with; copy its "
            "files (tokenizer.json) into the folder"
        )
    if tokenizer.vocab_size > known:
        raise SpecError(
            f"model {name!r} knows {known} words, but its tokenizer has {tokenizer.vocab_size}; wanted the tokenizer "
            "that it was trained with; copy its files into the folder"
        )


def _check_all_layers(name: str, module: Model, extra: Iterable[str]) -> None:
    """Raises SpecError where a checkpoint holds more layers than its configuration says: transformers would leave out
    the upper ones without a word.

    Args:
        extra: names of tensors that have no place in the module.
    """
    # A checkpoint's names may begin with what the module itself is called where it is a part of another.
    begin = rf"(?:{re.escape(module.base_model_prefix)}\.)?"
    for place, layers in module.named_modules():
        if not isinstance(layers, nn.ModuleList):
            continue
        numbered = re.compile(rf"{begin}{re.escape(place)}\.(\d+)\.")
        numbers = [int(match[1]) for match in map(numbered.match, extra) if match is not None]
        count = max(numbers, default=-1) + 1
        if count > len(layers):
            raise SpecError(
                f"model {name!r}: its weights hold {count} layers of {place!r}, and its config.json says "
                f"{len(layers)}; wanted as many; correct config.json, or save the shortened model with "
                "save_pretrained"
            )


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _made_for(config: PretrainedConfig) -> str:
    """The class that a checkpoint was saved from."""
    made_for: str = (config.architectures or ["?"])[0]
    return made_for


def _family(name: str, config: PretrainedConfig) -> str:
    """The file of the family that reads a model."""
    made_for = _made_for(config)
    if made_for.endswith("ForSequenceClassification"):
        return "classifier"
    if config.is_encoder_decoder:
        return "seq2seq"
    if "CausalLM" in made_for or "LMHead" in made_for or getattr(config, "is_decoder", False):
        return "causal"
    if config.model_type in TWO_TOWERS:
        return "vision"
    if hasattr(config, "vision_config"):
        raise SpecError(
            f"model {name!r} is a {made_for} ({config.model_type}), which reads images in a way of its own; wanted "
            "CLIP or SigLIP, or a model of texts alone"
        )
    if made_for.endswith(("ForImageClassification", "VisionModel", "ViTModel")):
        raise SpecError(
            f"model {name!r} is a {made_for}, which reads images and knows no words; wanted CLIP or SigLIP, a text "
            "encoder, a sequence-to-sequence model or a causal LM"
        )
    return "encoder"


def blocks(module: Model) -> str:
    """Name of the list of transformer blocks. What stands outside (a pooler, for instance) may not be used at all, and
    an unused weight would look like the least sensitive one."""
    sizes: dict[str, int] = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList):
            sizes[name] = sum(parameter.numel() for parameter in part.parameters())
    # Every library calls it otherwise; but nothing else in a model is as large.
    return max(sizes, key=sizes.__getitem__)


def stacks(module: Model) -> tuple[str, ...]:
    """Prefixes of the blocks of an encoder and a decoder."""
    towers = {id(module.get_encoder()), id(module.get_decoder())}
    return tuple(f"{name}.{blocks(part)}." for name, part in module.named_modules() if id(part) in towers)


@overload
def beside(where: str, name: str) -> dict[str, Any]: ...
@overload
def beside(where: str, name: str, kind: type[Json]) -> Json: ...
def beside(where: str, name: str, kind: type[Any] = dict) -> Any:
    """A JSON file beside the model, as sentence-transformers puts there; empty if there is none."""
    found = cached_file(
        where, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return read_json(Path(found), f"model {where!r}", kind) if found else kind()


def filler(module: Model, *tokens: int | None) -> int:
    """The first of some tokens that the model has an embedding of; any, if none is. It stands where nothing attends."""
    known = len(module.get_input_embeddings().weight)
    return next((token for token in tokens if token is not None and 0 <= token < known), 0)


def padded(rows: list[list[int]], length: int | None = None) -> torch.Tensor:
    """Token ids int64 [n, length], PAD where a row ends sooner."""
    length = length or max(map(len, rows))
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def used(there: torch.Tensor) -> int:
    """Columns of a batch [n, l] that any row uses: all where there are only shapes, and while a GPU records a step,
    which cannot ask."""
    columns = there.shape[1]
    if there.is_meta or (there.is_cuda and torch.cuda.is_current_stream_capturing()):
        return columns
    longest = max(1, int(there.sum(1).max()))
    if not there.is_cuda:
        return longest
    rounded = -(-longest // COLUMNS) * COLUMNS
    return min(columns, rounded)


def cut(inputs: torch.Tensor, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch without the columns that no row uses: token ids [n, l], `pad` where there is none, and where there is
    one, bool [n, l]."""
    there = inputs != PAD
    longest = used(there)
    return inputs.where(there, pad)[:, :longest], there[:, :longest]


def attended(there: torch.Tensor) -> torch.Tensor | None:
    """The attention mask of texts; none where there are only shapes, because transformers would look at its values."""
    return None if there.is_meta else there.long()
