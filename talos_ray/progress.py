"""What a person sees while a run goes on: a live table in a terminal, a line a step in a log."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from talos_ray.shown import plain, plain_lines

QUIET_SECONDS = 10.0  # between two lines about the same stage in a plain log
MOST_TASKS = 20  # in the live view
MOST_NAMED = 4  # tasks in one line of a plain log


class Progress:
    """Stages and, while they train, tasks. Use as a context manager around a run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(markup=False, emoji=False)
        self.started = time.monotonic()
        self.stages: dict[str, dict] = {}
        self.tasks: dict[str, dict] = {}
        self.restarts: dict[int, int] = {}
        self.live: Live | None = None
        self.last_line = 0.0
        self.first_step: float | None = None  # seconds from the start to the first training step

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live = Live(self._view(), console=self.console, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(self, *exc) -> None:
        if self.live:
            self.live.update(self._view())
            self.live.__exit__(*exc)
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
        (self.live.console if self.live else self.console).print(plain_lines(line), highlight=False, markup=False)

    def training(self, state: dict[str, dict], restarts: dict[int, int]) -> None:
        """The queue's view of all jobs."""
        for name, now in state.items():
            before = self.tasks.get(name, {}).get("state")
            if now["state"] in ("done", "failed") and before not in ("done", "failed") and not self.live:
                self._line(
                    f"train: {name} {now['state']}" + (f", loss {now['loss']:.3f}" if now["loss"] is not None else "")
                )
        self.tasks, self.restarts = state, restarts
        steps = sum(s["steps"] for s in state.values())
        now = sum(s["steps"] if s["state"] == "done" else s["step"] for s in state.values())
        finished = sum(s["state"] == "done" for s in state.values())
        if now and self.first_step is None:
            self.first_step = round(time.monotonic() - self.started, 1)
        again = sum(restarts.values())
        note = f"{finished} of {len(state)} tasks, step {now} of {steps}" + (
            f", {again} team restarts" if again else ""
        )
        if not self.live:  # where no table shows them
            at_work = [
                f"team {s['team']} {n} {s['step']}/{s['steps']}" for n, s in state.items() if s["state"] == "training"
            ]
            note += "".join(f"; {words}" for words in at_work[:MOST_NAMED])
        self.update("train", now / max(1, steps), note if restarts else "starting teams of Ray Train workers")

    def _show(self, line: str, sparse: bool = False) -> None:
        if self.live:
            self.live.update(self._view())
        elif not sparse or time.monotonic() - self.last_line > QUIET_SECONDS:
            self._line(line)

    def _line(self, line: str) -> None:
        self.last_line = time.monotonic()
        self.console.print(
            plain(f"[{time.monotonic() - self.started:6.1f} s] {line}"), highlight=False, markup=False, soft_wrap=True
        )

    def _view(self) -> Group:
        stages = Table.grid(padding=(0, 2))
        for name, s in self.stages.items():
            mark = Text("done", style="green") if s["state"] == "done" else Text("…", style="yellow")
            seconds = s.get("seconds", time.monotonic() - s["since"])
            stages.add_row(
                mark, name, ProgressBar(total=1.0, completed=s["share"], width=24), f"{seconds:5.1f} s", s["note"]
            )
        if not self.tasks or all(t["state"] == "done" for t in self.tasks.values()):
            return Group(stages)
        tasks = Table.grid(padding=(0, 2))
        # All of a few; of many, those that somebody would look for.
        few = len(self.tasks) <= MOST_TASKS
        shown = {n: t for n, t in self.tasks.items() if few or t["state"] in ("training", "failed")}
        for name, t in list(shown.items())[:MOST_TASKS]:
            loss = "" if t["loss"] is None else f"loss {t['loss']:.3f}"
            step = t["steps"] if t["state"] == "done" else t["step"]
            tasks.add_row(
                "   ",
                name,
                ProgressBar(total=t["steps"], completed=step, width=24),
                f"{step}/{t['steps']}",
                loss or t["state"],
            )
        if not few:
            tasks.add_row("   ", f"and {len(self.tasks) - min(len(shown), MOST_TASKS)} more")
        return Group(stages, tasks)
