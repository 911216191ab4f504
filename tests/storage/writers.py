"""Many processes that write to one run, some of them killed. As a script: one of them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from records import PLAIN

from talos_ray.storage import history
from talos_ray.storage.run_folder import RunFolder


def work_of_one_process(path: str, seed: int, count: int, done: Path) -> None:
    """Roll back, approve and add versions, `count` of them together; notes every one that was done."""
    dice = random.Random(seed)
    for i in range(count):
        mark = f"{seed}.{i}.{os.getpid()}"
        folder = RunFolder(path)
        kind = dice.choices(("rollback", "approve", "version"), (4, 3, 3))[0]
        if kind == "version":
            folder.add_version("version", lambda n: (PLAIN, {f"report/{n:04d}.html": b"x"}), reason=mark)
        else:
            folder.set_head(dice.randrange(3), kind, {"report/index.html": mark.encode()}, reason=mark)
        with open(done, "a") as out:
            out.write(f"{mark}\n")


def forked(work: Callable[[], None]) -> int:
    """Process id of a copy of this process that does something. Its exit code is 0 if that ended well."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def at_once(path: str, done: Path, *, processes: int, count: int, kills: int, seed: int, fork: bool = True) -> None:
    """Let processes work on one run, and kill `kills` of them at random, each of which begins anew. Then all must be there.

    Args:
        fork: copies of this process; else new ones, for stores whose clients have threads.
    """
    dice = random.Random(seed)
    kept: list[subprocess.Popen] = []  # one that is dropped would be waited for by the next one
    done.touch()

    def start(number: int) -> int:
        if fork:
            return forked(lambda: work_of_one_process(path, number, count, done))
        kept.append(subprocess.Popen([sys.executable, __file__, path, str(number), str(count), str(done)]))
        return kept[-1].pid

    running = {start(seed * 1000 + i) for i in range(processes)}
    number = seed * 1000 + processes
    pause = (0.01, 0.15) if fork else (2.0, 6.0)  # a new process first has to load
    while running:
        if kills and dice.random() < 0.5:
            time.sleep(dice.uniform(*pause))
            victim = dice.choice(sorted(running))
            os.kill(victim, signal.SIGKILL)
            kills -= 1
            os.waitpid(victim, 0)
            running = running - {victim} | {start(number)}
            number += 1
        else:
            child, status = os.waitpid(-1, 0 if not kills else os.WNOHANG)
            if child in running:
                assert status == 0, "a command was refused for good"
                running.discard(child)
    folder = RunFolder(path)
    folder.settle()
    folder.store.sweep()
    assert history.verify(folder.store) == []
    recorded = [e["reason"] for e in history.events(folder.store) if "reason" in e]
    finished = done.read_text().split()
    assert set(finished) <= set(recorded) and len(recorded) == len(set(recorded))


if __name__ == "__main__":
    work_of_one_process(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
