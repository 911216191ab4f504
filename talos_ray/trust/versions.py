"""How a version comes into force: by its gate, by somebody's approval, by rolling back. Each is an event of the
history.

A version that its gate does not let through is kept, marked, and never becomes head by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from talos_ray import gate
from talos_ray.config import Gate
from talos_ray.core.paired import Answers
from talos_ray.errors import TalosError
from talos_ray.storage import history
from talos_ray.storage.files import as_json
from talos_ray.storage.run_folder import RunFolder, answers_file, answers_name, robustness_name
from talos_ray.storage.version import GateResult, Summary, TaskScores, Version

FRONT = {
    "html": "index.html",
    "csv": "scores.csv",
    "impact.csv": "impact.csv",
    "xlsx": "scores.xlsx",
}  # what shows the version in force


def publish(
    folder: RunFolder, version: Version, base: Answers, now: Answers, operation: str, *,
    at: int | None = None, log: Sequence[str] = (), **details: object,
) -> int:  # fmt: skip
    """Judge a version and store it with its answers and its report; in force if the spec's gate holds. Returns its
    number.

    Args:
        at: head when the work on it began, if it was made from head.
        log: lines that were told while it was made.

    Raises:
        ConflictError: head is another by now; nothing was changed.
    """
    from talos_ray.report.page import render  # plots load slowly

    info = folder.info()
    version = Version.of(version)
    if version.kind != "base":  # which is what all others are judged against
        judged = _judged(folder.stored(Gate, info["spec"].get("gate") or {}), version, base, now)
        # Who looks at the same test inputs often enough passes by chance, so every look is counted.
        looks = {task: 1 + _looks(folder, data) for task, data in now.data.items()}
        version = version.with_fields(gate=judged, looks=looks)
        details["gate"] = judged.result
        details["looked_at"] = dict(now.data)
    in_force = version.passes

    @cache
    def files(number: int) -> tuple[Version, dict[str, bytes]]:
        # Kept by number: a writer who came first leaves it as it is, unless it made a version too. Drawing takes
        # seconds, and whoever drew anew each time would always be the last.
        name, content = answers_file(number, now)
        pages = render(folder, info, version.with_fields(version=number), answers=now)
        written = {name: content}
        if log:
            written[f"logs/{number:04d}.txt"] = "".join(f"{line}\n" for line in log).encode()
        written |= _pages(number, pages)
        if in_force:
            written |= _front(pages)
        return version, written

    return folder.add_version(operation, files, in_force=in_force, at=at, **details)


def _judged(settings: Gate, version: Version, base: Answers, now: Answers) -> GateResult:
    """What a gate says of a version. What the base and the version answered decides, not their scores: pairs of
    answers to the same inputs tell far more of a change than two means."""
    targets = version.targets
    controls = version.controls
    return gate.judge(
        settings,
        targets,
        controls,
        base={task: base.right(task) for task in (*targets, *controls)},
        now={task: now.right(task) for task in (*targets, *controls)},
        disentanglement=version.search.disentanglement.together,
        strata={task: now.strata(task) for task in (*targets, *controls)},
    )


def _looks(folder: RunFolder, data: str) -> int:
    """How often versions were judged on these test inputs before."""
    count = 0
    for event in history.events(folder.store):
        marks = event.get("looked_at")  # earlier releases did not count
        if isinstance(marks, dict) and data in marks.values():
            count += 1
    return count


def base_version(version: Version | Mapping[str, Any]) -> Version:
    """Version 0: the base itself, with the scores measured in the same pass as those of the first version."""
    version = Version.of(version)
    mean = version.summary.zero_shot
    means = {"zero_shot": mean, "merged": mean} if version.targets else {}
    return Version(
        kind="base",
        created=version.created,
        base=version.base,
        mask=version.mask,
        deltas={},
        model=version.base,
        targets=version.targets,
        controls=version.controls,
        coefficients={},
        scores={t: TaskScores(base=s.base, merged=s.base) for t, s in version.scores.items()},
        summary=Summary(**means, control_kept=dict.fromkeys(version.controls, 1.0)),
    )


def rollback(folder: RunFolder, number: int | None, reason: str | None) -> None:
    """Put an earlier version in force again; the one before head, if none is named.

    Raises:
        TalosError: no such version, or one that its gate kept aside. ConflictError: head moved meanwhile.
    """
    asked = ["rollback", number, reason]
    if folder.settle(asked):
        return
    head = folder.head
    if head is None:
        raise TalosError(f"run {folder.store.uri!r} has no version yet; run the same command again to finish it")
    to = head - 1 if number is None else number
    if to < 0:
        raise TalosError(
            f"version {head} is the first of run {folder.store.uri!r}; there is nothing before it to roll back to"
        )
    version = folder.load_version(to)
    if is_held(folder, version):
        assert version.gate is not None  # only a gate keeps a version aside
        raise TalosError(
            f"version {to} of run {folder.store.uri!r} was never in force: {version.gate.why}; `talos approve` puts it "
            "in force all the same"
        )
    pages = {kind: folder.read(_page(to, kind)) for kind in FRONT}
    folder.set_head(to, "rollback", _front(pages), at=head, asked=asked, was=head, reason=reason)


def approve(folder: RunFolder, number: int, by: str, reason: str) -> None:
    """Put a version in force although its gate does not let it through.

    Raises:
        TalosError: no such version, nobody or no reason is named, or its gate holds. ConflictError: head moved
            meanwhile.
    """
    from talos_ray.report.page import render

    asked = ["approve", number, by, reason]
    if folder.settle(asked):
        return
    head = folder.head
    version = folder.load_version(number)
    if not by.strip() or not reason.strip():
        raise TalosError("an approval names who gives it and why; wanted both; add --by NAME and --reason TEXT")
    if not is_held(folder, version):
        raise TalosError(
            f"version {number} of run {folder.store.uri!r} needs no approval: its gate holds, or it has one; use "
            "`talos rollback` to put it in force"
        )
    check_sources(folder, version)
    approved = {"by": by, "reason": reason}
    robustness = folder.load_robustness(number)
    pages = render(folder, folder.info(), version, approved, robustness, answers=answers_of(folder, number))
    files = {**_pages(number, pages), **_front(pages)}
    assert version.gate is not None  # only a gate keeps a version aside
    folder.set_head(
        number, "approve", files, at=head, asked=asked, was=head, by=by, reason=reason, gate=version.gate.result
    )


def check_sources(folder: RunFolder, version: Version) -> None:
    """Raises CorruptError unless what a version is made of, and its page tells of, is as it was recorded."""
    made_of = {"mask.safetensors", "heads.safetensors"}
    if version.rows is not None:
        made_of.add(version.rows)
    # Earlier releases recorded less; what no event names cannot be held against one.
    recorded = sorted(made_of & set(history.recorded(folder.store)))
    folder.check(*recorded)
    for task, mark in version.deltas.items():
        folder.check_delta(task, mark)


def add_robustness(folder: RunFolder, number: int, found: Mapping[str, Any]) -> None:
    """Keep what a version scores on corrupted test data beside it, and show it in its report."""
    from talos_ray.report.page import render

    version = folder.load_version(number)
    answers = answers_of(folder, number)
    pages = render(folder, folder.info(), version, folder.approval(number), found, answers=answers)
    front = _front(pages) if folder.head == number else {}
    writes = {robustness_name(number): as_json(found), **_pages(number, pages), **front}
    folder.record("robustness", writes=writes, version=number)


def add_pages(folder: RunFolder, numbers: Sequence[int], operation: str) -> None:
    """Make the report pages of some versions anew, and put head's in front, by an event of its own."""
    from talos_ray.report.page import render

    writes: dict[str, bytes] = {}
    for number in numbers:
        version = folder.load_version(number)
        check_sources(folder, version)
        approved = folder.approval(number)
        robustness = folder.load_robustness(number)
        pages = render(folder, folder.info(), version, approved, robustness, answers=answers_of(folder, number))
        writes |= _pages(number, pages)
        if number == folder.head:
            writes |= _front(pages)
    folder.record(operation, writes=writes, pages=list(numbers))


def report(folder: RunFolder, number: int, language: str) -> bytes:
    """The page on a version as it would be written now: with its approval and what `watch` has found since; kept
    nowhere.

    Raises:
        SpecError: a language that the report does not speak. TalosError: no such version.
    """
    from talos_ray.report.page import render
    from talos_ray.report.words import words_of

    words_of(language)
    version = folder.load_version(number)
    check_sources(folder, version)
    watched = []
    for event in history.events(folder.store):
        if event["operation"] == "watch" and event["version"] == number:
            watched.append(event)
    approved = folder.approval(number)
    robustness = folder.load_robustness(number)
    answers = answers_of(folder, number)
    pages: dict[str, bytes] = render(
        folder, folder.info(), version, approved, robustness, language=language, watched=watched, answers=answers
    )
    return pages["html"]


def answers_of(folder: RunFolder, number: int) -> Answers | None:
    """What a version answered on test data; None where that was not recorded."""
    return folder.load_answers(number) if answers_name(number) in history.recorded(folder.store) else None


def is_held(folder: RunFolder, version: Version) -> bool:
    """Whether a version's gate keeps it aside, and nobody has approved it."""
    return not version.passes and folder.approval(number_of(version)) is None


def number_of(version: Version) -> int:
    """The number of a version that is on storage."""
    assert version.number is not None
    return version.number


def standing(folder: RunFolder, number: int) -> str:
    """A sentence on whether a version is in force, and where its report is."""
    version = folder.load_version(number)
    if is_held(folder, version):
        assert version.gate is not None  # only a gate keeps a version aside
        return (
            f"version {number} is kept aside, head is still {folder.head}: {version.gate.why}; report in "
            f"{folder.store.path(_page(number, 'html'))}"
        )
    return f"version {number} is head; report in {folder.store.path('report/index.html')}"


def _page(number: int, kind: str) -> str:
    return f"report/{number:04d}.{kind}"


def _pages(number: int, pages: Mapping[str, bytes]) -> dict[str, bytes]:
    return {_page(number, kind): content for kind, content in pages.items()}


def _front(pages: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files under the names that show the version in force."""
    return {f"report/{name}": pages[kind] for kind, name in FRONT.items()}
