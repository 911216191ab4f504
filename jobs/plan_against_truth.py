"""What `talos plan --timed` says of three specs, against what they then take: seconds by stage.

python jobs/plan_against_truth.py FOLDER [CASE ...]     # of: texts, images, demo; all of them, if none is named
"""

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

from talos_ray.smoke import FILLERS, tiny_model
from talos_ray.storage.run_folder import RunFolder

TEXTS = 400  # of each task
IMAGES = 300
SIDE = 64  # pixels
SUBJECTS = {
    "animals": {"animal": "horse heron otter beetle trout", "tool": "hammer chisel pliers wrench saw"},
    "places": {"outdoors": "harbour meadow canyon glacier island", "indoors": "kitchen cellar attic pantry bedroom"},
}


def texts(folder: Path) -> dict[str, Any]:
    """Two tasks of short sentences, for a tiny text model with random weights."""
    words = [word for subject in SUBJECTS.values() for names in subject.values() for word in names.split()]
    model = tiny_model("bert", [*words, *SUBJECTS["animals"], *SUBJECTS["places"], *FILLERS], folder / "model")
    tasks = []
    for name, subject in SUBJECTS.items():
        draw = random.Random(name)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for number in range(TEXTS):
                label = list(subject)[number % 2]
                sentence = [*draw.choices(FILLERS, k=draw.randint(2, 12)), draw.choice(subject[label].split())]
                rows.writerow([" ".join(sentence), label])
        tasks.append({"name": name, "data": str(folder / f"{name}.csv"), "prompts": ["{}"]})
    return {"model": model, "tasks": tasks}


def images(folder: Path) -> dict[str, Any]:
    """A folder of small images, as two classes, for the demo's model; a set of the demo's own is held."""
    dice = np.random.default_rng(0)
    for number in range(IMAGES):
        side = ("left", "right")[number % 2]
        pixels = dice.integers(0, 90, (SIDE, SIDE, 3))
        half = slice(0, SIDE // 2) if side == "left" else slice(SIDE // 2, SIDE)
        pixels[:, half] += 120
        place = folder / "pictures" / side / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place)
    task = {"name": "sides", "data": str(folder / "pictures"), "prompts": ["a ball lit from the {}"]}
    return {"model": "demo", "tasks": [task], "control": ["demo:coloured_shapes"]}


def demo(folder: Path) -> dict[str, Any]:
    """The demo's own spec."""
    spec: dict[str, Any] = yaml.safe_load((files("talos_ray") / "demo/spec.yaml").read_text())
    return spec


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {"texts": texts, "images": images, "demo": demo}


def compared(name: str, folder: Path) -> None:
    """Plan a case, run it, and print both."""
    folder.mkdir(parents=True)
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump({**CASES[name](folder), "output": str(folder / "run")}, sort_keys=False))
    # Each in a process of its own, as on a command line, so that neither finds what the other has loaded.
    planned = subprocess.run(
        [sys.executable, "-m", "talos_ray.cli", "plan", str(spec), "--timed", "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    (folder / "plan.json").write_text(planned.stdout)  # with the seconds of every piece
    plan = json.loads(planned.stdout)
    if (timed := plan["timed"]) is None:
        raise SystemExit(plan["not timed"])
    subprocess.run(
        [sys.executable, "-c", f"import talos_ray; talos_ray.edit({str(spec)!r})"],
        check=True,
        stdout=(folder / "log").open("w"),
    )
    run = RunFolder(str(folder / "run"))
    took = dict(run.load_version(run.versions()[-1]).stages.seconds)
    took["in all"] = sum(took[stage] for stage in timed["seconds"])
    predicted = {**timed["seconds"], "in all": timed["in all"]}
    table = Table("stage", "predicted", "took", "ratio", title=f"{name}: seconds", title_justify="left")
    for stage, seconds in took.items():
        if stage in predicted:
            table.add_row(stage, f"{predicted[stage]:.1f}", f"{seconds:.1f}", f"{predicted[stage] / seconds:.2f}")
    console = Console()
    console.print(table)
    for line in timed["notes"]:
        console.print(line, markup=False)


def main() -> None:
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or CASES:
        compared(name, folder / name)


if __name__ == "__main__":
    main()
