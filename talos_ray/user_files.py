"""Files that a user asks for: never in place of what is there already, and never inside of a run."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from talos_ray.errors import SpecError, TalosError
from talos_ray.storage.run_folder import RunFolder

SHOWN = 200  # characters of a path
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # with one slash, too: `Path` has made one of two


def check_free(path: str | Path, *, overwrite: bool = False, inputs: Sequence[str | Path] = ()) -> None:
    """Raises SpecError unless a file of this name can be made without harm: asked before an hour is spent.

    Args:
        overwrite: a file that is there may be replaced, unless it belongs to a run.
        inputs: files and folders that are read for it; none of these is replaced.
    """
    told = repr(str(path)[:SHOWN])
    if URI.match(str(path)):
        raise SpecError(f"output {told} is a URI; wanted a local path; write there, and copy the file")
    try:
        place = Path(path).expanduser().absolute()
        run = run_around(place)
        kind = "folder" if place.is_dir() else "file" if os.path.lexists(place) else "nothing"
        near = place.parent.is_dir()
        source = _read_from(place, inputs) if kind == "file" else None
        with contextlib.suppress(FileNotFoundError):
            place.stat()  # of a name that no file can have, this says why
    except (OSError, RuntimeError, ValueError) as error:  # too long, a home of nobody, links in a circle
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise SpecError(f"output {told} cannot be a file: {reason}; choose another place") from None
    if run:
        raise SpecError(f"output {told} lies in the run {str(run)!r}, which keeps only its own; choose another")
    if not near:
        raise SpecError(f"output {told}: its folder does not exist; wanted one that does; make it")
    if kind == "folder":
        raise SpecError(f"output {told} is a folder; wanted the name of a file; add one")
    if source is not None and overwrite:
        raise SpecError(f"output {told} is read as input {source!r}; wanted another file; choose another name")
    if kind == "file" and not overwrite:
        raise SpecError(
            f"output {told} is there already; wanted a new file; choose another name, or add --overwrite "
            "(overwrite=True)"
        )


def check_new_folder(path: str | Path) -> None:
    """Raises SpecError unless a folder of this name is new or empty, and can be made without harm to a run."""
    told = repr(str(path)[:SHOWN])
    if URI.match(str(path)):
        raise SpecError(f"output {told} is a URI; wanted a local folder; write there, and copy it")
    try:
        place = Path(path).expanduser().absolute()
        run = run_around(place / "x")  # or the run itself
        file = next((p for p in (place, *place.parents) if os.path.lexists(p) and not p.is_dir()), None)
        full = place.is_dir() and any(place.iterdir())
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise SpecError(f"output {told} cannot be a folder: {reason}; choose another place") from None
    if file:
        raise SpecError(f"output {told}: {str(file)!r} is no folder; wanted a new or empty folder; choose another")
    if run:
        raise SpecError(f"output {told} lies in the run {str(run)!r}, which keeps only its own; choose another")
    if full:
        raise SpecError(f"output {told} is not empty; wanted a new or empty folder; choose another")


def _read_from(place: Path, inputs: Sequence[str | Path]) -> str | None:
    """The input that a file is, also by a link, or that it lies in."""
    real = Path(os.path.realpath(place))
    for given in inputs:
        try:
            source = Path(given).expanduser()
            same = source.exists() and place.exists() and source.samefile(place)
            if same or (source.is_dir() and source.resolve() in real.parents):
                return str(given)
        except (OSError, RuntimeError, ValueError):  # no file, of which its reader tells
            continue
    return None


def write(path: str | Path, data: bytes, *, overwrite: bool = False) -> None:
    """Make a file, as `check_free` allows it.

    Raises:
        SpecError: as `check_free`, or it cannot be written.
    """
    check_free(path, overwrite=overwrite)
    try:
        Path(path).expanduser().write_bytes(data)
    except OSError as error:
        raise SpecError(f"output {str(path)!r} cannot be written: {error.strerror}; choose another place") from None


def run_around(place: Path) -> Path | None:
    """The run that a path lies in, if it lies in one."""
    for folder in place.resolve().parents:
        try:
            if RunFolder(str(folder)).is_ours:
                return folder
        except (TalosError, OSError):  # what lies there is no run that can be read
            continue
    return None
