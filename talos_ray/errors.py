"""What a user is told when something is wrong: the thing, the value found, the value wanted, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import TracebackType

LONGEST = 1000  # characters of a line: a value in it may be a file's whole content


class TalosError(Exception):
    """A mistake that the user can mend. The message is complete; the CLI prints it without a traceback."""

    def __init__(self, *told: object) -> None:
        super().__init__(*(in_short(part) if isinstance(part, str) else part for part in told))


class SpecError(TalosError):
    """The spec or a task in it is wrong. Raised before any work starts."""


class MismatchError(TalosError):
    """A mask, delta or run folder belongs to another base, mask or run."""


class CorruptError(TalosError):
    """A stored file is not what its format or its hash says."""


class StorageError(TalosError):
    """Storage refuses a write, or is full."""


class ConflictError(TalosError):
    """Another process changed the run in the meantime. Nothing was changed by this one."""


class Problems:
    """Collects what is wrong with an input, so that all of it is told at once.

    problems = Problems()
    with problems: ...  # a SpecError in it is kept
    problems.tell()     # raises one SpecError with a line for each
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __enter__(self) -> Problems:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, SpecError):
            self.lines.append(str(error))
            return True
        return False

    def tell(self) -> None:
        if self.lines:
            raise SpecError("\n".join(dict.fromkeys(self.lines)))


def in_short(text: str) -> str:
    """A text without the middle of its longest lines, whose beginnings name the thing, and whose ends say the fix."""
    return "\n".join(line if len(line) <= LONGEST else _ends(line) for line in text.split("\n"))


def _ends(line: str) -> str:
    return f"{line[:500]} … ({len(line):,} characters) … {line[-300:]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of `known`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
