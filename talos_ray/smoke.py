"""A spec made small: the same path through the code in a minute, on a tiny model of the same class and a few made-up
rows.

For trying a spec, a cluster or a recipe before its models and data are there. Scores mean nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np

from talos_ray.config import HUGGING_FACE, Spec, Task, Train

if TYPE_CHECKING:
    from PIL.Image import Image

FILLERS = [
    "the",
    "old",
    "one",
    "near",
    "here",
    "was",
    "seen",
    "again",
    "by",
    "us",
    "and",
    "it",
    "is",
    "not",
    "far",
    "from",
]
MADE_UP = ("amber", "basalt", "cedar")  # classes where the spec names none: its data do
ROWS = {"train": 48, "validation": 24, "test": 24}
SIDE = 32  # pixels
LISTED = 8  # entries of a column that is a list
KINDS = {  # part of a model's name -> what stands for it; BERT for all others
    "siglip": "siglip",
    "clip": "clip",
    "t5": "t5",
    "bart": "t5",
    "pegasus": "t5",
    "gpt": "gpt2",
    "qwen": "qwen3",
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "mixtral",
            "gemma",
            "phi-",
            "opt-",
            "pythia",
            "bloom",
            "falcon",
            "smollm",
            "olmo",
            "granite",
        ),
        "llama",
    ),
}


def shrunk(spec: Spec, folder: Path) -> Spec:
    """The spec with a tiny model, made-up data in `folder` (same columns, splits and class names), and a few steps."""
    everything = (*spec.tasks, *spec.control)
    words = {
        w
        for t in everything
        for p in (*(t.phrases or classes_of(t)), *t.prompts)
        for w in re.findall(r"\w+|[^\w\s]", p)
    }
    small = {
        "model": _model(spec.model, folder / "model", sorted({*words, *FILLERS})),
        "tasks": tuple(_worded(_task(t, folder / "data"), t, spec.model) for t in spec.tasks),
        "control": tuple(_worded(_task(t, folder / "data"), t, spec.model) for t in spec.control),
        "output": str(folder / "run"),
        "calibration": spec.calibration.model_copy(
            update={"samples_per_task": 8, "shards_per_task": 2, "batch_size": 4}
        ),
        "train": _few(spec.train),
        "search": spec.search.model_copy(
            update={"shared_points": 3, "trials": 0, "steps": 3, "inputs": 8, "batch_size": 2, "control_batch_size": 4}
        ),
        "gate": spec.gate.model_copy(update={"strict": False}),  # a few rows show nothing
        "cluster": spec.cluster.model_copy(
            update={
                "gpus_per_worker": 0.0,
                "workers_per_task": 1,
                "accelerator_type": None,
                "memory_gb_per_worker": None,
                "labels": {},
            }
        ),
    }
    return spec.model_copy(update=small)


def _worded(task: Task, asked: Task, model: str) -> Task:
    """Short words for the classes where the demo's CLIP stands in for a large one: it reads twenty tokens, and long
    prompts would end before they come to what tells two classes apart."""
    if not model.startswith("open_clip:"):
        return task
    count = len(asked.phrases or classes_of(asked))
    return task.model_copy(update={"prompts": ("{}",), "phrases": tuple(f"class {i}" for i in range(count))})


def classes_of(task: Task) -> Sequence[str]:
    """The class names that the spec gives, or that stand for those of its data."""
    return task.classes or [f"class {i}" for i in range(len(task.phrases or ()))] or MADE_UP


def _few(train: Train) -> Train:
    few = {
        "steps": 3,
        "epochs": None,
        "batch_size": 8,
        "micro_batch_size": None,
        "warmup_steps": 1,
        "checkpoint_every": 2,
    }
    return train.model_copy(update=few)


def _task(task: Task, folder: Path) -> Task:
    """The same task on made-up rows: Parquet files, a split each, as a data set lies on the Hub."""
    import datasets

    classes = list(classes_of(task))
    label = datasets.ClassLabel(names=classes)
    for kind, name in (
        ("train", task.train_split),
        ("validation", task.validation_split or "validation"),
        ("test", task.test_split or "test"),
    ):
        draw = random.Random(f"{task.name} {kind}")
        labels = [i % len(classes) for i in range(max(ROWS[kind], 2 * len(classes)))]
        if task.kind == "image":
            columns = {task.input: [_picture(i, draw) for i in labels]}
            features = datasets.Features({task.input: datasets.Image(), task.label: label})
        else:
            columns = _texts(task, labels, draw)
            features = None
        rows = datasets.Dataset.from_dict({**columns, task.label: labels}, features=features).cast_column(
            task.label, label
        )
        path = folder / task.name / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(path))
    own = {
        k: v
        for k, v in task.train.items()
        if k not in ("steps", "epochs", "batch_size", "micro_batch_size", "warmup_steps")
    }
    return task.model_copy(
        update={
            "data": str((folder / task.name).resolve()),
            "config": None,
            "classes": None,
            "train": own,
            "checkpoint": None,
        }
    )


def _picture(label: int, draw: random.Random) -> Image:
    from PIL.Image import fromarray

    dice = np.random.default_rng(draw.getrandbits(32))
    color = np.random.default_rng(label).integers(60, 256, 3)
    return fromarray((color * dice.uniform(0.4, 1.0, (SIDE, SIDE, 1))).astype("uint8"))


def _texts(task: Task, labels: Sequence[int], draw: random.Random) -> dict[str, list[Any]]:
    """A column for every name in the template, nested as the template reads it, or the input column."""
    fields = [n for _, n, _, _ in Formatter().parse(task.template) if n] if task.templated else [task.input]
    columns: dict[str, list[Any]] = {}
    for column, inside in {f: re.findall(r"\[(\w+)\]", f) for f in fields}.items():
        name = column.partition("[")[0]
        values: list[Any] = [f"{' '.join(draw.choices(FILLERS, k=4))} {FILLERS[i % len(FILLERS)]}" for i in labels]
        for key in reversed(inside):
            values = [[v] * LISTED if key.isdigit() else {key: v} for v in values]
        if name in columns:
            values = [_joined(a, b) for a, b in zip(columns[name], values, strict=True)]
        columns[name] = values
    return columns


def _joined(a: Any, b: Any) -> Any:
    return {**a, **b} if isinstance(a, dict) else a


def _model(name: str, folder: Path, words: Iterable[str]) -> str:
    if name.startswith("open_clip:"):
        return "demo"
    family = name.partition(":")[0]
    if family not in HUGGING_FACE:
        return name
    kind = next((kind for part, kind in KINDS.items() if part in name.lower()), "bert")
    return f"{family}:{tiny_model(kind, words, folder).partition(':')[2]}"


def tiny_model(kind: str, words: Iterable[str], folder: Path, labels: Sequence[str] = ()) -> str:
    """A model of two small blocks with random weights, and a tokenizer of some words, as `save_pretrained` writes
    them. Decoders but GPT-2 have grouped-query attention; `llama` has an output layer of its own, the others share it
    with the embedding.

    Args:
        kind: 'bert', 'classifier' (a BERT that sorts into `labels`), 't5', 'clip', 'siglip', or a causal LM as
            transformers names its configuration.

    Returns:
        What `model:` in a spec calls it.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    size = _save_words(kind, words, folder)
    if kind in ("bert", "classifier"):
        shape: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 48,
            "initializer_range": 0.2,
        }
        shape |= {"id2label": dict(enumerate(labels))} if labels else {}
        auto = AutoModelForSequenceClassification if kind == "classifier" else AutoModel
        kind = "bert"
    elif kind in ("clip", "siglip"):
        shape = _two_towers(size, folder)
        auto = AutoModel
    elif kind == "t5":
        shape = {
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "initializer_factor": 1.0,
        }
        auto = AutoModelForSeq2SeqLM
    else:
        shape = (
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
            if kind == "gpt2"
            else {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 48,
            }
        )
        shape |= {
            "bos_token_id": None,
            "eos_token_id": 0,
            "initializer_range": 0.2,
            "tie_word_embeddings": kind != "llama",
        }
        auto = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {} if "text_config" in shape else {"vocab_size": size}
        model = auto.from_config(AutoConfig.for_model(kind, **sizes, **shape))
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    return f"hf:{folder}"


def _two_towers(size: int, folder: Path) -> dict[str, Any]:
    """Write an image processor. Returns the configuration of a model that reads images and texts."""
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    texts = {**tower, **ends, "vocab_size": size, "max_position_embeddings": 16, "projection_size": 32}
    return {
        "text_config": texts,
        "vision_config": {**tower, "image_size": SIDE, "patch_size": 8},
        "projection_dim": 16,
    }


def _save_words(kind: str, words: Iterable[str], folder: Path) -> int:
    """Write a tokenizer that knows whole words only. Returns how many."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if kind in ("bert", "classifier", "clip", "siglip"):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        around = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    elif kind == "t5":
        special = ["<pad>", "</s>", "<unk>"]
        named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        around = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    else:
        special = ["</s>", "<unk>"]
        named = {"eos_token": "</s>", "unk_token": "<unk>"}
        around = None
    vocabulary = {w: i for i, w in enumerate([*special, *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=named["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if around is not None:
        tokenizer.post_processor = around
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **named).save_pretrained(folder)
    return len(vocabulary)
