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

FILLERS = [  # of made-up texts
    "the", "old", "one", "near", "here", "was", "seen", "again",
    "by", "us", "and", "it", "is", "not", "far", "from",
]  # fmt: skip
MADE_UP = ("amber", "basalt", "cedar")  # classes where the spec names none: its data do
ROWS = {"train": 48, "validation": 24, "test": 24}
SIDE = 32  # pixels
LISTED = 8  # entries of a column that is a list
LLAMAS = (
    "llama", "mistral", "mixtral", "gemma", "phi-", "opt-", "pythia", "bloom",
    "falcon", "smollm", "olmo", "granite",
)  # fmt: skip
KINDS = {  # part of a model's name, the first that fits -> what stands for it; BERT for all others
    "siglip": "siglip",
    "clip": "clip",
    "t5": "t5",
    "bart": "t5",
    "pegasus": "t5",
    "gpt": "gpt2",
    "qwen": "qwen3",
    **dict.fromkeys(LLAMAS, "llama"),
}
# Two blocks, so that something lies between the first layer and the last, and heads, so that they can be split.
BLOCKS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def shrunk(spec: Spec, folder: Path) -> Spec:
    """The spec with a tiny model, made-up data in `folder` (same columns, splits and class names), and a few steps."""
    calibration = {"samples_per_task": 8, "shards_per_task": 2, "batch_size": 4}
    search = {"shared_points": 3, "trials": 0, "steps": 3, "inputs": 8, "batch_size": 2, "control_batch_size": 4}
    # Any machine is large enough for it, so it asks for none of a kind.
    cluster: dict[str, Any] = {
        "gpus_per_worker": 0.0,
        "workers_per_task": 1,
        "accelerator_type": None,
        "memory_gb_per_worker": None,
        "labels": {},
    }
    small = {
        "model": _model(spec.model, folder / "model", _words_of(spec)),
        "tasks": tuple(_small_task(task, spec, folder) for task in spec.tasks),
        "control": tuple(_small_task(task, spec, folder) for task in spec.control),
        "output": str(folder / "run"),
        "push": None,
        "calibration": spec.calibration.model_copy(update=calibration),
        "train": _few(spec.train),
        "search": spec.search.model_copy(update=search),
        "gate": spec.gate.model_copy(update={"strict": False}),  # a few rows show nothing
        "cluster": spec.cluster.model_copy(update=cluster),
    }
    return spec.model_copy(update=small)


def _words_of(spec: Spec) -> list[str]:
    """All that is read in a small run, in order: class names, prompts and made-up texts. A tokenizer of these knows
    every word that tells two classes apart."""
    words = set(FILLERS)
    for task in (*spec.tasks, *spec.control):
        for text in (*(task.phrases or classes_of(task)), *task.prompts):
            words.update(re.findall(r"\w+|[^\w\s]", text))
    return sorted(words)


def _small_task(task: Task, spec: Spec, folder: Path) -> Task:
    return _worded(_task(task, folder / "data"), task, spec.model)


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
    names = {
        "train": task.train_split,
        "validation": task.validation_split or "validation",
        "test": task.test_split or "test",
    }
    for kind, name in names.items():
        draw = random.Random(f"{task.name} {kind}")  # the same rows each time, and others in each split
        count = max(ROWS[kind], 2 * len(classes))  # two of each class at least
        labels = [i % len(classes) for i in range(count)]
        if task.kind == "image":
            columns = {task.input: [_picture(i, draw) for i in labels]}
            features = datasets.Features({task.input: datasets.Image(), task.label: label})
        else:
            columns = _texts(task, labels, draw)
            features = None
        rows = datasets.Dataset.from_dict({**columns, task.label: labels}, features=features)
        path = folder / task.name / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.cast_column(task.label, label).to_parquet(str(path))
    # A task's own learning rate is tried; how long it trains is not, or it would be no small run.
    lengths = ("steps", "epochs", "batch_size", "micro_batch_size", "warmup_steps")
    train = {key: value for key, value in task.train.items() if key not in lengths}
    changes = {
        "data": str((folder / task.name).resolve()),
        "config": None,
        "classes": None,
        "validation_from": None,  # a few rows are too few to cut any more from
        "class_count": None,  # where the spec names no classes, these rows have others than its data
        "train": train,
        "checkpoint": None,
    }
    return task.model_copy(update=changes)


def _picture(label: int, draw: random.Random) -> Image:
    """Noise in a colour that is the label's."""
    from PIL.Image import fromarray

    dice = np.random.default_rng(draw.getrandbits(32))
    color = np.random.default_rng(label).integers(60, 256, 3)
    return fromarray((color * dice.uniform(0.4, 1.0, (SIDE, SIDE, 1))).astype("uint8"))


def _texts(task: Task, labels: Sequence[int], draw: random.Random) -> dict[str, list[Any]]:
    """A column for every name in the template, nested as the template reads it, or the input column."""
    fields = [task.input]
    if task.templated:
        fields = [name for _, name, _, _ in Formatter().parse(task.template) if name]
    columns: dict[str, list[Any]] = {}
    for field in dict.fromkeys(fields):
        # The last word is the label's, so that there is something to learn.
        values: list[Any] = []
        for label in labels:
            fillers = " ".join(draw.choices(FILLERS, k=4))
            values.append(f"{fillers} {FILLERS[label % len(FILLERS)]}")
        # `options[2]` reads a list, `answer[text]` a mapping; the innermost is made first.
        for key in reversed(re.findall(r"\[(\w+)\]", field)):
            values = [[value] * LISTED if key.isdigit() else {key: value} for value in values]
        name = field.partition("[")[0]
        if name in columns:
            values = [_joined(before, value) for before, value in zip(columns[name], values, strict=True)]
        columns[name] = values
    return columns


def _joined(before: Any, value: Any) -> Any:
    """One value of a column of which a template reads several parts. A list has them all already."""
    return {**before, **value} if isinstance(before, dict) else before


def _model(name: str, folder: Path, words: Iterable[str]) -> str:
    """What stands for a model, as a spec calls it. Code of the user's own makes its own model, however large."""
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
        shape: dict[str, Any] = {**BLOCKS, "max_position_embeddings": 48, "initializer_range": 0.2}
        if labels:
            shape["id2label"] = dict(enumerate(labels))
        auto = AutoModelForSequenceClassification if kind == "classifier" else AutoModel
        kind = "bert"
    elif kind in ("clip", "siglip"):
        shape = _two_towers(size, folder)
        auto = AutoModel
    elif kind == "t5":
        shape = _encoder_decoder()
        auto = AutoModelForSeq2SeqLM
    else:
        shape = _decoder(kind)
        auto = AutoModelForCausalLM
    if "text_config" not in shape:  # which has the vocabulary of its own
        shape["vocab_size"] = size
    # The same weights each time, and whoever asked goes on with random numbers of their own.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(AutoConfig.for_model(kind, **shape))
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    return f"hf:{folder}"


def _encoder_decoder() -> dict[str, Any]:
    """Configuration of a T5."""
    return {
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


def _decoder(kind: str) -> dict[str, Any]:
    """Configuration of a causal language model."""
    ends = {
        "bos_token_id": None,
        "eos_token_id": 0,
        "initializer_range": 0.2,
        "tie_word_embeddings": kind != "llama",
    }
    if kind == "gpt2":
        return {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, **ends}
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return {**BLOCKS, **grouped, "max_position_embeddings": 48, **ends}


def _two_towers(size: int, folder: Path) -> dict[str, Any]:
    """Write an image processor. Returns the configuration of a model that reads images and texts."""
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    texts = {**BLOCKS, **ends, "vocab_size": size, "max_position_embeddings": 16, "projection_size": 32}
    return {
        "text_config": texts,
        "vision_config": {**BLOCKS, "image_size": SIDE, "patch_size": 8},
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
    # Special tokens first: configurations name them by their numbers.
    vocabulary = {word: number for number, word in enumerate([*special, *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=named["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if around is not None:
        tokenizer.post_processor = around
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **named).save_pretrained(folder)
    return len(vocabulary)
