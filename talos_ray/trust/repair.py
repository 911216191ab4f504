"""What earlier releases could leave behind, put in order: a second event of one number, pages that an approval had no
time to write, files that belong to nothing, a head.json that names no event.

Nothing is thrown away: what is taken out of the run is first copied to a folder of its own. Nothing that decides a
model or a score (deltas, masks, versions, answers) is ever mended here: that has to come from a copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from talos_ray.errors import CorruptError, TalosError
from talos_ray.storage import history
from talos_ray.storage.run_folder import WORKERS_WRITE, RunFolder
from talos_ray.trust import versions

PAGE = re.compile(r"report/(?:(\d{4})\.(?:html|csv|impact\.csv|xlsx)|index\.html|scores\.csv|impact\.csv|scores\.xlsx)")


@dataclass(frozen=True)
class Step:
    """Something that is to be put in order."""

    names: tuple[str, ...]  # of the files that it mends
    words: str
    do: Callable[[], object]


def steps(folder: RunFolder, kept: Path) -> Iterator[Step]:
    """What can be put in order, one after the other: each is found once those before it have been done.

    Args:
        kept: new folder for what is taken out of the run.
    """
    store = folder.store

    def take_out(name: str) -> None:
        place = kept / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(store.read(name))
        store.delete(name)

    for name, stays in history.second_events(store):
        if stays is None:
            raise TalosError(
                f"{name} and another event have the same number, and neither the next event nor head.json says which "
                "one counts; look at both, keep a copy, and take one away"
            )
        words = f"{name} is a second event of its number, and {stays} is the one that counts: it is taken out"
        yield Step((name,), words, partial(take_out, name))
    events, _ = history.chain(store)
    if history.pointed(store, events):
        words = "head.json names no event: it is written anew from the newest one"
        yield Step(("head.json",), words, lambda: history.point(store, events[-1]))
    for name in history.strays(store):
        if not name.startswith(WORKERS_WRITE):  # a run that was cut off goes on from those
            yield Step((name,), f"{name} is in no event: it is taken out", partial(take_out, name))
    wrong = [name for name in history.changed(store) if PAGE.fullmatch(name)]
    if wrong:
        words = f"{', '.join(wrong)}: not as recorded, and made anew from what is"
        yield Step(tuple(wrong), words, lambda: _pages_anew(folder, wrong))


def repair(folder: RunFolder, kept: Path, *, yes: bool) -> tuple[list[str], list[str]]:
    """Put a run in order, or (without `yes`) only say how. Returns what was done, or would be, and what is left that
    only a copy can mend.

    Raises:
        TalosError: `kept` is there already, or nothing says which of two events counts.
    """
    if yes and kept.exists():
        raise TalosError(
            f"folder {str(kept)!r} is there already; wanted a new one for what is taken out; choose another with --keep"
        )
    done = []
    mended: list[str] = []
    try:
        for step in steps(folder, kept):
            done.append(step.words)
            mended += step.names
            if yes:
                step.do()
    except CorruptError as error:  # without `yes` what comes before it is still there
        if yes or not done:
            return done, [str(error)]
        return done, ["what else there is can be seen once these are done"]
    problems = history.verify(folder.store)
    if not yes:  # what would be mended is still wrong, and is not left over
        openings = tuple(f"{name} " for name in mended)
        problems = [problem for problem in problems if not problem.startswith(openings)]
    return done, problems


def _pages_anew(folder: RunFolder, names: list[str]) -> None:
    """Report pages of the versions that the names belong to, and those of head in front, as an event of its own."""
    numbers = set()
    for name in names:
        page = PAGE.fullmatch(name)
        if page and page[1]:
            numbers.add(int(page[1]))
    # Pages without a number are those of the version in force.
    if folder.head is not None:
        numbers.add(folder.head)
    versions.add_pages(folder, sorted(numbers), "repair")
