"""Floating-point operations of an edit, counted when somebody asks: what `talos dossier` tells of compute.

One real update of every task, one calibration batch and one forward are done here, on the CPU, by the functions that
workers use, while torch counts the products that they call (`FlopCounterMode`: a multiplication and an addition are
two operations). The run's record says how often each was done. No Ray is started, and nothing of the run is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from talos_ray.config import Spec, Task, Train
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import DATA_FREE, Mask, mask_from_flags
from talos_ray.errors import MismatchError
from talos_ray.models import base_tensors, layout_of, load_model
from talos_ray.models.family import TextFamily
from talos_ray.orchestrate.calibrate import checked_hooks, shard_scores
from talos_ray.orchestrate.learning import AGAIN, PRESSURES, Pool, pool_of
from talos_ray.orchestrate.scoring import DISTURBED, PAIRS
from talos_ray.orchestrate.selection import Selection, calibration_split
from talos_ray.orchestrate.task_training import begin, tune
from talos_ray.orchestrate.worker import Shared, Workbench, freeze
from talos_ray.storage.run_folder import RunFolder, tasks_of
from talos_ray.storage.version import Candidate, Choice, Version
from talos_ray.tasks import TaskData, encoded, load_task
from talos_ray.trust.dossier import Operations, Trained

STEPS = 4  # updates that are counted where inputs are as long as their batch's longest: every batch is another
FORWARD = 64  # inputs of the forward that is counted


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts what is called within the block."""
    fast = torch.backends.mha.get_fastpath_enabled()
    # torch counts neither the attention kernel of CPUs nor attention in one piece: the long way is the same products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def counted(folder: RunFolder, number: int) -> Operations:
    """What a run did up to a version, in operations.

    Raises:
        TalosError: the model or data that it was made of cannot be loaded here any more. MismatchError: the model is
            another one by now.
    """
    return _Counter(folder).up_to([folder.load_version(n) for n in folder.versions() if n <= number])


class _Counter:
    """Counts pieces of one run's work, each once."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        info = folder.info()
        self.spec = _here(folder, info)
        family = load_model(self.spec.model)
        tensors = base_tensors(family)
        base = fingerprint(tensors)
        if base != info["base"]:
            raise MismatchError(
                f"model {self.spec.model!r} is now {base[:12]}, but run {folder.store.uri!r} was made from "
                f"{info['base'][:12]}; restore the original weights"
            )
        heads = {task: head.numpy() for task, head in folder.load_heads()[0].items()}
        self.bench = Workbench(Shared(self.spec, base, freeze(tensors), layout_of(family), heads))
        self.mask = folder.load_mask(base)
        self.steps: dict[str, float] = {}  # by all that decides it
        self.forwards: dict[str, float] = {}
        self.backward = 0.0  # a training input's operations, as a multiple of a forward's

    def up_to(self, versions: list[Version]) -> Operations:
        """All that these versions took, the oldest first."""
        trained, imported = self._trained(versions)
        merges = {version.number: self._merge(version) for version in versions}
        # The base is no edit, whatever was calibrated for those that came after it.
        calibration = self._calibration(self.mask.info) if self.mask and (trained or imported) else 0.0
        choice = 0.0
        for version in versions[1:2]:  # what was chosen by trying was chosen before the first edit
            if version.choice is not None:
                choice = self._choice(version.choice, calibration, merges[version.number])
        return Operations(
            parameters=sum(weight.numel() for weight in self.bench.family.module.parameters()),
            calibration=calibration,
            trained=trained,
            merge=sum(merges.values()),
            scoring=sum(self._scoring(version) for version in versions),
            choice=choice,
            dense=self._dense() if any(version.baseline for version in versions) else 0.0,
            imported=imported,
        )

    # ------------------------------------------------------------------------------ by stage

    def _trained(self, versions: Iterable[Version]) -> tuple[dict[str, list[Trained]], tuple[str, ...]]:
        """Every training whose delta one of these versions is made of; and what was imported instead."""
        trained: dict[str, list[Trained]] = {}
        imported = set()
        # Of a task that was trained again the older delta is another one, and its training counts too.
        marks = dict.fromkeys(mark for version in versions for mark in version.deltas.items())
        for task, mark in marks:
            about = self.folder.delta_info(task, mark) or {}
            if "imported" in about:
                imported.add(task)
                continue
            settings = self._settings(task, about.get("settings"))
            assert self.mask is not None  # a delta lies on one
            batch = min(settings.batch_size, len(self.bench.examples(task, "train")))
            # Where validation was looked at, the last look was after the last update, which may have come early.
            looks = about.get("validation") or [[settings.steps]]
            one = Trained(steps=int(looks[-1][0]), batch=batch, step=self.step(task, settings, self.mask))
            trained.setdefault(task, []).append(one)
        return trained, tuple(sorted(imported))

    def _settings(self, task: str, stored: Mapping[str, object] | None) -> Train:
        """How a task was trained; as the spec says, where an earlier release did not note it beside the delta."""
        if stored is not None:
            return self.folder.stored(Train, stored, f"deltas/{task}.safetensors")
        return self.spec.train_for(self.bench.shared.task(task), len(self.bench.examples(task, "train")))

    def _calibration(self, about: Mapping[str, object]) -> float:
        """Of the rounds that the mask says it took; nothing, where it came from a file or looked at no data."""
        samples = about.get("samples")
        if self.spec.mask.path is not None or not isinstance(samples, Mapping):
            return 0.0
        with counting() as counter:
            checked = checked_hooks(self.bench, *self._calibrated(next(iter(samples)), 3))
        operations = float(counter.get_total_flops())
        rounds = _waves(about, self.spec)
        for task, n in samples.items():
            size = min(self.spec.calibration.batch_size, n)
            # The layers that are open decide what is damped, which are no products; so any selection will do.
            selection = Selection(strategy="random", granularity="element", keep=1.0, layers=1.0)
            everything = [slice(0, self.bench.shared.layout.total)]
            with counting() as counter:
                given = self._calibrated(task, size)
                for _ in shard_scores(self.bench, *given, checked, selection, None, 0, everything):
                    pass
            shards = torch.arange(n).tensor_split(min(self.spec.calibration.shards_per_task, n))
            looked_at = sum(len(shard) for waves in rounds for shard in shards[:waves])
            operations += counter.get_total_flops() * looked_at / size
        return operations

    def _calibrated(self, task: str, most: int) -> tuple[str, list[object]]:
        split = calibration_split(self.spec, self._data(task))
        return task, encoded(split.select(list(range(min(most, len(split))))))

    def _merge(self, version: Version) -> float:
        """Of the search for a version's coefficients: learning them, and what is looked at and judged on the way."""
        search = version.search
        candidates = search.candidates
        learnt = list(version.targets)
        if version.negation is not None:
            learnt = [version.negation.task]
        elif not candidates:  # a removal, or the base
            return 0.0
        held = [task for task in (*version.targets, *version.controls) if task not in learnt]
        attempts = [_attempts(candidate) for candidate in candidates]
        if version.negation is not None:
            attempts = [len(version.negation.curve)]
        # A version keeps the candidates of the merge method that won; the others are taken to be like them.
        share = (search.evaluated or len(attempts)) / len(attempts)
        updates = 0.0
        if self.spec.search.method == "learned" or version.negation is not None:
            steps = self.spec.search.steps
            updates = sum(steps + max(1, round(AGAIN * steps)) * (tried - 1) for tried in attempts)
        looks = self._looks(learnt, held)
        return share * (updates * self._update(learnt, held) + sum(attempts) * looks) + looks + self._disturbed(version)

    def _update(self, learnt: list[str], held: list[str]) -> float:
        """One update of the coefficients. Tasks that keep theirs are counted as if they were learnt: at most."""
        search = self.spec.search
        inputs = 0.0
        for task in (*learnt, *held):
            size = search.batch_size if task in learnt else max(1, search.control_batch_size // len(held))
            inputs += min(size, len(self._pool(task))) * self.forward(task)
        return inputs * self._backward()

    def _looks(self, learnt: list[str], held: list[str]) -> float:
        """One look at all that is learned from and judged by."""
        return sum(
            (len(self._pool(task)) + len(self._pool(task).judged)) * self.forward(task) for task in (*learnt, *held)
        )

    def _disturbed(self, version: Version) -> float:
        """Of the disentanglement error: every task with its own edit, with all, and with each other one."""
        together = version.search.disentanglement.together
        models = 2 + (len(together) - 1 if len(together) <= PAIRS else 0)
        operations = 0.0
        for task in together:
            operations += models * min(DISTURBED, len(self._data(task).validation)) * self.forward(task)
        return operations

    def _scoring(self, version: Version) -> float:
        """Of test data: the base and the version on all tasks, and each edit alone on its own."""
        if version.kind == "base":  # it was scored with the first version
            return 0.0
        operations = 0.0
        for task in version.scores:
            models = 3 if task in version.targets else 2
            operations += models * len(self._data(task).test) * self.forward(task)
        # Of a forgotten task models were trained again a little, only to see how fast it comes back.
        if (negation := version.negation) is not None:
            assert self.mask is not None
            step = self.step(negation.task, self._settings(negation.task, None), self.mask)
            operations += len(negation.beyond) * negation.retrained_steps * step
        return operations

    def _choice(self, choice: Choice, calibration: float, merge: float) -> float:
        """Of the short runs, at most: as if each had trained every weight, and searched as long as the run itself."""
        masks = set()
        for tried in choice.tried:
            if tried.setting.strategy not in DATA_FREE:
                masks.add(tried.setting.model_copy(update={"lr": 1.0}).model_dump_json())
        training = sum(tried.share for tried in choice.tried) * self._dense()
        return len(masks) * calibration + training + len(choice.tried) * merge

    def _dense(self) -> float:
        """Of training every eligible weight for as many updates."""
        layout = self.bench.shared.layout
        everything = mask_from_flags(layout, torch.ones(layout.total, dtype=torch.bool))
        operations = 0.0
        for task in self.spec.tasks:
            settings = self._settings(task.name, None)
            operations += settings.steps * self.step(task.name, settings, everything)
        return operations

    # ------------------------------------------------------------------------------ pieces

    def step(self, task: str, settings: Train, mask: Mask) -> float:
        """One update of a task's training, by all workers of its team together."""
        bench = self.bench
        padded = isinstance(bench.family, TextFamily)
        several = min(STEPS, settings.steps) if padded else 1
        settings = settings.model_copy(update={"steps": several, "epochs": None, "warmup_steps": 0})
        examples = bench.examples(task, "train")
        # Images of all tasks are of one shape, so of a thousand tasks that are trained alike one is counted.
        own = task if padded else [bench.shared.task(task).head, bench.shared.heads[task].shape, len(examples)]
        key = f"{own} {mask.fingerprint} {settings.model_dump_json()}"
        if key not in self.steps:
            bench.reset()
            _, optimizer, plan = begin(bench, mask, task, settings)
            try:
                with counting() as counter:
                    tune(bench, plan, settings, optimizer, examples.batch)
            finally:
                optimizer.close()
                bench.reset()
            self.steps[key] = counter.get_total_flops() / several
        return self.steps[key]

    def forward(self, task: str) -> float:
        """What one input costs that is answered."""
        if task not in self.forwards:
            examples = self.bench.examples(task, "test")
            rows = torch.arange(min(FORWARD, len(examples)))
            with counting() as counter:
                self.bench.answered(examples, task, rows)
            self.forwards[task] = counter.get_total_flops() / len(rows)
        return self.forwards[task]

    def _backward(self) -> float:
        """What an input costs that is learned from, as a multiple of a forward: a question of the model and its
        mask."""
        if not self.backward:
            task = self.spec.tasks[0].name
            settings = self._settings(task, None)
            batch = min(settings.batch_size, len(self.bench.examples(task, "train")))
            assert self.mask is not None
            self.backward = self.step(task, settings, self.mask) / batch / self.forward(task)
        return self.backward

    def _data(self, task: str) -> TaskData:
        return load_task(self.bench.shared.task(task), self.spec.seed)

    def _pool(self, task: str) -> Pool:
        data = self._data(task)
        return pool_of(self.spec, task, len(data.train), len(data.validation))


def _here(folder: RunFolder, info: dict[str, Any]) -> Spec:
    """A run's spec for this machine's CPU, with every task that the run has had."""
    spec = folder.stored(Spec, {**info["spec"], "output": folder.store.uri})
    named = {task.name for task in (*spec.tasks, *spec.control)}
    aside = [folder.stored(Task, task) for name, task in tasks_of(info).items() if name not in named]
    # On a GPU kernels of our own would multiply unseen; a CPU calls torch for every product.
    cluster = spec.cluster.model_copy(update={"gpus_per_worker": 0, "loaders_per_worker": 0})
    return spec.model_copy(update={"tasks": (*spec.tasks, *aside), "cluster": cluster})


def _waves(about: Mapping[str, Any], spec: Spec) -> list[int]:
    """Of every round of a calibration, how many waves of shards it took."""
    taken = dict.fromkeys(range(1, 1 + about["rounds"]), spec.calibration.shards_per_task)
    # Where rounds may end early, each estimate but the first is noted.
    for estimate in about.get("stability") or ():
        taken[estimate["round"]] = estimate["wave"]
    return list(taken.values())


def _attempts(candidate: Candidate) -> int:
    """How often a candidate was learned: once under a pressure that the spec names, else up the ladder until the
    controls held."""
    if candidate.point.get("pressure") is not None or candidate.pressure not in PRESSURES:
        return 1
    return 1 + PRESSURES.index(candidate.pressure) if candidate.holds else len(PRESSURES)
