"""Small text models with random weights, and text tasks, made on the spot."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from talos_ray.smoke import FILLERS, tiny_model

WORDS = {
    "animals": ("horse heron otter beetle trout", "hammer chisel pliers wrench saw"),
    "places": ("harbour meadow canyon glacier island", "kitchen cellar attic pantry bedroom"),
}


def write_texts(folder: Path, name: str, n: int) -> dict:
    """A task from a CSV: a sentence that holds a word of one of two kinds. Returns its settings."""
    draw = random.Random(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "label"])
        for i in range(n):
            words = draw.choices(FILLERS, k=draw.randint(2, 12))
            words.insert(draw.randrange(len(words)), draw.choice(WORDS[name][i % 2].split()))
            rows.writerow([" ".join(words), ("yes", "no")[i % 2]])
    first = [w[0] for w in map(str.split, WORDS[name])]
    return {"name": name, "data": str(path), "classes": ["yes", "no"], "phrases": first}


def save_model(folder: Path, kind: str) -> str:
    """A tiny model of a kind (`talos_ray.smoke.tiny_model`) that knows the tasks' words."""
    words = [w for kinds in WORDS.values() for k in kinds for w in k.split()]
    return tiny_model(kind, [*words, *FILLERS], folder, labels=("yes", "no"))
