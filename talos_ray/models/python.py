"""The escape hatch: any `torch.nn.Module`, through a function of the user's own that returns a `models.family.Family`.

`model: "python:MODULE:FUNCTION"` calls it without arguments, in the driver and in every worker, so MODULE must be
importable there (from the working folder, or installed). Only `module`, `edited`, `preprocess`, `head`, `features` and
`logits` are needed:

    class Mine:                                              # my_models.py; in the spec: model: "python:my_models:Mine"
        edited = ("body.",)                                  # where the weights stand that may change
        head_words = "class numbers"
        def __init__(self): self.module = my_pretrained_network()
        def preprocess(self, examples): return torch.stack([to_tensor(e) for e in examples])
        def head(self, phrases, prompts): return torch.arange(len(phrases))
        def features(self, inputs): return self.module.body(inputs)
        def logits(self, inputs, head): return self.module(inputs)[:, head]

A spec, or a run that somebody else made, can name any module. So none is imported unless the user of this process has
said that it may
be: `--allow-code MODULE`, `allow_code="MODULE"`, or the variable TALOS_ALLOW_CODE. What was allowed is remembered by
    the SHA-256 of its
source, for this user: other source asks again.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from talos_ray.errors import SpecError
from talos_ray.models.family import Family

NEEDED = ("module", "edited", "preprocess", "head", "features", "logits")


ALLOWED = "TALOS_ALLOW_CODE"  # modules, with commas between them; processes that this one starts inherit it


def allow(modules: str | Iterable[str]) -> None:
    """Let models of these modules run their code, now and, while their source stays as it is, whenever this user comes
    back."""
    given = [modules] if isinstance(modules, str) else list(modules)
    if not given:
        return
    os.environ[ALLOWED] = ",".join(dict.fromkeys([*_named(), *given]))
    marks = {module: mark for module in given if (mark := _fingerprint(module)) is not None}
    if not marks:
        return
    known = {**_remembered(), **marks}
    try:
        memory = _memory()
        memory.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and moved: another process that reads it meanwhile sees the old list or the new one.
        draft = memory.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        os.replace(draft, memory)
    except OSError:  # a home that cannot be written to: it is asked again the next time
        pass


def is_allowed(module: str) -> bool:
    """Whether the user has said that this module, as its source is now, may run."""
    if module in _named():
        return True
    mark = _fingerprint(module)
    return mark is not None and _remembered().get(module) == mark


def _named() -> list[str]:
    names = os.environ.get(ALLOWED, "").split(",")
    return [name for name in names if name]


def _memory() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "talos_ray" / "allowed_code.json"


def _remembered() -> dict[str, str]:
    """Module -> fingerprint of the source that was allowed."""
    try:
        found = json.loads(_memory().read_text())
    except (OSError, ValueError, RecursionError, RuntimeError):  # RuntimeError: a user without a home
        return {}
    return found if isinstance(found, dict) else {}


def _fingerprint(module: str) -> str | None:
    """SHA-256 over where a module's source is and what it says; of all of its package, if it belongs to one. Imports
    nothing. None if there is no source to look at."""
    # Only the outermost package is asked for: to find a module in it, Python would import the package.
    spec = importlib.machinery.PathFinder.find_spec(module.partition(".")[0], [os.getcwd(), *sys.path])
    if spec is None or not spec.origin:
        return None
    files: list[Path] = []
    for folder in spec.submodule_search_locations or ():
        files += Path(folder).rglob("*.py")
    files = sorted(files) or [Path(spec.origin)]
    digest = hashlib.sha256()
    try:
        for path in files:
            # A path in another encoding comes as surrogates, which UTF-8 has no bytes for.
            digest.update(f"{path.resolve()}\n".encode("utf-8", "surrogateescape"))
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    except OSError:
        return None
    return digest.hexdigest()


def check(name: str) -> None:
    """Raises SpecError unless `MODULE:FUNCTION` may be imported, can be, and can be called."""
    module = name.partition(":")[0]
    if not is_allowed(module):
        raise SpecError(
            f"model 'python:{name}' runs the code of module {module!r}, which you have not allowed; look at that code;"
            f" then add --allow-code {module} "
            f"(in Python: allow_code={module!r})"
        )
    _factory(name)


def _factory(name: str) -> Callable[[], Any]:
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())  # as `python` does
    try:
        found: Callable[[], Any] = getattr(importlib.import_module(module), function)
        return found
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SpecError(
            f"model 'python:{name}': {error}; wanted MODULE:FUNCTION, importable from {os.getcwd()!r} or installed; "
            "check both names"
        ) from None
    finally:
        sys.path.pop(0)


def load(name: str, pretrained: bool = True) -> Family:
    """What the function returns; it is asked for its weights in any case.

    Raises:
        SpecError: something that a family needs is missing.
    """
    made = _factory(name.removeprefix("python:"))()
    if missing := [n for n in NEEDED if not hasattr(made, n)]:
        raise SpecError(
            f"model {name!r}: what it returns has no {missing[0]!r}; wanted {', '.join(NEEDED)}; see "
            "talos_ray/models/python.py"
        )
    # With dropout, the same input would have another answer every time.
    made.module.eval()
    defaults = {
        "save": lambda folder: _save(made, folder),
        "head_words": "what its own `head` function returned",
        "words_are_linear": False,
    }
    for key, value in defaults.items():
        if not hasattr(made, key):
            setattr(made, key, value)
    family: Family = made
    return family


def _save(family: Family, folder: Path) -> None:
    """For `load_state_dict`."""
    # Cloned, because safetensors refuses weights that share memory, as tied ones do.
    tensors = {name: tensor.contiguous().clone() for name, tensor in family.module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
