"""talos_ray: many tasks learnt, unlearnt and merged in one pretrained model, by sparse edits that can be undone.

The names below are the whole public interface. They are imported when first used, so that `import talos_ray`
costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from talos_ray.api import Run, check, edit, open_run, pull
    from talos_ray.config import Spec, Task
    from talos_ray.errors import ConflictError, CorruptError, MismatchError, SpecError, StorageError, TalosError
    from talos_ray.spec import load_spec

_HOME = {
    "check": "api",
    "edit": "api",
    "open_run": "api",
    "pull": "api",
    "Run": "api",
    "Spec": "config",
    "Task": "config",
    "load_spec": "spec",
    "TalosError": "errors",
    "SpecError": "errors",
    "MismatchError": "errors",
    "CorruptError": "errors",
    "StorageError": "errors",
    "ConflictError": "errors",
}
__all__ = [  # __version__ beside them
    "ConflictError",
    "CorruptError",
    "MismatchError",
    "Run",
    "Spec",
    "SpecError",
    "StorageError",
    "TalosError",
    "Task",
    "check",
    "edit",
    "load_spec",
    "open_run",
    "pull",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"talos_ray.{_HOME[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("talos-ray")
    raise AttributeError(f"module 'talos_ray' has no attribute {name!r}")
