"""A thousand tasks through every stage: calibration, training, merge, test scores, report and verify, on Ray.

    python jobs/many_tasks.py FOLDER                    # 1,000 tasks over 8 workers; FOLDER is new
    python jobs/many_tasks.py FOLDER --tasks 100

Nothing is left out but size: a text encoder of two small blocks, thirty short texts a task, one step of training each. What
is shown is what each stage costs where tasks are many, and what the driver's process holds at most.
"""

import argparse
import csv
import os
import random
import threading
import time
from pathlib import Path

import psutil

import talos_ray
from talos_ray.smoke import FILLERS, tiny_model

WORDS = {"yes": ("horse", "heron", "otter", "beetle", "trout"), "no": ("hammer", "chisel", "pliers", "wrench", "saw")}
TEXTS = 30  # a task
MINUTES, GIGABYTES = 10, 2  # that all of it, and the driver's own memory, are to stay below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)
    words = [word for kind in WORDS.values() for word in kind]
    settings = {
        "model": tiny_model("bert", [*words, *FILLERS], asked.folder / "model"),
        "tasks": [task(asked.folder, f"task_{number:04d}") for number in range(asked.tasks)],
        "control": [task(asked.folder, "control")],
        "output": str(asked.folder / "run"),
        "calibration": {"samples_per_task": 16, "shards_per_task": 1},
        "train": {"steps": 1, "batch_size": 8},
        "search": {"steps": 20, "batch_size": 2},
        "baseline": {"enabled": False},
        "cluster": {"cpus_per_worker": (os.cpu_count() or 1) / asked.workers},
    }
    memory = Memory()
    started = time.monotonic()
    run = talos_ray.edit(**settings)
    version = run.newest
    for stage, seconds in version.stages.seconds.items():
        print(f"  {stage:20s}{seconds:8.1f} s")
    begun = time.monotonic()
    problems = run.verify()
    now = time.monotonic()
    print(f"  {'verify':20s}{now - begun:8.1f} s, {len(problems)} problems")
    minutes = (now - started) / 60
    print(
        f"{asked.tasks} tasks, {asked.workers} workers on {os.cpu_count()} cores: {minutes:.1f} minutes (bar {MINUTES}); "
        f"the driver's own memory at most {memory.most / 1e9:.2f} GB (bar {GIGABYTES})"
    )


def task(folder: Path, name: str) -> dict:
    """A task of short texts that hold a word of one of two kinds."""
    draw = random.Random(name)
    path = folder / "data" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "label"])
        for number in range(TEXTS):
            label = ("yes", "no")[number % 2]
            rows.writerow([" ".join([*draw.choices(FILLERS, k=6), draw.choice(WORDS[label])]), label])
    phrases = [WORDS[label][0] for label in ("yes", "no")]
    return {"name": name, "data": str(path), "classes": ["yes", "no"], "phrases": phrases, "prompts": ["{}"]}


class Memory:
    """What this process holds at most, without what it shares with others (the object store)."""

    def __init__(self) -> None:
        self.most = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            held = me.memory_info()
            self.most = max(self.most, held.rss - held.shared)
            time.sleep(0.5)


if __name__ == "__main__":
    main()
