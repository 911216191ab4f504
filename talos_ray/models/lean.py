"""open_clip without the libraries that the model at hand has no use for: they are a third of what a process takes to
load it."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import cast

FAMILY = "talos_ray.models.clip"
# What open_clip can do without: the key of a tower that is made of it, and the module that holds it, or None.
OPTIONAL = {
    "transformers": ("hf_model_name", "open_clip.hf_model"),
    "timm": ("timm_model_name", "open_clip.timm_model"),
}


def import_lean(name: str) -> None:
    """Import the family of a model, if that is open_clip's, as on a machine without the `OPTIONAL` libraries that it
    does not need.

    Only for processes of our own: in a user's, open_clip would be left without them. Models may follow each other in a
    process: where a later one needs more, open_clip is loaded again.
    """
    config = _config(name)
    needed = {library for library, (key, _) in OPTIONAL.items() if config is None or key in config}
    if "open_clip" in sys.modules:
        # Loaded without a library, its module has None in the library's place.
        if all(getattr(sys.modules.get(OPTIONAL[library][1]), library, True) for library in needed):
            return
        for module in list(sys.modules):
            if module.partition(".")[0] == "open_clip" or module == FAMILY:
                del sys.modules[module]
    if config is None:
        return
    hidden = [library for library in OPTIONAL if library not in needed and library not in sys.modules]
    for library in hidden:  # so that importing them raises ImportError
        cast("dict[str, ModuleType | None]", sys.modules)[library] = None
    gc.disable()  # a tenth of the time goes into looking for garbage among what imports make, where there is none
    try:
        import_module(FAMILY)
    finally:
        gc.enable()
        for library in hidden:
            del sys.modules[library]


def _config(name: str) -> str | None:
    """What open_clip builds a model from, as JSON; None where open_clip is not used, or only it can tell."""
    if name == "demo":
        return "{}"
    kind, _, rest = name.partition(":")
    if kind != "open_clip" or (spec := find_spec("open_clip")) is None:
        return None
    assert spec.submodule_search_locations is not None  # open_clip is a package
    architecture = rest.partition("/")[0]
    file = Path(spec.submodule_search_locations[0]) / "model_configs" / f"{architecture}.json"
    return file.read_text() if file.is_file() else None
