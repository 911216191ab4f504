"""What talos_ray uses of Ray that Ray does not promise, item by item, each with what serves where a later Ray lacks it.

- `_system_config` of `ray.init`: processes of a Ray of our own stay warm between tasks. Without it Ray starts them
anew, which is
  slower and as right.
- The wording of two kinds of messages: that Ray's own processes were too slow to start, and that its memory monitor
ended a worker.
  Where it changes, a start is not tried again, and the message is shown as Ray words it.
- Which Ray on this machine the address `auto` means. Without it `auto` is not looked at before Ray itself does.
"""

from __future__ import annotations

import re

# Only for a Ray of our own on one machine: nothing preempts it, and a process that is warm is worth keeping.
LOCAL_CONFIG = {
    "idle_worker_killing_time_threshold_ms": 600_000,
    "worker_maximum_startup_concurrency": 8,
    "prestart_worker_first_driver": False,  # they would lack the environment of what runs here, and never be used
    "task_oom_retries": 3,  # without end, if not said: the same shard would be killed for ever
}
SLOW = re.compile(r"tim(ed|e) ?out|overloaded", re.IGNORECASE)
REFUSED = re.compile(r"_system_config|system.config|config.*(unknown|not found|invalid)", re.IGNORECASE)
MEMORY = re.compile(r"was ([\d.]+GB) used / ([\d.]+GB) limit")


def was_too_slow(message: str) -> bool:
    """Whether Ray did not start because its own processes took too long, so that another try may do."""
    return SLOW.search(message) is not None


def refuses_config(message: str) -> bool:
    """Whether Ray did not start because it does not know `LOCAL_CONFIG`."""
    return REFUSED.search(message) is not None


def memory_used(message: str) -> tuple[str, str] | None:
    """What a node had used, and the limit, where Ray's memory monitor ended a worker."""
    found = MEMORY.search(message)
    return (found[1], found[2]) if found else None


def running_here() -> str | None:
    """The address of the Ray on this machine that `auto` means; None if there is none, 'auto' if nobody can tell."""
    try:
        from ray._private.services import get_ray_address_from_environment
    except ImportError:
        return "auto"
    try:
        address: str | None = get_ray_address_from_environment("auto", None)
    except ConnectionError:
        return None
    except Exception:  # as of another signature
        return "auto"
    return address
