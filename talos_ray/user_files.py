"""Files that a user asks for: never in place of what is there already, and never inside of a run."""

from __future__ import annotations

from pathlib import Path

from talos_ray.errors import SpecError, TalosError
from talos_ray.storage.run_folder import RunFolder


def check_free(path: str | Path, *, overwrite: bool = False) -> None:
    """Raises SpecError unless a file of this name can be made without harm: asked before an hour is spent.

    Args:
        overwrite: a file that is there may be replaced, unless it belongs to a run.
    """
    place = Path(path).expanduser().absolute()
    if run := run_around(place):
        raise SpecError(f"output {str(path)!r} lies in the run {str(run)!r}, which keeps only its own; choose another")
    if not place.parent.is_dir():
        raise SpecError(f"output {str(path)!r}: its folder does not exist; wanted one that does; make it")
    if place.is_dir():
        raise SpecError(f"output {str(path)!r} is a folder; wanted the name of a file; add one")
    if not overwrite and (place.exists() or place.is_symlink()):
        raise SpecError(
            f"output {str(path)!r} is there already; wanted a new file; choose another name, or add --overwrite "
            "(overwrite=True)"
        )


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
