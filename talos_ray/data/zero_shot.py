"""Zero-shot sets of LAION's CLIP benchmark, with its own class names and prompts, so that a standard evaluation can be
a control task.

Its sets lie on the Hugging Face Hub, a WebDataset each: `vtab/cifar10` is `clip-benchmark/wds_vtab-cifar10`.
Its images are in `SPLIT/0.tar`, `SPLIT/1.tar` and so on, as many as `SPLIT/nshards.txt` says; `classnames.txt` and
`zeroshot_classification_templates.txt` hold a class and a prompt a line, `{c}` for the class
(github.com/LAION-AI/CLIP_benchmark, its README and webdataset_builder).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from talos_ray.errors import SpecError

SCHEME = "clip_benchmark:"
OWNER = "clip-benchmark"


def is_zero_shot_set(data: str) -> bool:
    return data.startswith(SCHEME)


def repository_of(data: str) -> str:
    """The Hub's data set that `clip_benchmark:SET` stands for."""
    name = data.removeprefix(SCHEME).replace("/", "-")
    return f"{OWNER}/wds_{name}"


def recipe(data: str) -> dict[str, Any]:
    """What a spec would say of `clip_benchmark:SET` if it said all.

    Raises:
        SpecError: there is no such set, it cannot be reached, or it is not one of classification.
    """
    kind = _lines(data, "dataset_type.txt", optional=True)
    if kind and kind != ["classification"]:
        raise SpecError(
            f"task {data!r} is one of {' '.join(kind)}; wanted one of classification, with one class an image; choose "
            "another"
        )
    prompts = _lines(data, "zeroshot_classification_templates.txt")
    return {
        "name": re.sub(r"[^A-Za-z0-9_.-]", "_", data.removeprefix(SCHEME)),
        "data": data,
        "kind": "image",
        "classes": _apart(_lines(data, "classnames.txt")),
        "prompts": tuple(prompt.replace("{c}", "{}") for prompt in prompts),
    }


def load(data: str) -> tuple[dict[str, Any], list[str]]:
    """A `datasets.Dataset` a split, and what somebody should know of them.

    Raises:
        SpecError: as `recipe`.
    """
    import datasets

    files = {}
    for split in ("train", "test"):
        shards = _lines(data, f"{split}/nshards.txt", optional=split == "train")
        if shards:
            files[split] = [str(_file(data, f"{split}/{number}.tar")) for number in range(int(shards[0]))]
    notes = []
    if list(files) == ["test"]:
        # What is only there to be evaluated on. Its own name would say that nothing may be cut from it.
        files = {"train": files["test"]}
        notes.append(f"task {data} has one split only, from which training and test data are cut")
    splits: dict[str, Any] = datasets.load_dataset("webdataset", data_files=files)
    return splits, notes


def _lines(data: str, name: str, optional: bool = False) -> list[str]:
    """The lines of a file that are not empty; none where there is no such file and need not be."""
    path = _file(data, name, optional)
    lines = [] if path is None else path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _file(data: str, name: str, optional: bool = False) -> Path | None:
    """A file of the Hub's repository on this machine, where the Hub's own library keeps it.

    Raises:
        SpecError: it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository = repository_of(data)
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except Exception as error:  # the Hub's library raises many kinds
        # Offline, what was once not there is remembered as such.
        missing = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if missing and optional:
            return None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SpecError(
            f"task {data!r}: {name} of the Hub's data set {repository} cannot be read: {reason[:300]}; wanted a set "
            "for classification of the CLIP benchmark, like clip_benchmark:vtab/cifar10; check its name and the network"
        ) from None


def _apart(names: list[str]) -> tuple[str, ...]:
    """Class names that can be told apart: those that stand twice, each with its place."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({place})" for place, name in enumerate(names))
