"""What the papers on task arithmetic measure, on any suite of tasks: addition and negation, for each method.

Addition: one coefficient for all tasks on a grid of 21 points, chosen on validation data by the mean normalized
accuracy (Ilharco et al., 2023; Iurada et al., 2025), beside the learned merge, joint training, single edits, the linear
probe and the untouched base. Negation: every task alone, from the base, as low as its controls allow, each of which
keeps 95 %: one coefficient below zero on a grid of 21 points, beside coefficients that are learned.
All methods get the same tasks, steps and batches; test data are shown and choose nothing.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from talos_ray import api
from talos_ray.config import Spec
from talos_ray.errors import SpecError
from talos_ray.orchestrate.cluster import connect
from talos_ray.orchestrate.forgetting import Reach, how_far
from talos_ray.orchestrate.joint import train_jointly
from talos_ray.spec import PRESETS
from talos_ray.storage.version import Version

KEEP = 0.95  # share of its score that a control task keeps in negation
ADDITION = "addition"
NEGATION = "negation"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one method scores on test data under one seed.

    Args:
        table: ADDITION or NEGATION.
        accuracy: target task -> accuracy, in [0, 1].
        inputs: target task -> on how many test inputs.
        single: target task -> accuracy of its edit alone, where the method merges such edits.
        before: target task -> accuracy of the base, of negation.
        chance: target task -> accuracy at chance, of negation.
        control: mean accuracy of the control tasks, of negation (`control_before`: of the base).
        kept: least share of its base's score that a control task keeps, over all that was measured.
        seconds: of training, over all tasks. bytes: of the deltas on storage. state: bytes of the largest optimizer.
    """

    table: str
    method: str
    accuracy: dict[str, float]
    inputs: dict[str, int]
    single: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    control: float | None = None
    control_before: float | None = None
    kept: float | None = None
    seconds: float | None = None
    bytes: int | None = None
    state: int | None = None

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracy.values())


RESULTS = TypeAdapter(list[Result])
Say = Callable[[str], None]


def reproduce(spec: Spec, folder: Path, seeds: int, say: Say = print) -> dict[int, list[Result]]:
    """Seed -> what every method scores. What is finished is not done again, also after a kill: runs go on where they
    stood, and results lie beside them.

    Args:
        folder: of this machine, where runs and results are written; its results are of one spec.

    Raises:
        SpecError: the folder holds results of another spec. TalosError: as `talos_ray.edit`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(spec, folder)
    connect(spec.cluster, verbose=False)  # once for all runs
    found = {}
    for seed in range(seeds):
        at = (folder / f"seed-{seed}").resolve()
        at.mkdir(exist_ok=True)
        alone = spec.baseline.model_copy(update={"enabled": False})
        seeded = spec.model_copy(update={"seed": seed, "baseline": alone, "push": None})
        results: list[Result] = []
        for name, part in PARTS.items():
            if name == NEGATION and not spec.control:
                say("no control task: negation is left out, because it would cost nothing to forget everything")
                continue
            kept = at / f"{name}.json"
            if not kept.exists():
                say(f"seed {seed} of {seeds}: {name}")
                _write(kept, RESULTS.dump_json(part(seeded, at), indent=1))
            results += RESULTS.validate_json(kept.read_bytes())
        found[seed] = results
    return found


def _check_same(spec: Spec, folder: Path) -> None:
    """Raises SpecError where a folder holds results of another spec."""
    # Without what is as it would be by itself: settings that a later release brings change no suite.
    asked = spec.model_dump_json(exclude={"output", "push", "seed", "cluster"}, exclude_defaults=True)
    mark = hashlib.sha256(asked.encode()).hexdigest()
    about = folder / "suite.json"
    if not about.exists():
        _write(about, json.dumps({"suite": mark, "spec": json.loads(asked)}, indent=1).encode())
    elif json.loads(about.read_bytes()).get("suite") != mark:
        raise SpecError(
            f"folder {str(folder)!r} holds results of another spec (its suite.json); wanted one for each; give another "
            "folder"
        )


def _write(path: Path, content: bytes) -> None:
    # Written elsewhere and renamed: a kill leaves no half of a result.
    draft = path.with_suffix(".draft")
    draft.write_bytes(content)
    draft.rename(path)


def as_published(spec: Spec, output: Path, merge: str = "linear", dense: bool = False) -> Spec:
    """The spec with mask, calibration and search of the paper. No gate and no control task decides in addition.

    Args:
        dense: all weights may change, at the learning rate of the spec's dense baseline.
    """
    paper = PRESETS["paper"]
    values = spec.model_dump()
    for section, settings in paper.items():
        values[section] = {**values[section], **settings}
    if spec.calibration.labels == "tokens":
        values["calibration"]["score"] = "log_prob"  # whole answers have no logit
    values["search"] |= {"merge": {**paper["search"]["merge"], "method": merge}, "control_keep": 0.0}
    if dense:
        values["mask"] = {"strategy": "all"}
        values["train"] |= {"lr": spec.baseline.lr or spec.train.lr, "delta_dtype": "float32"}
    gate = {"control_keep": None, "strict": False}
    return Spec.model_validate({**values, "gate": gate, "output": str(output)})


def _result(version: Version, method: str, kind: str) -> Result:
    """The scores of one kind (`TaskScores`) of a version's targets."""
    scores = {task: version.scores[task].measured() for task in version.targets}
    merged = kind.startswith("merged")
    cost = None if kind in ("base", "probe") else version.cost  # these need no edit
    return Result(
        table=ADDITION,
        method=method,
        accuracy={task: found[kind].value for task, found in scores.items()},
        inputs={task: found[kind].n for task, found in scores.items()},
        single={task: found["single"].value for task, found in scores.items()} if merged else {},
        kept=min(version.summary.control_kept.values(), default=None) if merged else None,
        seconds=None if cost is None else cost.train_seconds,
        bytes=None if cost is None else cost.delta_bytes,
        state=None if cost is None else cost.state_bytes,
    )


def _published(spec: Spec, at: Path) -> list[Result]:
    """TaLoS and dense task arithmetic by the paper's protocol, and the single edits of both."""
    sparse = api.edit(spec=as_published(spec, at / "sparse")).newest
    dense = api.edit(spec=as_published(spec, at / "dense", dense=True)).newest
    return [
        _result(sparse, "zero-shot", "base"),
        _result(sparse, "single, TaLoS", "single"),
        _result(dense, "single, dense", "single"),
        _result(sparse, "TaLoS", "merged"),
        _result(dense, "dense task arithmetic", "merged"),
    ]


def _ties(spec: Spec, at: Path) -> list[Result]:
    """TIES (Yadav et al., 2023) on the same edits, of which none is trained again."""
    sparse = api.edit(spec=as_published(spec, at / "sparse", "ties")).newest
    dense = api.edit(spec=as_published(spec, at / "dense", "ties", dense=True)).newest
    return [_result(sparse, "TaLoS, TIES", "merged"), _result(dense, "dense, TIES", "merged")]


def _learned(spec: Spec, at: Path) -> list[Result]:
    """The suite as its spec has it, by the learned merge; and the linear probe on the base."""
    search = {**spec.search.model_dump(), "method": "learned"}
    default = Spec.model_validate({**spec.model_dump(), "search": search, "output": str(at / "learned")})
    if spec.search.method == "grid":  # a recipe of the paper says nothing of what our own defaults would be
        kept = spec.model_dump(exclude={"mask", "calibration", "search"})
        default = Spec.model_validate({**kept, "output": str(at / "learned")})
    version = api.edit(spec=default).newest
    # Where the frozen heads were the better choice, they are what the version answers by.
    words = "merged_words" if all(version.scores[task].merged_words for task in version.targets) else "merged"
    results = [
        _result(version, "single, rows", "single"),
        _result(version, "learned merge, words' heads", words),
        _result(version, "learned merge", "merged"),
    ]
    if all(version.scores[task].probe for task in version.targets):
        results.insert(0, _result(version, "linear probe", "probe"))
    return results


def _joint(spec: Spec, at: Path) -> list[Result]:
    """One edit on the learned merge's mask, on the data of all tasks at once."""
    found = train_jointly(str(at / "learned"))
    return [
        Result(table=ADDITION, method=f"joint training{name}", accuracy=accuracy, inputs=found.inputs, kept=found.kept)
        for name, accuracy in ((", words' heads", found.words), ("", found.own))
        if accuracy
    ]


def _negation(spec: Spec, at: Path) -> list[Result]:
    """Every task forgotten alone, from edits on the paper's mask and from dense ones by one coefficient, and by
    learned ones from the edits of the learned merge."""
    return [
        _forgetting("TaLoS", how_far(str(at / "sparse"), keep=KEEP, method="grid")),
        _forgetting("dense", how_far(str(at / "dense"), keep=KEEP, method="grid")),
        _forgetting("learned", how_far(str(at / "learned"), keep=KEEP)),
    ]


def _forgetting(method: str, found: Mapping[str, Reach]) -> Result:
    controls = [pair for reach in found.values() for pair in reach.controls.values()]
    return Result(
        table=NEGATION,
        method=method,
        accuracy={task: reach.now.value for task, reach in found.items()},
        inputs={task: reach.now.n for task, reach in found.items()},
        before={task: reach.base.value for task, reach in found.items()},
        chance={task: reach.chance for task, reach in found.items()},
        control=statistics.mean(now.value for _, now in controls),
        control_before=statistics.mean(base.value for base, _ in controls),
        kept=min(now.value / max(base.value, 1e-9) for base, now in controls),
    )


PARTS: Mapping[str, Callable[[Spec, Path], list[Result]]] = {
    "published": _published,
    "ties": _ties,
    "learned": _learned,
    "joint": _joint,
    NEGATION: _negation,
}
