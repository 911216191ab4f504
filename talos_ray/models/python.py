"""The escape hatch: any `torch.nn.Module`, through a function of the user's own that returns a `models.Family`.

`model: "python:MODULE:FUNCTION"` calls it without arguments, in the driver and in every worker, so MODULE must be importable there
(from the working folder, or installed). Only `module`, `edited`, `preprocess`, `head`, `features` and `logits` are needed:

    class Mine:                                              # my_models.py; in the spec: model: "python:my_models:Mine"
        edited = ("body.",)                                  # where the weights stand that may change
        head_words = "class numbers"
        def __init__(self): self.module = my_pretrained_network()
        def preprocess(self, examples): return torch.stack([to_tensor(e) for e in examples])
        def head(self, phrases, prompts): return torch.arange(len(phrases))
        def features(self, inputs): return self.module.body(inputs)
        def logits(self, inputs, head): return self.module(inputs)[:, head]
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from talos_ray.errors import SpecError

NEEDED = ("module", "edited", "preprocess", "head", "features", "logits")


def check(name: str) -> None:
    """Raises SpecError unless `MODULE:FUNCTION` can be imported and called."""
    _factory(name)


def _factory(name: str):
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())  # as `python` does
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(
            f"model 'python:{name}': {error}; wanted MODULE:FUNCTION, importable from {os.getcwd()!r} or installed; check both names"
        ) from None
    finally:
        sys.path.pop(0)


def load(name: str, pretrained: bool = True):
    """What the function returns; it is asked for its weights in any case.

    Raises:
        SpecError: something that a family needs is missing.
    """
    family = _factory(name.removeprefix("python:"))()
    if missing := [n for n in NEEDED if not hasattr(family, n)]:
        raise SpecError(
            f"model {name!r}: what it returns has no {missing[0]!r}; wanted {', '.join(NEEDED)}; see talos_ray/models/python.py"
        )
    family.module.eval()
    if not hasattr(family, "save"):
        family.save = lambda folder: _save(family, folder)
    if not hasattr(family, "head_words"):
        family.head_words = "what its own `head` function returned"
    return family


def _save(family, folder: Path) -> None:
    """For `load_state_dict`."""
    save_file({n: t.contiguous().clone() for n, t in family.module.state_dict().items()}, folder / "model.safetensors")
