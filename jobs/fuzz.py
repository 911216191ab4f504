"""Attack the record, specs and masks with made-up input, by seed: nothing of it may end in a traceback, hang, run code, write elsewhere or
be taken for what it is not.

    python jobs/fuzz.py --inputs 20000            # exit code: how many inputs did something of that

Each input is a copy of a small run (or a spec), changed in one of the ways of `ATTACKS`; then commands read it. What was changed without its
hashes being made anew has to be named by `verify`; what was, by a hash that was kept elsewhere.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import talos_ray
from talos_ray import TalosError
from talos_ray.api import verify
from talos_ray.spec import load_spec
from talos_ray.storage import history
from talos_ray.storage.files import Store, as_json
from talos_ray.storage.run_folder import RunFolder, load_mask

RUN = Path(__file__).parents[1] / "tests" / "storage" / "release_0_1.tar.gz"
SECONDS = 20  # that a command may take
ODD = (
    None,
    True,
    -1,
    0,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x" * 3000,
    [],
    {},
    [[[]]],
    {"a": 1},
    "../../outside",
    "\x1b[31m\n",
    "=1+1",
    "<b>",
)
WORDS = (
    "model",
    "demo",
    "tasks",
    "control",
    "output",
    "seed",
    "mask",
    "keep",
    "search",
    "gate",
    "extends",
    "preset",
    "recipe",
    "name",
    "data",
    "prompts",
)


class Hang(BaseException):
    """Not an Exception: whoever catches those must not end it."""


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def bytes_changed(run: Path, dice: random.Random) -> bool:
    """Bytes of any file changed, cut off or added."""
    path = dice.choice(files_of(run))
    before = path.read_bytes()
    data = bytearray(before)
    kind = dice.randrange(4)
    if kind == 0 and data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == 1:
        data = data[: dice.randrange(len(data) + 1)]
    elif kind == 2:
        at = dice.randrange(len(data) + 1)
        data = data[:at] + dice.randbytes(dice.randint(1, 64)) + data[at:]
    else:
        data = bytearray(dice.randbytes(dice.randint(0, 300)))
    path.write_bytes(bytes(data))
    return bytes(data) != before


def value_changed(value: object, dice: random.Random) -> object:
    """A JSON value with something odd at a place of it."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(sorted(value))
        if dice.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: value_changed(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        at = dice.randrange(len(value))
        return [*value[:at], value_changed(value[at], dice), *value[at + 1 :]]
    return dice.choice(ODD)


def structure_changed(run: Path, dice: random.Random) -> bool:
    """A JSON file with something odd in it, and all hashes made anew."""
    path = dice.choice([p for p in files_of(run) if p.suffix == ".json" and p.name != "head.json"])
    before = said(run)
    path.write_text(json.dumps(value_changed(json.loads(path.read_text()), dice), indent=1, sort_keys=True) + "\n")
    # What is odd elsewhere may be what stood here, and a hash that was changed is put right with all the others.
    return made_anew(run) and said(run) != before


def said(run: Path) -> list[str]:
    """What all JSON files of a run say, whatever their events are called."""
    return [json.dumps(json.loads(p.read_text()), sort_keys=True) for p in files_of(run) if p.suffix == ".json"]


def made_anew(run: Path) -> bool:
    """Every hash recomputed, as by somebody who knows the format; as far as what is there allows it."""
    events = [json.loads(p.read_text()) for p in sorted((run / "history").iterdir())]
    if not all(isinstance(e, dict) and isinstance(e.get("files"), dict) for e in events):
        return True
    newest = {name: i for i, event in enumerate(events) for name in event["files"]}
    previous = history.FIRST
    shutil.rmtree(run / "history")
    (run / "history").mkdir()
    for i, event in enumerate(events):
        for name in event["files"]:
            with contextlib.suppress(OSError, ValueError):
                if newest[name] == i:
                    event["files"][name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
        event["previous"] = previous
        previous = hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()
        (run / f"history/{i:08d}.json").write_bytes(as_json(event))
    (run / "head.json").write_bytes(
        as_json({"version": events[-1].get("head"), "event": len(events) - 1, "hash": previous})
    )
    return True


def tensors_changed(run: Path, dice: random.Random) -> bool:
    """The header of a safetensors file with something odd in it, and all hashes made anew."""
    path = dice.choice([p for p in files_of(run) if p.suffix == ".safetensors"])
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = value_changed(json.loads(data[8 : 8 + size]), dice)
    text = json.dumps(header).encode()
    wrong = dice.choice((0, 0, 1, -1, 1 << 40))
    path.write_bytes(max(0, len(text) + wrong).to_bytes(8, "little") + text + data[8 + size :])
    return made_anew(run)


def tree_changed(run: Path, dice: random.Random) -> bool:
    """Something that lies in the folder and does not belong there."""
    folder = dice.choice([run, *(p for p in run.rglob("*") if p.is_dir())])
    name = dice.choice(
        ("x", ".x", "0001.json~", "a\nb", "\x1b[31m", "history", "checkpoints", "head.json.bak", "é" * 60)
    )
    path = folder / name
    if path.exists() or path.is_symlink():
        return False
    kind = dice.randrange(6)
    if kind == 0:
        path.write_bytes(dice.randbytes(8))
    elif kind == 1:
        path.symlink_to(dice.choice((".", "..", "/etc/passwd", "/nowhere")))
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        (path / "checkpoints" / "history").mkdir(parents=True)
    elif kind == 4:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "x.json").write_text("{}")
    else:
        found = dice.choice(files_of(run))
        found.unlink()
        os.mkfifo(found) if dice.random() < 0.5 else found.symlink_to("/etc/passwd")
    return True


def code_named(run: Path, dice: random.Random) -> bool:
    """A model that is somebody's module, with all hashes made anew."""
    found = json.loads((run / "run.json").read_text())
    found["spec"]["model"] = dice.choice(("python:fuzz_evil:Mine", "python:os:abort", "python:fuzz_evil", "python::x"))
    (run / "run.json").write_bytes(as_json(found))
    return made_anew(run)


ATTACKS: dict[str, Callable[[Path, random.Random], bool]] = {
    "bytes": bytes_changed, "structure": structure_changed, "tensors": tensors_changed, "tree": tree_changed, "code": code_named,
}  # fmt: skip


def spec_text(dice: random.Random) -> bytes:
    """Something that looks like a spec."""
    good = "model: demo\ntasks: [demo:pointers]\noutput: run\n"
    kind = dice.randrange(3)
    if kind == 0:
        lines = [
            f"{dice.choice(WORDS)}: {dice.choice(('[', '{', '', '*a', '&a x', '!!python/name:os.system', 'demo', '3', '.nan'))}"
            for _ in range(4)
        ]
        return (good + "\n".join(lines)).encode()
    if kind == 1:
        values = {
            "model": "demo",
            "tasks": ["demo:pointers"],
            "output": "run",
            "mask": {"keep": 0.1},
            "gate": {"strict": True},
        }
        return json.dumps(value_changed(values, dice)).encode()
    data = bytearray(good.encode())
    for _ in range(dice.randint(1, 4)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


def commands(run: Path, scratch: Path) -> dict[str, Callable[[], object]]:
    """What reads a run."""
    here = str(run)
    return {
        "open": lambda: talos_ray.open_run(here).held(),
        "versions": lambda: talos_ray.open_run(here).versions,
        "log": lambda: talos_ray.open_run(here).history(),
        "diff": lambda: talos_ray.open_run(here).diff(0, 1),
        "mask": lambda: talos_ray.open_run(here).mask,
        "deltas": lambda: talos_ray.open_run(here).deltas,
        "foreign mask": lambda: load_mask(Store(here), "mask.safetensors", RunFolder(here).info()["base"]),
        "report": lambda: talos_ray.open_run(here).report(scratch / "page.html", 1),
        "export": lambda: talos_ray.open_run(here).export(scratch / "out"),
        "rollback": lambda: talos_ray.open_run(here).rollback(0),
    }


def told(work: Callable[[], object], seen: collections.Counter, what: str) -> object:
    """What `work` gives; an error that is no TalosError, or no end, is counted and shown."""

    def stop(*_):
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return work()
    except TalosError:
        return None
    except Hang:
        seen[f"hang: {what}"] += 1
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        seen[
            f"traceback: {what}: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {error}"[:300]
        ] += 1
    finally:
        signal.alarm(0)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--without", nargs="*", default=["report"], help="commands to leave out; drawing reports takes a second each"
    )
    parser.add_argument("--attacks", nargs="*", default=sorted(ATTACKS), choices=sorted(ATTACKS), help="by default all")
    parser.add_argument("--keep", help="a folder for what was taken for what it is not")
    asked = parser.parse_args()
    dice, seen, kinds = random.Random(asked.seed), collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["XDG_CONFIG_HOME"] = scratch
        os.chdir(work)
        with tarfile.open(RUN) as packed:
            packed.extractall(work / "good", filter="data")
        source = next((work / "good").iterdir())
        _, kept = RunFolder(str(source)).last_event()
        (work / "fuzz_evil.py").write_text(f"open({str(work / 'RAN')!r}, 'a').write('x')\ndef Mine(): raise OSError\n")
        expected = {p.name for p in work.iterdir()} | {"box", "spec.yaml"}
        for number in range(asked.inputs):
            if number % 4 == 3:
                kinds["spec"] += 1
                Path("spec.yaml").write_bytes(spec_text(dice))
                told(lambda: load_spec("spec.yaml"), seen, "spec")
                continue
            name = dice.choice(asked.attacks)
            kinds[name] += 1
            box = work / "box"
            run = box / "run"
            shutil.copytree(source, run)
            if ATTACKS[name](run, dice):
                problems = told(lambda run=run: verify(str(run), expect=kept), seen, f"{name}, verify")
                if problems == []:
                    seen[f"wrong acceptance: {name}"] += 1
                    if asked.keep:
                        shutil.copytree(run, Path(asked.keep) / f"{number}", symlinks=True)
                for command, read in commands(run, box).items():
                    if command not in asked.without:
                        told(read, seen, f"{name}, {command}")
            if strange := {p.name for p in work.iterdir()} - expected:
                seen[f"code ran, or a file outside: {sorted(strange)}"] += 1
            shutil.rmtree(box)
    print(f"{asked.inputs} inputs, seed {asked.seed}: {dict(kinds)}")
    for what, times in sorted(seen.items()):
        print(f"{times:6d} {what}")
    print(f"{sum(seen.values())} failures")
    return min(255, sum(seen.values()))


if __name__ == "__main__":
    sys.exit(main())
