"""What a finished run tells about the merge and about Ray's own share of the time: rows of `jobs/benchmark.py --run`."""

from collections.abc import Iterator
from pathlib import Path

from jobs.measuring import Row, row
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version


def look(uri: str) -> Iterator[Row]:
    folder = RunFolder(uri)
    version = folder.load_version(folder.versions()[-1])
    yield from merging(folder, version)
    yield from overhead(folder, version)


def merging(folder: RunFolder, version: Version) -> Iterator[Row]:
    """The whole merge of the sparse arm, teachers and heads included, against the training of its edits, in seconds of one worker."""
    found = version.search
    attempts = [folder.load_trial(Path(n).stem)[0] for n in folder.store.list("trials")]
    learned = sum(a["seconds"] for a in attempts if a.get("point", {}).get("arm") == "sparse")
    # Looks at the base with a head of its own are the probe: a yardstick, and no part of the merge.
    asked = [a for a in attempts if a.get("arm") == "sparse" or (a.get("arm") == "base" and "right_own" not in a)]
    looks = sum(a["seconds"] for a in asked)
    print(
        f"  learned in {learned:.1f} s, teachers and heads of single edits in {looks:.1f} s; pressure {found.pressure:g}"
    )
    training = version.cost.train_seconds
    yield row(
        "merge_time_vs_training", [learned + looks], [training], "s", "the training of the sparse edits", "<= 1.3"
    )


def overhead(folder: RunFolder, version: Version) -> Iterator[Row]:
    """Wall time of the stages against what their workers were busy for, shared out over the workers at once."""
    stages = version.stages
    walls, slots = stages.seconds, stages.slots
    deltas = version.targets
    dense = RunFolder(f"{folder.store.uri.rstrip('/')}/baseline")
    arms = [folder, *([dense] if version.baseline else [])]
    train = sum(float(a.load_delta(t).info["seconds"]) for a in arms for t in deltas)
    trials = sum(
        folder.load_trial(Path(n).stem)[0]["seconds"] for n in folder.store.list("trials") if n.endswith(".safetensors")
    )
    work = {
        "calibrate": folder.load_mask(version.base).info.get("work_seconds", 0.0) / slots["calibrate"],
        "train": train / min(slots["train"], len(arms) * len(deltas)),
        "search": trials / slots["search"],
    }
    wall = {stage: sum(s for n, s in walls.items() if n.split()[0] == stage) for stage in work}
    if stages.first_step is not None:
        print(f"  the first training step came {stages.first_step:.1f} s after the start")
    print(f"  the object stores of all nodes held {stages.object_store_peak / 1e6:.0f} MB at most")
    for stage in work:
        print(f"  {stage}: {wall[stage]:.1f} s, of which work {work[stage]:.1f} s with {slots[stage]} at once")
    yield row(
        "orchestration_overhead", [sum(wall.values())], [sum(work.values())], "s", "the stages' own work", "<= 1.15"
    )
