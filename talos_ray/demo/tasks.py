"""The demo's eight target tasks and its control task: recipes, and pictures drawn once into Parquet files."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Image

from talos_ray.demo import render


class Drawn(NamedTuple):
    """How one demo set is made: a function of (label, random generator), and what its classes are called."""

    draw: Callable[..., Any]
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    sizes: tuple[int, int, int] = (2000, 160, 600)  # train, validation, test


_SHAPE_COLORS = tuple(f"{c} {s}" for s in render.SHAPES for c in render.CONTROL_COLORS)

SETS: dict[str, Drawn] = {
    "scanned_digits": Drawn(
        render.draw_scanned_digits, render.DIGIT_WORDS, ("the digit {}", "the number {}"), (1000, 160, 637)
    ),
    "street_numbers": Drawn(render.draw_street_numbers, render.DIGIT_WORDS, ("the digit {}", "the number {}")),
    "road_signs": Drawn(render.draw_road_signs, render.SIGNS, ("a {} sign", "a road sign that says {}")),
    "land_use": Drawn(render.draw_land_use, render.LAND, ("an aerial view of {}", "a map of {}")),
    "surfaces": Drawn(render.draw_surfaces, render.TEXTURES, ("a {} pattern", "a {} texture")),
    "counts": Drawn(render.draw_counts, render.DIGIT_WORDS[1:7], ("{} objects", "{} circles", "{} squares")),
    "pointers": Drawn(render.draw_pointers, render.DIRECTIONS, ("an arrow pointing {}",)),
    "lighting": Drawn(render.draw_lighting, render.LIGHTS, ("a ball lit from {}",)),
    "coloured_shapes": Drawn(render.draw_coloured_shapes, _SHAPE_COLORS, ("a {}",), (800, 800, 1600)),
}
TARGETS = tuple(n for n in SETS if n != "coloured_shapes")
CONTROL = "coloured_shapes"

RECIPES: dict[str, dict[str, Any]] = {
    f"demo:{name}": {"name": name, "data": f"demo:{name}", "classes": s.classes, "prompts": s.prompts}
    for name, s in SETS.items()
}


@functools.cache
def _version() -> str:
    """Changes when a picture could: the code that draws, and the sizes."""
    return hashlib.sha256(
        (inspect.getsource(render) + repr({n: s.sizes for n, s in SETS.items()})).encode()
    ).hexdigest()[:12]


def cache_folder() -> Path:
    """Where drawn data are kept: `$TALOS_CACHE`, or `~/.cache/talos_ray`."""
    return Path(os.environ.get("TALOS_CACHE") or "~/.cache/talos_ray").expanduser()


def materialize(name: str) -> dict[str, str]:
    """Draw one demo set unless this machine has it; returns split -> Parquet path. Safe to call at once from many
    processes."""
    folder = cache_folder() / f"demo-{_version()}" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
        for part, (split, n) in enumerate(zip(("train", "validation", "test"), SETS[name].sizes, strict=True)):
            _write(name, part, n, work / f"{split}.parquet")
        try:
            work.rename(folder)
        except OSError:  # another process was first; its files are the same
            shutil.rmtree(work)
    return {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}


def _write(name: str, part: int, n: int, path: Path) -> None:
    import datasets

    made = SETS[name]
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    if made.draw is render.draw_scanned_digits:
        images, labels = _scans(part, n)
    else:
        labels = [i % len(made.classes) for i in range(n)]
        images = [made.draw(label, np.random.default_rng((seed, part, i))) for i, label in enumerate(labels)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(made.classes))})
    rows = {"image": [{"bytes": _png(image), "path": None} for image in images], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))


def _png(image: Image) -> bytes:
    """PNG bytes of a PIL image."""
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()


def _scans(part: int, n: int) -> tuple[list[Image], list[int]]:
    """Real scans, each used in one split only: train, validation and test are consecutive runs of the data set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    start = sum(SETS["scanned_digits"].sizes[:part])
    index = range(start, start + n)
    return [render.draw_scanned_digits(data.images[i]) for i in index], [int(data.target[i]) for i in index]
