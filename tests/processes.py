"""Which processes of this session's Ray are at work."""

import contextlib

import psutil


def at_work(*titles: str) -> list[tuple[str, psutil.Process]]:
    """Which processes of this session's Ray run some Ray functions: (function, process)."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may be gone by now
            line = " ".join(process.cmdline())
            found += [(title, process) for title in titles if line.startswith(f"ray::{title}")]
    return found
