"""What can be known before any work: the spec checked against data, base and folder, and the keys of every result.

Every stage's result is addressed by what decides it. What must be refused is refused here, before Ray starts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talos_ray.config import ON_HUB, Spec, Task, Train
from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout, fingerprint, key_of
from talos_ray.core.mask import Mask, mask_from_flags
from talos_ray.data.readers import is_here
from talos_ray.errors import Problems, SpecError, TalosError
from talos_ray.integrations import hub, peft
from talos_ray.models import Family, base_tensors, build_model, check_model, checkpoint_tensors, layout_of, load_model
from talos_ray.models.family import AnswerFamily
from talos_ray.models.heads import check_head, has_features, head_key, make_head
from talos_ray.models.weights import FLOATING, check_one_meant, compared, is_adapter, told_left_out
from talos_ray.orchestrate.selection import calibration_split
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder, mask_at
from talos_ray.tasks import TaskData, load_task, told_of, troubled_images
from talos_ray.trust import published
from talos_ray.trust.card import DELTA
from talos_ray.trust.export import exported_weights

DENSE = "dense"
SPARSE = "sparse"
MOST_UNEVEN = 6  # tasks whose rare or missing classes are told one by one
# Settings of training that change no bit of a delta.
NO_MATTER = ("checkpoint_every", "epochs", "gradient_checkpointing")


@dataclass(frozen=True)
class Prepared:
    """The spec with everything that can be known before any work: data, base, heads, keys."""

    spec: Spec
    data: dict[str, TaskData]
    tensors: dict[str, torch.Tensor]
    base: str
    layout: Layout
    heads: dict[str, np.ndarray]
    mask_key: str
    identity: dict[str, object]
    checkpoints: dict[str, str]  # fingerprints of those that stand for training, by task
    own_heads: bool = True  # whether the model has features that a task's own linear head could read

    def head_mark(self, task: str) -> str:
        """Fingerprint of what a task's classes are scored with: its head, and how."""
        head = torch.from_numpy(self.heads[task])
        return fingerprint({_head_name("head", self.data[task].task): head})

    @property
    def targets(self) -> list[str]:
        return [t.name for t in self.spec.tasks]

    @property
    def controls(self) -> list[str]:
        return [t.name for t in self.spec.control]


def _head_name(name: str, task: Task) -> str:
    """What a head is called where it addresses a result: the same tokens are scored otherwise by sums."""
    return f"{name}: sums" if task.scoring == "sums" else name


def _tell_of_data(data: Mapping[str, TaskData], progress: Progress) -> None:
    """What was left out of each task's data, and which of its classes are rare or missing."""
    uneven = {}
    for name, of_task in data.items():
        for note in of_task.notes:
            progress.say(note)
        if words := told_of(of_task):
            uneven[name] = words
    for words in list(uneven.values())[:MOST_UNEVEN]:
        progress.say(words)
    # Hundreds of tasks would hide what else there is to know.
    if rest := list(uneven)[MOST_UNEVEN:]:
        named = ", ".join(rest[:MOST_UNEVEN]) + (" …" if len(rest) > MOST_UNEVEN else "")
        progress.say(f"rare or missing classes in {len(rest)} more tasks: {named}")


def prepare(spec: Spec, progress: Progress) -> Prepared:
    """Check everything that can be wrong with a spec; touch nothing on storage and start nothing.

    Raises:
        SpecError: model, tasks, data, resources and output: a line for everything that is wrong.
    """
    progress.begin("check", "spec, data and model")
    # Each block's error is noted, and the next is looked at all the same: whoever mends a spec sees all that is wrong.
    problems = Problems()
    _check_places(spec, problems)
    data = _load_data(spec, progress, problems)
    # What comes now needs the data of every task, so whatever is wrong up to here is told first, all of it at once.
    problems.tell()
    _tell_of_data(data, progress)
    folder = RunFolder(spec.output)
    family = load_model(spec.model, spec.tokens)
    with problems:
        _check_answers(spec, family)
    problems.tell()
    tensors = base_tensors(family)
    _check_finite(spec.model, tensors)
    base = fingerprint(tensors)
    heads = _heads(folder, family, base, data, spec.seed, progress)
    layout = layout_of(family)
    _tell_of_forgotten(folder, spec, progress)
    calibrated = _calibrated_on(folder, spec)
    given = _given_mask(spec, folder, base)
    mask_key = given.fingerprint if given is not None else _mask_key(folder, spec, base, data, heads, calibrated)
    checkpoints = _checkpoints(folder, spec, layout, tensors, progress, problems)
    problems.tell()
    if not spec.control:
        progress.say("no control task: nothing will show what the edit costs elsewhere; name one under control")
    identity = identity_of(spec, base, calibrated, mask_key)
    folder.check_new(base, identity)
    prepared = Prepared(
        spec=spec,
        data=data,
        tensors=tensors,
        base=base,
        layout=layout,
        heads=heads,
        mask_key=mask_key,
        identity=identity,
        checkpoints=checkpoints,
        own_heads=has_features(family),
    )
    # A mask that is there says it itself, whatever the settings would ask for.
    k = given.k if given is not None else _weights_to_change(spec, layout)
    _check_stored(folder, prepared)
    stays = "" if calibrated == prepared.targets else f"; the mask of the run's first {len(calibrated)} stays"
    progress.end(
        "check",
        f"{len(spec.tasks)} tasks, {len(spec.control)} control, base {base[:12]}, {layout.total:,} eligible weights, "
        f"{k:,} may change{stays}",
    )
    return prepared


def _check_places(spec: Spec, problems: Problems) -> None:
    """What can be told without a look at the data: caches, cluster, output, tracker, model."""
    from talos_ray.orchestrate.cluster import check_local, check_output, check_start
    from talos_ray.orchestrate.machine import check_caches
    from talos_ray.orchestrate.watch import check_tracker

    check_caches()  # alone, because without them nothing else can be looked at
    check_start(spec.cluster)  # alone, because to look at the data may take minutes
    with problems:
        check_output(spec.output, [task.data for task in (*spec.tasks, *spec.control) if is_here(task)])
        RunFolder(spec.output).check_new()
    with problems:
        check_tracker(spec.tracker)
    with problems:
        check_model(spec.model)
    with problems:
        check_local(spec.cluster)


def _given_mask(spec: Spec, folder: RunFolder, base: str) -> Mask | None:
    """The mask of a file, where the spec names one."""
    if spec.mask.path is None:
        return None
    # A run has its own once it was calibrated: the file may be gone, or the run elsewhere.
    return folder.load_mask(base) or mask_at(spec.mask.path, base)


def identity_of(spec: Spec, base: str, calibrated: list[str], mask_key: str) -> dict[str, object]:
    """What a run's folder belongs to for good: another spec may add tasks to it, but not change any of this."""
    # Left out where none is set: or results of releases that did not know it would be another run's.
    tokens = {} if spec.tokens is None else {"tokens": spec.tokens}
    return {
        "model": spec.model,
        **tokens,
        "base": base,
        "tasks": calibrated,
        "seed": spec.seed,
        "mask": spec.mask.keyed(),
        "calibration": spec.calibration.keyed(),
        "calibration inputs": mask_key,
    }


def _tell_of_forgotten(folder: RunFolder, spec: Spec, progress: Progress) -> None:
    """A warning where a new version would know again what head has forgotten."""
    if negated := _negated(folder, [task.name for task in spec.tasks]):
        progress.say(
            f"head has forgotten {', '.join(negated)}; a version with other tasks is made from the base, so `talos "
            "forget` is to be run again on it"
        )


def _checkpoints(
    folder: RunFolder,
    spec: Spec,
    layout: Layout,
    base: Mapping[str, torch.Tensor],
    progress: Progress,
    problems: Problems,
) -> dict[str, str]:
    """Fingerprints of the checkpoints that stand for training, by task. They are read now: whether one fits is a
    question about the spec."""
    fingerprints = {}
    for task in spec.tasks:
        if task.checkpoint is not None:
            progress.update("check", 1.0, f"checkpoint of {task.name}")
            with problems:
                fingerprints[task.name] = _checkpoint(folder, spec.model, task, layout, base, progress)
    return fingerprints


def _load_data(spec: Spec, progress: Progress, problems: Problems) -> dict[str, TaskData]:
    """The data of every task; what is wrong with one is noted, and the others are looked at all the same."""
    everything = (*spec.tasks, *spec.control)
    data = {}
    for i, task in enumerate(everything):
        progress.update("check", i / len(everything), f"data of {task.name}")
        with problems:
            data[task.name] = load_task(task, spec.seed)
            _check_images(data[task.name])
    return data


def _mask_key(
    folder: RunFolder,
    spec: Spec,
    base: str,
    data: Mapping[str, TaskData],
    heads: Mapping[str, np.ndarray],
    calibrated: Sequence[str],
) -> str:
    """Address of the mask by what it is made from. `calibrated`: the tasks that it is calibrated on."""
    if not set(calibrated) <= set(data):  # the run's, whose data may be gone with the task
        known: str = folder.info()["identity"]["calibration inputs"]
        return known
    # Labels are sampled from the model, so those of the data decide nothing and may be corrected later.
    inputs = {task: calibration_split(spec, data[task]).fingerprint(labels=False) for task in calibrated}
    heads_used = fingerprint({_head_name(task, data[task].task): torch.from_numpy(heads[task]) for task in calibrated})
    return key_of([base, inputs, heads_used, spec.calibration.keyed(), spec.mask.keyed(), spec.seed])


def _weights_to_change(spec: Spec, layout: Layout) -> int:
    """How many weights the mask is to hold.

    Raises:
        TalosError: none, or more than the open layers have.
    """
    # Told before calibration, which may take an hour, and not by the selection at its end.
    keep = spec.mask.keep
    layers = spec.mask.layers
    assert not isinstance(keep, str) and not isinstance(layers, str)  # short runs have replaced every `auto`
    everything = spec.mask.strategy == "all"
    k = layout.total if everything else round(keep * layout.total)
    if k < 1:
        raise TalosError(
            f"mask.keep {keep:g} of {layout.total} eligible weights keeps none; wanted at least 1; raise mask.keep"
        )
    room = layout.without(layout.closed(layers)).total
    if k > room and not everything:
        raise TalosError(
            f"mask.keep {keep:g} is {k:,} weights, but mask.layers {layers:g} opens {room:,}; "
            "wanted no more than those; lower mask.keep, or raise mask.layers"
        )
    return k


def _check_images(data: TaskData) -> None:
    """Raises SpecError, naming one, where images cannot be read as they are."""
    for name in ("train", "validation", "test") if data.task.kind == "image" else ():
        split = getattr(data, name)
        if troubled := troubled_images(split):
            row, why = troubled[0]
            raise SpecError(
                f"task {data.task.name!r}: {len(troubled)} image(s) of {name} cannot be read, the first is "
                f"{split.words(row)!r}: {why}"
            )


def _check_finite(model: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises SpecError where a weight of the base is NaN or infinite: whatever is made of it would be, too."""
    # A checkpoint of a training that diverged loads as any other.
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            raise SpecError(
                f"model {model!r}: {int((~finite).sum())} values of its tensor {name!r} are NaN or infinite; wanted "
                "finite weights; load or train it again"
            )


def _heads(
    folder: RunFolder, family: Family, base: str, data: Mapping[str, TaskData], seed: int, progress: Progress
) -> dict[str, np.ndarray]:
    """Every task's head: the run's own where it has it, because another machine may make other last bits of it, and
    all that is addressed by it would be made again."""
    stored = folder.kept_heads()
    heads = {}
    for i, (name, of_task) in enumerate(data.items()):
        progress.update("check", i / len(data), f"head of {name}")
        head = stored.get(head_key(base, of_task))
        if head is None:
            head = make_head(family, of_task, seed)
        # Stored ones, too: they come from a file.
        check_head(family, of_task, head)
        heads[name] = head.numpy()
    return heads


def _check_answers(spec: Spec, family: Family) -> None:
    """Raises SpecError where a spec wants whole answers of a model that writes none, or features of one that does."""
    if isinstance(family, AnswerFamily):
        if linear := [task.name for task in (*spec.tasks, *spec.control) if task.head == "linear"]:
            raise SpecError(
                f"tasks.{linear[0]}.head is 'linear', but model {spec.model!r} answers in words; wanted 'words', or a "
                "model whose features are read (an image model, a text encoder); leave it out"
            )
        return
    names = [f"tasks.{task.name}.choices" for task in (*spec.tasks, *spec.control) if task.choices is not None]
    if spec.calibration.labels == "tokens":
        names.append("calibration.labels: tokens")
    for task in spec.tasks:
        if spec.train_for(task, 1).loss == "completion":
            names.append(f"train.loss: completion (task {task.name!r})")
    if names:
        raise SpecError(
            f"model {spec.model!r} writes no text, so it cannot have {', '.join(names)}; wanted a "
            "sequence-to-sequence model or a causal LM; leave it out"
        )


def _calibrated_on(folder: RunFolder, spec: Spec) -> list[str]:
    """The tasks that the mask comes from: those of the spec, or those of the run that the spec adds tasks to. Of
    these, some may have been taken out of head since: the mask stays what it is."""
    named = [task.name for task in spec.tasks]
    if folder.store.exists("mask.safetensors") and folder.store.exists("run.json"):
        before: list[str] = folder.info()["identity"]["tasks"]
        # A task of the run that is in force and not named is no addition: then the run is refused as another one.
        if set(before) - set(named) <= _out_of_force(folder, before):
            return before
    return named


def _negated(folder: RunFolder, tasks: Sequence[str]) -> list[str]:
    """What head has forgotten and a spec does not name."""
    if not folder.store.exists("run.json") or folder.head is None:
        return []
    # A task that was forgotten is no part of a version made anew, so nothing would push it out of that one.
    return [task for task in folder.load_version(folder.head).forgotten if task not in tasks]


def _out_of_force(folder: RunFolder, tasks: Sequence[str]) -> set[str]:
    """Those of a run's tasks that head does not hold: removed, forgotten, or rolled back."""
    if folder.head is None:
        return set()
    version = folder.load_version(folder.head)
    return {task for task in tasks if not version.holds(task)}


def _check_stored(folder: RunFolder, p: Prepared) -> None:
    """Mask and deltas already in the folder must belong to this base. Raises MismatchError, naming both."""
    # Somebody may have copied files of another run here: found later, they would have been mixed with this one's.
    mask = folder.load_mask(p.base)
    for task in p.targets:
        if (info := folder.delta_info(task)) is not None:
            # Its values are not read: what it belongs to stands in the file's header.
            delta = Delta(task, torch.empty(0), info["base"], info["mask"], info)
            delta.check(p.base, mask.fingerprint if mask else delta.mask)


def _checkpoint(
    folder: RunFolder, model: str, task: Task, layout: Layout, base: Mapping[str, torch.Tensor], progress: Progress
) -> str:
    """Fingerprint of a task's checkpoint; what its delta says, where the checkpoint is gone and the delta is here."""
    assert task.checkpoint is not None  # the caller has asked
    stored = folder.delta_info(task.name)
    what = f"checkpoint {task.checkpoint!r} of task {task.name!r}"
    try:
        tuned = weights_of(task, layout, model, base)
    except TalosError:
        if stored is None or stored.get("imported") != task.checkpoint:
            raise
        known: str = stored["checkpoint"]
        return known
    if other := peft.other_base(_place(task.checkpoint), model):
        progress.say(f"{what} says that it was made for {other!r}; this run's model is {model!r}: are they the same?")
    if words := compared(tuned, {name: base[name] for name in layout.names}, what):
        progress.say(words)
    # Of a model that its library has loaded, nobody can tell what it made up: a pooler that is not there, say.
    if _place(task.checkpoint).exists() and (words := told_left_out(tuned, base, layout.names, what)):
        progress.say(words)
    # Of what may change alone, so that the same weights with another head around them are the same checkpoint.
    return fingerprint({name: tuned[name] for name in layout.names})


def weights_of(task: Task, layout: Layout, model: str, base: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All weights of a task's checkpoint.

    Args:
        model, base: name and tensors of the run's model, into which an adapter is merged.

    Raises:
        SpecError: it cannot be read or merged, or misses a tensor of the base that may change.
        TalosError: it cannot be had from the Hub, is not as it was pushed, or changes another base.
    """
    what = f"checkpoint {task.checkpoint!r} of task {task.name!r}"
    assert task.checkpoint is not None  # only tasks that are not trained come here
    place = _place(task.checkpoint)
    if published.is_published(place):
        published.checked(place, what)
    if is_adapter(place):
        check_one_meant(place, what)
        copy = build_model(model, base, private=list(base))  # merging writes into it
        tuned = peft.merged(place, copy.module, what)
    elif hub.is_hub(task.checkpoint) or (place / DELTA).is_file():
        tuned = exported_weights(place, model, base, what)
    else:
        tuned = checkpoint_tensors(task.checkpoint)
    _check_tensors(tuned, layout, what)
    return tuned


def _check_tensors(tuned: Mapping[str, torch.Tensor], layout: Layout, what: str) -> None:
    """Raises SpecError where a checkpoint misses a tensor that may change, or has it in another shape or type."""
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        found = tuple(tuned[name].shape) if name in tuned else "none"
        # A model that was saved with a head around it has all its names under a prefix: the likeliest mistake.
        if longer := [other for other in tuned if found == "none" and other.endswith(f".{name}")]:
            before = longer[0].removesuffix(name)
            raise SpecError(
                f"{what} has a tensor {longer[0]!r}; wanted {name!r}, as the base calls it; take {before!r} off its "
                "tensors' names, or name it as a model (like hf:FOLDER)"
            )
        if found != tuple(shape):
            raise SpecError(
                f"{what}: tensor {name!r} has shape {found}; wanted {tuple(shape)}, the base's; "
                f"give one that was fine-tuned from this model, in its layout, or name it as a model (like hf:FOLDER)"
            )
        if tuned[name].dtype not in FLOATING:
            raise SpecError(
                f"{what}: tensor {name!r} is of {tuned[name].dtype}; wanted float32, bfloat16 or float16; take the "
                "model that it was made of"
            )


def _place(checkpoint: str) -> Path:
    """Where a checkpoint lies; one of the Hub is first brought here, at its commit."""
    if hub.is_hub(checkpoint):
        return hub.download(hub.pinned(hub.source(checkpoint)))
    return Path(checkpoint).expanduser()


def with_commits(spec: Spec) -> Spec:
    """A spec whose checkpoints of the Hub are named by the commits that their revisions are now, so that whoever reads
    the run's spec, or does it again, has the same weights.

    Raises:
        SpecError: a name that is none. TalosError: the Hub has it not, or cannot be reached.
    """
    tasks = []
    for task in spec.tasks:
        if task.checkpoint is not None and hub.is_hub(task.checkpoint):
            at = hub.pinned(hub.source(task.checkpoint))
            task = task.model_copy(update={"checkpoint": f"{ON_HUB}{at}"})
        tasks.append(task)
    return spec.model_copy(update={"tasks": tuple(tasks)})


def delta_key(p: Prepared, task: Task, mask: str, settings: Train) -> str:
    """Address of one task's delta: mask, data, head, training settings, and how the samples are shared out."""
    head = p.head_mark(task.name)
    # Sums over several workers round otherwise than those of one, so how many there are decides the delta's last bits.
    world = p.spec.cluster.workers_per_task
    if task.name in p.checkpoints:  # no setting of the training matters
        return key_of([p.base, mask, p.checkpoints[task.name], settings.delta_dtype, task.name])
    decisive = {name: value for name, value in settings.keyed().items() if name not in NO_MATTER}
    return key_of(
        [
            p.base,
            mask,
            p.data[task.name].train.fingerprint(),
            head,
            decisive,
            p.spec.seed,
            task.name,
            world,
        ]
    )


def version_key(p: Prepared, deltas: Mapping[str, str], dense: Mapping[str, str]) -> str:
    """Address of a version. `deltas`, `dense`: fingerprints by task, of the sparse arm and of the dense one."""
    # Test data, too: they decide no coefficient, but every score that the version tells.
    splits = {}
    for name, data in p.data.items():
        splits[_head_name(name, data.task)] = [
            data.train.fingerprint(),
            data.validation.fingerprint(),
            data.test.fingerprint(),
            *data.task.measured,
        ]
    return key_of(
        [
            p.base,
            dict(deltas),
            dict(dense),
            p.spec.search.model_dump(),
            p.spec.gate.model_dump(),
            p.spec.baseline.model_dump(),
            p.controls,
            splits,
        ]
    )


@dataclass(frozen=True)
class ArmPlan:
    """One arm's folder, mask and per-task settings."""

    name: str
    folder: RunFolder
    mask: Mask
    keys: dict[str, str]
    settings: dict[str, Train]
    # Of the same trainings on the masks that this one was widened from: their deltas were carried over.
    earlier: Mapping[str, Collection[str]] = field(default_factory=dict)

    def done(self) -> dict[str, str]:
        """Fingerprints of the deltas on storage that these settings would make again, by task; none is read."""
        fingerprints = {}
        for task in self.keys:
            info = self.folder.delta_info(task)
            if info is not None and self._fits(task, info):
                fingerprints[task] = info["fingerprint"]
        return fingerprints

    def finished(self, but: Collection[str] = ()) -> Iterator[Delta]:
        """Those deltas, one by one: together they may be more than this process has room for.

        Args:
            but: tasks whose deltas are not read.
        """
        for task in self.done():
            delta = None if task in but else self.folder.load_delta(task)
            if delta is not None:
                yield delta

    def _fits(self, task: str, info: Mapping[str, Any]) -> bool:
        keys = {self.keys[task], *self.earlier.get(task, ())}
        return info.get("key") in keys and info.get("mask") == self.mask.fingerprint


def arms_of(p: Prepared, mask: Mask) -> list[ArmPlan]:
    """The sparse arm and, where the spec asks for a baseline, the dense one: the same training of all weights."""
    arms = [_arm(p, SPARSE, p.spec.output, mask, {})]
    if p.spec.baseline.enabled:
        everything = mask_from_flags(p.layout, torch.ones(p.layout.total, dtype=torch.bool))
        # Its deltas are large and only compared, so they need no rounding that the sparse ones can do with.
        update: dict[str, Any] = {"delta_dtype": "float32"}
        if p.spec.baseline.lr:
            update["lr"] = p.spec.baseline.lr
        folder = RunFolder(p.spec.output).store.uri.rstrip("/")
        arms.append(_arm(p, DENSE, f"{folder}/baseline", everything, update))
    return arms


def _arm(p: Prepared, name: str, uri: str, mask: Mask, update: Mapping[str, Any]) -> ArmPlan:
    """An arm whose training differs from the spec's by `update`."""
    settings = {}
    keys = {}
    earlier = {}
    for task in p.spec.tasks:
        of_task = p.spec.train_for(task, len(p.data[task.name].train)).model_copy(update=update)
        settings[task.name] = of_task
        keys[task.name] = delta_key(p, task, mask.fingerprint, of_task)
        earlier[task.name] = [delta_key(p, task, narrower, of_task) for narrower in mask.narrower]
    return ArmPlan(name, RunFolder(uri), mask, keys, settings, earlier)


def shortened(train: Train, share: float, lr: float = 1.0) -> Train:
    """The same training in a share of its updates; `lr` is a factor on its learning rate."""
    steps = max(2, round(train.steps * share))
    warm = round(train.warmup_steps * share)
    return train.model_copy(update={"steps": steps, "warmup_steps": warm, "lr": train.lr * lr})
