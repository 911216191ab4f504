"""What a person sees while a run goes on: a live table in a terminal, a line a step in a log; and the same for who
looks from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from talos_ray.errors import in_short
from talos_ray.shown import plain, plain_lines

QUIET_SECONDS = 10.0  # between two lines about the same stage in a plain log
MOST_TASKS = 20  # in the live view
MOST_NAMED = 4  # tasks in one line of a plain log
LINES = 20  # of the log that who looks from elsewhere gets
STARTING = "starting the workers"


def duration(seconds: float) -> str:
    """In words short enough for a line of progress."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Stages and, while they train, tasks. Use as a context manager around a run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(markup=False, emoji=False)
        self.started = time.monotonic()
        self.stages: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.restarts = 0  # workers (or teams) that had to be replaced
        self.trained_from: tuple[float, int] | None = None  # when the first update was seen, and how many there were
        self.live: Live | None = None
        self.last_line = 0.0
        self.lines: list[str] = []  # all that was told, with the seconds since the start
        self.on_news: Callable[[dict[str, Any]], None] = lambda news: None  # called with `news()` at every change
        self.first_step: float | None = None  # seconds from the start to the first training step

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live = Live(self._view(), console=self.console, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.update(self._view())
            self.live.__exit__(kind, error, trace)
            self.live = None

    def begin(self, stage: str, note: str = "") -> None:
        self.stages[stage] = {"state": "running", "note": note, "share": 0.0, "since": time.monotonic()}
        self._show(f"{stage}: {note or 'started'}")

    def update(self, stage: str, share: float, note: str) -> None:
        """`share` of the stage's work done, in [0, 1]."""
        self.stages[stage].update(share=share, note=note)
        self._show(f"{stage}: {note}", sparse=True)

    def end(self, stage: str, note: str) -> None:
        entry = self.stages.setdefault(stage, {"since": time.monotonic()})
        entry.update(state="done", note=note, share=1.0, seconds=time.monotonic() - entry["since"])
        self._show(f"{stage}: {note} ({entry['seconds']:.1f} s)")

    def seconds(self) -> dict[str, float]:
        """Wall time of every stage that has ended."""
        return {name: round(s["seconds"], 3) for name, s in self.stages.items() if "seconds" in s}

    def say(self, line: str) -> None:
        line = in_short(line)
        self._keep(line)
        (self.live.console if self.live else self.console).print(plain_lines(line), highlight=False, markup=False)

    def news(self) -> dict[str, Any]:
        """How far everything is, as JSON holds it."""
        now = time.monotonic()
        stages = {
            name: {**stage, "seconds": round(stage.get("seconds", now - stage["since"]), 1), "since": None}
            for name, stage in self.stages.items()
        }
        return {
            "seconds": round(now - self.started, 1),
            "stages": stages,
            "tasks": self.tasks,
            "restarts": self.restarts,
            "lines": self.lines[-LINES:],
        }

    def training(self, state: dict[str, dict[str, Any]], restarts: int) -> None:
        """How far all jobs are, and how many workers had to be replaced."""
        for name, now in state.items():
            before = self.tasks.get(name, {}).get("state")
            if now["state"] in ("done", "failed") and before not in ("done", "failed"):
                loss = f", loss {now['loss']:.3f}" if now["loss"] is not None else ""
                self._line(f"train: {name} {now['state']}{loss}")
        self.tasks = state
        self.restarts = restarts
        steps = sum(job["steps"] for job in state.values())
        done = sum(job["steps"] if job["state"] == "done" else job["step"] for job in state.values())
        finished = sum(job["state"] == "done" for job in state.values())
        if done and self.first_step is None:
            self.first_step = round(time.monotonic() - self.started, 1)
        # The pace is counted from here: what loads before the first step, or was done by a run before, is none of it.
        if done and self.trained_from is None:
            self.trained_from = (time.monotonic(), done)
        note = f"{finished} of {len(state)} tasks, step {done} of {steps}{self._pace(done, steps)}"
        if restarts:
            note += f", {restarts} restart(s)"
        if not self.live:  # where no table shows them
            at_work = [
                f"worker {job['worker']} {name} {job['step']}/{job['steps']}"
                for name, job in state.items()
                if job["state"] == "training"
            ]
            note += "".join(f"; {words}" for words in at_work[:MOST_NAMED])
        begun = any(job["state"] != "waiting" for job in state.values())
        self.update("train", done / max(1, steps), note if begun else STARTING)

    def _pace(self, now: int, steps: int) -> str:
        """Updates a second since the first one, and how long the rest will take at that."""
        since, before = self.trained_from or (0.0, now)
        if now <= before:
            return ""
        pace = (now - before) / (time.monotonic() - since)
        return f", {pace:.1f} steps/s, about {duration((steps - now) / pace)} left"

    def _show(self, line: str, sparse: bool = False) -> None:
        self.on_news(self.news())
        if self.live:
            self.live.update(self._view())
        if not sparse or time.monotonic() - self.last_line > QUIET_SECONDS:
            self._line(line)

    def _keep(self, line: str) -> str:
        # Names of tasks and files come from outside, and a log is read in a terminal: no escape sequence gets there.
        stamped = plain(f"[{time.monotonic() - self.started:6.1f} s] {line}")
        self.lines.append(stamped)
        return stamped

    def _line(self, line: str) -> None:
        """For a log; where a table stands in its place, it is only kept."""
        self.last_line = time.monotonic()
        stamped = self._keep(line)
        if not self.live:
            self.console.print(stamped, highlight=False, markup=False, soft_wrap=True)

    def _view(self) -> Group:
        return view(self.news())


def view(news: Mapping[str, Any]) -> Group:
    """Stages and tasks of `Progress.news` as tables."""
    stages = Table.grid(padding=(0, 2))
    for name, stage in news["stages"].items():
        mark = Text("done", style="green") if stage["state"] == "done" else Text("…", style="yellow")
        bar = ProgressBar(total=1.0, completed=stage["share"], width=24)
        stages.add_row(mark, plain(name), bar, f"{stage['seconds']:5.1f} s", plain(stage["note"]))
    jobs = news["tasks"]
    if not jobs or all(job["state"] == "done" for job in jobs.values()):
        return Group(stages)
    tasks = Table.grid(padding=(0, 2))
    # All of a few; of many, those that somebody would look for.
    few = len(jobs) <= MOST_TASKS
    shown = {name: job for name, job in jobs.items() if few or job["state"] in ("training", "failed")}
    for name, job in list(shown.items())[:MOST_TASKS]:
        step = job["steps"] if job["state"] == "done" else job["step"]
        bar = ProgressBar(total=job["steps"], completed=step, width=24)
        loss = job["state"] if job["loss"] is None else f"loss {job['loss']:.3f}"
        tasks.add_row("   ", plain(name), bar, f"{step}/{job['steps']}", loss)
    if not few:
        tasks.add_row("   ", f"and {len(jobs) - min(len(shown), MOST_TASKS)} more")
    return Group(stages, tasks)
