"""What tests of serving share: further versions of a recorded run, and answers to compare."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import torch
from PIL import Image

import talos_ray
from talos_ray import gate
from talos_ray.config import Gate
from talos_ray.core.compose import Composer
from talos_ray.core.layout import fingerprint
from talos_ray.models import base_tensors
from talos_ray.storage.version import GateResult, Version
from talos_ray.tasks import load_inputs
from talos_ray.trust.predict import Predictions

UNMET = gate.judge(Gate(), [], ["held"], {"held": torch.ones(40) > 0}, {"held": torch.ones(40) < 0})


def add_version(run: talos_ray.Run, coefficients: Mapping[str, float], *, in_force: bool = False, **more) -> int:
    """A version of some edits, with a coefficient each. Returns its number. `more`: what else the version says; `gate=…` may keep it aside."""
    first = run.folder.load_version(1)
    family = run.model(0)
    deltas = [run.folder.load_delta(task) for task in coefficients]
    Composer(family.module, run.mask, deltas, run.info["base"]).compose(coefficients)
    version = Version.model_validate(
        {
            **{key: value for key, value in first.as_dict().items() if key not in ("learned", "rows")},
            "deltas": {d.task: d.fingerprint for d in deltas},
            "coefficients": dict(coefficients),
            "model": fingerprint(base_tensors(family)),
            **more,
        }
    )
    return run.folder.add_version("addition", lambda number: (version, {}), in_force=in_force)


def held(**settings) -> GateResult:
    """What a version says of a gate that is not met."""
    return UNMET.with_fields(settings=Gate(**settings).model_dump())


def wire(inputs: list) -> list:
    """Inputs as JSON has them."""
    return [as_base64(x) if isinstance(x, Image.Image) else x for x in inputs]


def as_base64(image: Image.Image, kind: str = "PNG", **how) -> str:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return base64.b64encode(out.getvalue()).decode()


def alike(found: Predictions, wanted: Predictions) -> bool:
    """To the bit."""
    return (
        torch.equal(found.best, wanted.best)
        and torch.equal(found.scores, wanted.scores)
        and (found.task, found.version, found.classes) == (wanted.task, wanted.version, wanted.classes)
    )


def single(run: talos_ray.Run, task: str, inputs: list, top_k: int = 1) -> Predictions:
    """What the edit alone answers, under the heads that the run began with."""
    pipe = run.pipeline(task, 0)
    with run.only(task, on=pipe):
        return pipe.answer(load_inputs(pipe.settings, inputs, pipe.classes), top_k)
