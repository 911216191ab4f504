"""What a user calls: `edit()` makes a run, `open_run()` opens one, and a `Run` answers for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import save_file
from torch import nn

from talos_ray import user_files
from talos_ray.config import Spec, Task
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import Mask
from talos_ray.core.metrics import ClassScores, class_scores
from talos_ray.core.paired import Answers
from talos_ray.errors import MismatchError, SpecError, TalosError, nearest
from talos_ray.integrations import hub
from talos_ray.models import Family, base_tensors, load_model, runs_code
from talos_ray.models import allow_code as allow_models
from talos_ray.notebook import Diff, Plots, run_page, show_versions
from talos_ray.spec import make_spec, spec_from
from talos_ray.storage import history
from talos_ray.storage.files import as_json
from talos_ray.storage.run_folder import RunFolder, tasks_of
from talos_ray.storage.version import Version
from talos_ray.tasks import Split, load_inputs, load_rows, load_task
from talos_ray.trust import compare, predict, published, signatures, versions, watch
from talos_ray.trust.card import Form
from talos_ray.trust.export import export, save_adapter, save_heads
from talos_ray.trust.predict import Pipeline, Predictions
from talos_ray.trust.published import Pulled, Pushed
from talos_ray.trust.recompose import Composed, deltas_of, edit_of, exchanged

if TYPE_CHECKING:
    from talos_ray.integrations.torch import MaskedAdamW
    from talos_ray.trust.dossier import Operations


def edit(
    tasks: Sequence[Task | str | dict[str, Any]] | str | Path | None = None,
    *,
    model: str = "demo",
    control: Sequence[Task | str | dict[str, Any]] = (),
    output: str = "runs/run",
    spec: Spec | Mapping[str, Any] | str | Path | None = None,
    verbose: bool = False,
    allow_code: str | Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Calibrate, train, merge and test, on the Ray cluster at hand or on this machine.

    Args:
        tasks: target tasks: `Task`s, names of recipes (`"demo:street_numbers"`), or mappings; or the path of a YAML
            spec.
        model: `"demo"`, `"open_clip:ARCHITECTURE/PRETRAINED"`, `"hf:NAME"` (a text encoder, a T5-like model or a
            causal LM), or `"python:MODULE:FUNCTION"`.
        control: tasks that must hold.
        output: the run's folder, local or a URI; "hub:OWNER/NAME" is runs/NAME here, and what comes in force there.
        spec: a `Spec`, its keys and values, or the path of a YAML spec, instead of all that a spec says.
        verbose: show Ray's own messages too.
        allow_code: modules whose `python:` models may run.
        settings: further sections of the spec, like `train={"lr": 1e-3}` or `mask={"keep": 0.05}`.

    Returns:
        The run, at its new version. Calling again with the same arguments does nothing and returns it.

    Raises:
        SpecError: bad input, before any work. MismatchError: the folder's mask or deltas are another base's.
        TalosError: a stage could not be finished; what was finished is kept.
    """
    from talos_ray.orchestrate.driver import run_edit

    allow_models(allow_code)
    if spec is None and isinstance(tasks, str | Path) and str(tasks).endswith((".yaml", ".yml")):
        spec = tasks
        tasks = None
    # A spec says all of it; what is given beside would have to win or to lose, and nobody could tell which.
    given = {"tasks": (tasks, None), "model": (model, "demo"), "control": (control, ()), "output": (output, "runs/run")}
    beside = [name for name, (value, default) in given.items() if value != default]
    if spec is not None and (beside or settings):
        raise SpecError(
            f"edit was given a spec and beside it {', '.join([*beside, *settings])}; wanted one or the other; write "
            "it into the spec, or change the spec with load_spec(path, output=…)"
        )
    if spec is None:
        spec = make_spec({"tasks": tasks or (), "model": model, "control": control, "output": output, **settings})
    resolved = spec_from(spec)
    if resolved.push is not None:
        hub.open_repository(resolved.push, public=False)  # before the work: most of what can fail fails here
    run_edit(resolved, verbose=verbose)
    run = Run(resolved.output)
    if resolved.push is not None and run.newest.number == run.head:  # what the gate keeps aside goes nowhere
        run.push_once(resolved.push)
    return run


def check(spec: Spec | Mapping[str, Any] | str | Path, *, allow_code: str | Sequence[str] = ()) -> None:
    """All that `edit` checks of a spec, its data, its model and its resources before it starts anything, and nothing
    else.

    Args:
        allow_code: modules whose `python:` models may run.

    Raises:
        SpecError: a line for everything that is wrong.
    """
    from talos_ray.orchestrate.driver import check

    allow_models(allow_code)
    check(spec_from(spec))


def open_run(path: str, *, allow_code: str | Sequence[str] = ()) -> Run:
    """Open the run in a folder.

    Args:
        allow_code: modules whose `python:` models may run.

    Raises:
        TalosError: there is no run. CorruptError: a file of it was changed.
    """
    return Run(path, allow_code)


def pull(name: str, folder: str | Path, *, deep: bool = False) -> Pulled:
    """Take a version that `push` sent to the Hugging Face Hub into a new folder. Every file is held against its hash,
    and version and report against the run's record; the folder is there only if all of it is as it was pushed.

    Args:
        name: OWNER/NAME, or OWNER/NAME@REVISION with a branch, tag or commit; `.commit` of what is returned is the
            commit that it was.
        deep: also make the model and compare its fingerprint; loads the base, where only changes were pushed.

    Raises:
        SpecError: the name, or a folder that holds something. TalosError: no such repository or revision, no token
            that may see it, or the Hub cannot be reached. CorruptError: names a file that is not as it was pushed.
    """
    return published.pull(name, Path(folder).expanduser(), deep=deep)


def verify(path: str, *, deep: bool = False, expect: str | None = None, signed_by: str | None = None) -> list[str]:
    """As `Run.verify`, also of a folder that is too damaged to be opened. Runs nobody's code.

    Args:
        expect: hash of an event, or how it begins (16 digits or more), that was kept elsewhere: it must be part of the
            history.
        signed_by: public Ed25519 key, as a line 'ssh-ed25519 …' or a file, that must have signed all of the history.

    Raises:
        TalosError: there is no run, or no such key.
    """
    folder = RunFolder(path)
    if not folder.store.exists("run.json") and not folder.store.exists("history"):
        folder.info()  # raises: there is no run
    # What a process left half done that was killed is finished or taken back first; it is no damage.
    folder.settle()
    folder.store.sweep()
    problems = history.verify(folder.store)
    if expect is not None:
        problems += history.missing(folder.store, expect)
    if not problems:
        problems += folder.misfits()
    key = None if signed_by is None else signatures.public_key(signed_by)
    # Of files that are not as they were recorded, what they say tells nothing more.
    if not problems:
        problems += signatures.problems(history.chain(folder.store)[0], key)
    if problems or not deep:
        return problems
    run = Run(path)
    if runs_code(model := run.info["spec"]["model"]):
        return [
            f"no version was composed: model {model!r} is code, and verify runs none; `talos export {path} FOLDER "
            "--allow-code MODULE` "
            f"composes one and compares its fingerprint"
        ]
    for version in run.versions:
        try:
            run._composed(version)
        except TalosError as error:
            problems.append(str(error))
    return problems


class Run:
    """One run: its spec, mask, deltas, versions and history. Everything shown is read from storage."""

    def __init__(self, path: str, allow_code: str | Sequence[str] = ()) -> None:
        allow_models(allow_code)
        self.folder = RunFolder(path)
        self.folder.settle()
        self.info = self.folder.info()
        show_versions()
        # What each network holds that was composed here, for as long as somebody uses it.
        self._holds: WeakKeyDictionary[torch.nn.Module, Composed] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Run({self.folder.store.uri!r}, head={self.head})"

    def _repr_html_(self) -> str:
        return run_page(self.path, self.head, self.versions)

    @property
    def plot(self) -> Plots:
        """Plots as matplotlib's figures: `run.plot.scores()`, `.coefficients()`, `.disentanglement()`."""
        return Plots(self._version)

    def tensorboard(self, to: str | Path) -> None:
        """Write the record into a new folder for `tensorboard --logdir`: every task's training loss, the merge's, and
        test scores by version. Needs tensorboard.

        Raises:
            SpecError: the folder is not empty. TalosError: tensorboard is not installed.
        """
        from talos_ray.integrations.tensorboard import write

        user_files.check_new_folder(to)
        write(self.folder, Path(to).expanduser())

    @property
    def path(self) -> str:
        return self.folder.store.uri

    @property
    def spec(self) -> Spec:
        """What was asked for, resolved: presets, recipes and paths filled in.

        Raises:
            CorruptError: run.json holds what no spec may say.
        """
        return self.folder.stored(Spec, {**self.info["spec"], "output": self.path})

    @property
    def head(self) -> int:
        """Number of the version that is in force.

        Raises:
            TalosError: the run has no version yet.
        """
        head = self.folder.head
        if head is None:
            raise TalosError(f"run {self.path!r} has no version yet; run the same command again to finish it")
        return head

    @property
    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        return [self.folder.load_version(n) for n in self.folder.versions()]

    @property
    def version(self) -> Version:
        """The version at head; `version.as_dict()` is what its file holds."""
        return self.folder.load_version(self.head)

    @property
    def newest(self) -> Version:
        """The newest version, also if its gate keeps it aside."""
        return self.folder.load_version(self.folder.versions()[-1])

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Test scores at head: task -> {"base" | "single" | "merged": {value, n, low, high}}."""
        return {task: scores.as_dict() for task, scores in self.version.scores.items()}

    def class_scores(self, task: str, version: int | None = None) -> ClassScores:
        """What stands behind a task's test score at a version (head, if none is named): confusion matrix, precision and
        recall of every class in label order, balanced accuracy, macro F1 and the expected calibration error, from the
        answers that were recorded.

        Raises:
            TalosError: no such version, or it answered no such task.
        """
        number = self._version(version).number
        assert number is not None  # it is on storage
        answers = self.folder.load_answers(number)
        if task not in answers.predicted:
            raise TalosError(
                f"version {number} has no answers on task {task!r}{nearest(task, answers.predicted)}; "
                f"it has those on: {', '.join(answers.predicted)}"
            )
        return class_scores(
            predicted=answers.predicted[task],
            labels=answers.labels[task],
            classes=len(self.classes[task]),
            probability=answers.probability.get(task),
        )

    @property
    def classes(self) -> dict[str, list[str]]:
        """Task -> names of its classes, in label order."""
        return self.folder.load_heads()[1]

    @property
    def coefficients(self) -> dict[str, float]:
        """Scaling coefficient of every task at head, the mean over the weights where it has several; empty at the
        base."""
        return self.version.coefficients

    def heads(self, version: int | None = None) -> dict[str, torch.Tensor]:
        """Task -> the linear head of its own at a version (head, if none is named), float32 [classes, d + 1]:
        `features @ head[:, :-1].T + head[:, -1]` are the logits. Tasks that are scored by their words have none.

        Raises:
            TalosError: no such version.
        """
        return self.folder.load_learned(self._version(version))[1]

    @cached_property
    def mask(self) -> Mask:
        """The weights that may change."""
        if self.folder.store.exists("mask.safetensors"):
            self.folder.check("mask.safetensors")
        mask = self.folder.load_mask(self.info["base"])
        if mask is None:
            raise TalosError(f"run {self.path!r} has no mask yet; run the same command again to finish it")
        return mask

    @property
    def deltas(self) -> dict[str, Delta]:
        """The deltas (task vectors) that head is made of; at the base, those on storage."""
        return self._deltas(self.version.deltas or {t["name"]: None for t in self.info["spec"]["tasks"]})

    def _deltas(self, wanted: Mapping[str, str | None]) -> dict[str, Delta]:
        """By task and fingerprint."""
        return deltas_of(self.folder, self.mask, self.info["base"], wanted)

    def model(self, version: int | None = None) -> Family:
        """The model at a version (head, if none is named): `.module` is the edited network, checked bitwise against the
        version's fingerprint.

        Raises:
            MismatchError: the model named in the spec is not the base that this run was made from. TalosError: no such
                version.
        """
        return self._composed(self._version(version))[0]

    def pipeline(self, task: str, version: int | None = None) -> Pipeline:
        """A task at a version (head, if none is named) as a function that holds the model once: `pipe(["a text", …])`
        gives `[{"label": …, "score": …}, …]`. `predict` says what it takes.

        Raises:
            TalosError: no such task or version. MismatchError: as in `model`.
        """
        settings, classes = self._asked(task)
        return self._pipeline(self._version(version), settings, classes)

    def predict(
        self,
        inputs: str | Path | Sequence[Any],
        task: str,
        version: int | None = None,
        *,
        top_k: int = 1,
        input: str | None = None,
        label: str | None = None,
    ) -> Predictions:
        """What a version (head, if none is named) answers for a task, a row an input, under the head that its scores
        were measured with. Any target or control task of the run may be asked.

        Args:
            inputs: a file or folder of data, with labels or without; or a list: of texts (of mappings from columns to
                values, where the task's inputs are made of several), of paths of image files and folders, or of images
                (PIL, or arrays).
            top_k: how many classes of each input.
            input: column that holds the inputs, if not the task's own.
            label: column that holds labels; then the accuracy is told, too. In a folder of images a class: "label".

        Raises:
            SpecError: an input, by its place or file; a label that is no class. TalosError: no such task or version.
        """
        settings, classes = self._asked(task, input, label)
        predict.check_top(top_k, classes)
        found = self._version(version)
        split = load_inputs(settings, inputs, classes, labelled=label is not None)
        return self._pipeline(found, settings, classes).answer(split, top_k, labelled=label is not None)

    def _pipeline(self, version: Version, settings: Mapping[str, Any], classes: Sequence[str]) -> Pipeline:
        task = settings["name"]
        assert version.number is not None  # it is on storage
        return Pipeline(
            model=self._composed(version)[0],
            version=version.number,
            settings=settings,
            classes=classes,
            head=self.folder.heads_of(version)[task],
            notes=predict.notes_on(self.folder, version, task),
        )

    def _asked(
        self, task: str | None, input: str | None = None, label: str | None = None
    ) -> tuple[dict[str, Any], list[str]]:
        """Settings of a task that is asked about new data, whose columns may be called otherwise; and its classes.

        Raises:
            TalosError: no such task.
        """
        tasks = self._tasks
        classes = self.classes
        if task not in tasks or task not in classes:
            raise TalosError(
                f"new data belong to a task of the run, and {task!r} is none{nearest(task or '', classes)}; "
                f"it has: {', '.join(classes)}"
            )
        settings = dict(tasks[task])
        if input is not None:
            settings["input"] = input
        if label is not None:
            settings["label"] = label
        return settings, classes[task]

    @contextmanager
    def only(self, *tasks: str, on: Family | Pipeline) -> Iterator[Family | Pipeline]:
        """Within the block, a model of this run is the base and the edits of these tasks alone, each whole and as it
        was trained (coefficient 1); without any task, it is the base. After it, also after an error, the model has its
        own bytes again.

            pipe = run.pipeline("counts")
            with run.only("counts", on=pipe):
                alone = pipe(images)

        Heads stay what they are: a pipeline's is the version's.

        Args:
            on: what `model` or `pipeline` of this run gave. It is changed in place.

        Raises:
            TalosError: a task without an edit, or a model that is not this run's.
        """
        if (holds := self._holds.pop(on.module, None)) is None:
            raise TalosError(
                f"only: this model was not made by run {self.path!r}, or is within another `only`; "
                "wanted what run.model() or run.pipeline() gave; name all tasks in one `only`"
            )
        try:
            version = holds.version
            known = {*version.deltas, *(t["name"] for t in self.info["spec"]["tasks"])}
            if unknown := [t for t in tasks if t not in known]:
                raise TalosError(
                    f"only: task {unknown[0]!r} has no edit in run {self.path!r}{nearest(unknown[0], known)}; "
                    f"it has those of: {', '.join(sorted(known))}"
                )
            deltas = self._deltas({t: version.deltas.get(t) for t in tasks})
            with exchanged(on.module, holds, self.mask, list(deltas.values()), self.info["base"]):
                yield on
        finally:
            self._holds[on.module] = holds

    @property
    def _tasks(self) -> dict[str, dict[str, Any]]:
        """Settings of every target and control task that the run has had."""
        return tasks_of(self.info)

    def _in_force(self) -> list[dict[str, Any]]:
        """Settings of the target tasks that head is made of and has not forgotten; all, where there is no version yet.
        Deltas that only help to forget another task make no task of theirs."""
        if self.folder.head is None:
            return list(self.info["spec"]["tasks"])
        version = self.version
        return [task for name, task in self._tasks.items() if version.holds(name)]

    def _version(self, number: int | None) -> Version:
        return self.folder.load_version(self.head if number is None else number)

    def _base(self) -> Family:
        """The model before any edit, as the run reads texts with it."""
        spec = self.info["spec"]
        return load_model(spec["model"], spec.get("tokens"))

    def _composed(self, version: Version) -> tuple[Family, dict[str, torch.Tensor]]:
        """The model at a version, and the base's tensors."""
        versions.check_sources(self.folder, version)
        family = self._base()
        tensors = {n: t.clone() for n, t in base_tensors(family).items()}
        base = fingerprint(tensors)
        if base != self.info["base"]:
            raise MismatchError(
                f"model {self.info['spec']['model']!r} is now {base[:12]}, but run {self.path!r} was made from "
                f"{self.info['base'][:12]}; restore the original weights"
            )
        holds = Composed(version=version)
        if version.deltas:
            edit = edit_of(self.folder, version, self.mask, self._deltas(version.deltas))
            holds = Composed(version=version, mask=edit.mask, base=edit.put(family, base))
        self._holds[family.module] = holds
        found = fingerprint(base_tensors(family))
        if found != version.model:
            raise MismatchError(
                f"version {version.number} composes to {found[:12]}, but was recorded as {version.model[:12]}; mask or "
                "deltas were changed"
            )
        return family, tensors

    def rollback(self, version: int | None = None, reason: str | None = None) -> Run:
        """Move head to an earlier version (the one before, if none is named). Exact: the model is recomposed from the
        base's bytes, never subtracted from. Recorded in the history; rolling back can be rolled back.

        Raises:
            TalosError: no such version.
        """
        versions.rollback(self.folder, version, reason)
        return self

    def approve(self, version: int, *, by: str, reason: str, sign: str | None = None) -> Run:
        """Put a version in force that its gate kept aside. Recorded with who and why.

        Args:
            sign: file of a private Ed25519 key that signs it: who approved is proven then, not only said.

        Raises:
            TalosError: no such version, or it needs no approval, or no such key.
        """
        key = None if sign is None else signatures.private_key(sign)
        versions.approve(self.folder, version, by, reason)
        if key is not None:
            signatures.sign(self.folder.store, key)
        return self

    def sign(self, key: str) -> Run:
        """Sign the history as it stands, and with it every file that it names.

        Args:
            key: file of a private Ed25519 key, as `ssh-keygen -t ed25519` writes it.

        Raises:
            TalosError: no such key, or the history is not whole.
        """
        signatures.sign(self.folder.store, signatures.private_key(key))
        return self

    def held(self, version: int | None = None) -> bool:
        """Whether a version's gate keeps it aside (the newest, if none is named)."""
        return versions.is_held(self.folder, self.newest if version is None else self._version(version))

    def verify(self, deep: bool = False) -> list[str]:
        """What is not as the history says: every file of the run that was changed, removed or added, and every broken
        link of the history. Empty if all is well.

        Args:
            deep: also compose every version and compare its fingerprint. Not with a `python:` model, which is code;
                that is said.
        """
        return verify(self.path, deep=deep)

    def diff(self, a: int, b: int) -> Diff:
        """How version b differs from version a: coefficients, summaries, and for every task that both answered on the
        same test data how many inputs became right and wrong, with McNemar's exact p-value.

        Raises:
            TalosError: no such version.
        """
        first = self.folder.load_version(a)
        second = self.folder.load_version(b)
        return Diff(compare.diff(first, second, *self._answers(a, b)))

    def _answers(self, a: int, b: int) -> tuple[Answers, Answers]:
        return self.folder.load_answers(a), self.folder.load_answers(b)

    def compare(
        self,
        a: int,
        b: int,
        task: str | None = None,
        data: str | None = None,
        *,
        input: str | None = None,
        label: str | None = None,
    ) -> tuple[Diff, str]:
        """Two versions on the same inputs: `diff`, and a CSV of every input that they answer differently.

        Args:
            task, data: a task of the run and new data for it (all rows of a file or folder like its own); the run's
                test data, if not given.
            input, label: columns of the new data, if they are called otherwise than the task's own.

        Raises:
            SpecError: the data. TalosError: no such version or task.
        """
        if data is None and (input or label):
            raise SpecError("input and label name columns of new data, and there are none; wanted a file in data")
        tasks = self._tasks
        classes = self.classes
        notes: Sequence[str] = ()
        splits: dict[str, Split | None]
        first = self.folder.load_version(a)
        second = self.folder.load_version(b)
        if data is None:
            before, after = self._answers(a, b)
            splits = {t: self._test_inputs(tasks[t]) if t in tasks else None for t in before.data}
        else:
            settings, names = self._asked(task, input, label)
            rows = load_rows(settings, data, names)
            name = settings["name"]
            splits = {name: rows}
            notes = rows.notes
            metrics = second.metrics
            before = compare.ask(self._composed(first)[0], name, rows, self.folder.heads_of(first)[name], metrics)
            after = compare.ask(self._composed(second)[0], name, rows, self.folder.heads_of(second)[name], metrics)
        difference = compare.diff(first, second, before, after)
        if notes:
            difference["notes"] = list(notes)
        return Diff(difference), compare.changed_inputs(before, after, classes, splits)

    def _test_inputs(self, task: Mapping[str, Any]) -> Split | None:
        try:
            return load_task(self.folder.stored(Task, task), self.info["spec"]["seed"]).test
        except SpecError:  # the data have moved; the answers are here all the same
            return None

    def report(
        self, to: str | Path, version: int | None = None, *, language: str = "en", overwrite: bool = False
    ) -> Path:
        """Write the report on a version (head, if none is named) as one page, in English ("en") or Japanese ("ja"),
        with what
        `watch` has found since. The run's own `report/` holds the page as it was when the version was made.

        Raises:
            SpecError: another language, or a file that is there already, without `overwrite`. TalosError: no such
                version.
        """
        user_files.check_free(to, overwrite=overwrite)
        page = versions.report(self.folder, self.head if version is None else version, language)
        user_files.write(to, page, overwrite=overwrite)
        return Path(to)

    def dossier(
        self,
        version: int,
        to: str | Path,
        *,
        language: str = "en",
        base_compute: float | None = None,
        licences: Mapping[str, str] | None = None,
        base_licence: str | None = None,
    ) -> dict[str, Any]:
        """Write the dossier on a version into a new folder, for whoever has to document that a model was modified:
        what was changed, by whom, on which data, with how many floating-point operations, with what result, and what
        was not tested. `dossier.html` is to read and to print, `dossier.json` has the same facts, which are returned.
        Operations are counted now, on this machine's CPU; where model or data are not here any more, it says so.

        Args:
            language: of the page: "en" or "ja".
            base_compute: floating-point operations of the base's training, where somebody states them.
            licences: task -> licence of its data; otherwise what a card beside the data says.
            base_licence: licence of the base; otherwise what the card beside its files says.

        Raises:
            SpecError: another language, the licence of no task, or a folder that holds something. TalosError: no such
                version.
        """
        from talos_ray.report.dossier import dossier_page  # with plots, which load slowly
        from talos_ray.report.words import words_of
        from talos_ray.trust import dossier

        words_of(language)
        found = self._version(version)
        stated = dossier.Stated(base_compute=base_compute, licences=licences or {}, base_licence=base_licence)
        dossier.check_stated(self.folder, stated)
        user_files.check_new_folder(to)
        facts = dossier.facts_on(self.folder, found, stated, self._counted(version))
        page = dossier_page(facts, found, self.folder.approval(version), language)
        folder = Path(to).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        user_files.write(folder / "dossier.html", page)
        user_files.write(folder / "dossier.json", as_json(facts))
        return facts

    def _counted(self, version: int) -> Operations | str:
        """Operations up to a version, or why they cannot be counted here."""
        from talos_ray.orchestrate.counted import counted

        # Model and data may be out of reach, or more than this machine has room for. All else is known all the same,
        # and the dossier says what is missing.
        try:
            return counted(self.folder, version)
        except (TalosError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
            return str(error) or type(error).__name__

    def export(
        self,
        to: str | Path,
        version: int | None = None,
        *,
        delta_only: bool = False,
        peft: bool = False,
        mergekit: bool = False,
        task: str | None = None,
    ) -> list[str]:
        """Write a version (head, if none is named) into a new folder, with a model card: the whole model as its own
        library loads it (open_clip: `local-dir:FOLDER`; transformers: `from_pretrained(FOLDER)`), or the changed
        weights alone; and the frozen heads of all tasks. Returns the names of the files.

        Args:
            delta_only: the changed weights alone.
            peft: the same as an adapter for peft (SHiRA), where only weights of linear layers changed. Needs peft.
            mergekit: what mergekit makes the version of: the base, a model a task (its edit alone, whole), and
                `mergekit.yaml`; for models of transformers and one coefficient a task.
            task: with `peft`, the edit of this task alone, whole, instead of the version that it is in; no heads.

        Raises:
            SpecError: the folder is not empty, or the edit cannot be an adapter; names the tensors for which it cannot.
            MismatchError: as in `model`. TalosError: the version has no edit of the task.
        """
        user_files.check_new_folder(to)
        to = Path(to).expanduser()
        found = self._version(version)
        if task is not None:
            if not peft:
                raise SpecError(
                    f"export of task {task!r} alone is as an adapter; wanted peft=True (--peft); add it, or leave "
                    "task out"
                )
            return self._export_task(task, found, to)
        if peft + delta_only + mergekit > 1:
            raise SpecError(
                "export was asked for several forms at once; wanted one of delta_only, peft and mergekit (--delta, "
                "--peft, --mergekit); leave out the others"
            )
        if mergekit:
            return self._export_models(found, to)
        form: Form = "peft" if peft else "delta" if delta_only else "whole"
        edited, base = self._composed(found)
        return export(self.folder, found, edited, base, to, form)

    def push(self, repo: str, version: int | None = None, *, whole: bool = False, public: bool = False) -> Pushed:
        """Send a version (head, if none is named) to a repository of the Hugging Face Hub, in one commit: the weights
        that changed, or the whole model, with heads, card, report and the run's record. The history says that it went
        there. The token is the Hub's own (`hf auth login`, or HF_TOKEN), the server HF_ENDPOINT.

        Args:
            repo: OWNER/NAME. Made if need be; what it held before stays in its earlier commits.
            version: has to be named where the newest is kept aside by its gate.
            whole: the whole model, instead of the changed weights.
            public: whether everybody may read it; the record names people, machines and paths.

        Raises:
            SpecError: `repo` is no name. TalosError: no such version, no token, one that may not write there, or the
                Hub cannot be reached. MismatchError: as in `model`.
        """
        place = hub.source(repo)
        if place.revision is not None:
            raise SpecError(
                f"push to {repo!r} names a revision; wanted OWNER/NAME: a push makes a new one; leave it out"
            )
        chosen = published.chosen(self.folder, self.head, version)
        private = hub.open_repository(place.repo, public=public)  # before the work: most of what can fail fails here
        edited, base = self._composed(chosen)
        return published.push(self.folder, chosen, edited, base, place.repo, whole=whole, private=private)

    def push_once(self, repo: str) -> None:
        """Send head to a repository of the Hub, unless this run's history says that it is there already.

        Raises:
            As `push`.
        """
        for event in self.history():
            if event["operation"] == "push" and (event["repo"], event["version"]) == (repo, self.head):
                return
        self.push(repo)

    def _export_task(self, task: str, version: Version, to: Path) -> list[str]:
        """The edit of one task of a version, by itself and whole, as an adapter."""
        if task not in version.deltas:
            held = version.deltas
            raise TalosError(
                f"version {version.number} of {self.path!r} holds no edit of task {task!r}{nearest(task, held)}; "
                f"it holds: {', '.join(held) or 'none'}"
            )
        deltas = self._deltas({task: version.deltas[task]})
        family, base = self._composed(self.folder.load_version(0))
        Composer(family.module, self.mask, list(deltas.values()), self.info["base"]).compose({task: 1.0})
        save_adapter(self.folder, base, base_tensors(family), to)
        return sorted(p.name for p in to.iterdir())

    def _export_models(self, version: Version, to: Path) -> list[str]:
        """The base and the single edits of a version as models, and how mergekit makes the version of them."""
        from talos_ray.integrations.mergekit import config_of, weights_of

        model = self.info["spec"]["model"]
        blend, _ = self.folder.load_learned(version)
        weights = weights_of(version, blend, model)  # first, because it may be refused
        family, tensors = self._composed(self.folder.load_version(0))
        family.save(to / "base")
        deltas = self._deltas(version.deltas)
        composer = Composer(family.module, self.mask, list(deltas.values()), self.info["base"])
        for task in weights:
            composer.compose({task: 1.0})
            family.save(to / "tasks" / task)
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        name = Path(self.path).name
        heading = f"Version {version.number} of run {name}. In this folder: mergekit-yaml mergekit.yaml merged"
        (to / "mergekit.yaml").write_text(config_of(weights, dtype, heading))
        save_heads(self.folder, version, to)
        return sorted(str(p.relative_to(to)) for p in to.rglob("*") if p.is_file())

    def optimizer(self, module: nn.Module, *, lr: float, **settings: Any) -> MaskedAdamW:
        """AdamW that keeps a training of your own to the run's mask: a `torch.optim.Optimizer` for transformers'
        Trainer, Lightning, accelerate or a plain loop. `add_trained` then brings the result in.

        Args:
            module: the network that the run was made from, at the base and on the device that it trains on: your own,
                or `run.model(0).module`. Its other weights ask for no gradient from here on.
            lr, settings: `weight_decay`, `betas`, `eps`, `clip_norm` as in `integrations.torch.MaskedAdamW`.

        Raises:
            MismatchError: the module is not the run's base.
        """
        from talos_ray.integrations.torch import MaskedAdamW, check_fits

        check_fits(module, self.mask)
        # A delta is the difference to the base: from another start it would be that of both.
        weights = fingerprint({name: tensor.detach() for name, tensor in module.state_dict().items()})
        if weights != self.info["base"]:
            raise MismatchError(
                f"the weights of module {type(module).__name__} are {weights[:12]}, but run {self.path!r} was made "
                f"from {self.info['base'][:12]}; give the untouched base in the same dtype, like run.model(0).module"
            )
        return MaskedAdamW(module, self.mask, lr, **settings)

    def add_trained(
        self,
        task: Task | str | dict[str, Any],
        trained: nn.Module | Mapping[str, torch.Tensor],
        *,
        verbose: bool = False,
    ) -> Run:
        """Add a task that you trained yourself: as `import_`, with a module or its state dict instead of a file.

        Raises:
            SpecError: the task or the weights, before any work.
        """
        tensors = trained.state_dict() if isinstance(trained, nn.Module) else trained
        if not isinstance(tensors, Mapping) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
            raise SpecError(
                f"trained weights are {type(trained).__name__}; wanted a module, or tensors by name as its "
                "state_dict() gives them; a file or folder comes in with import_"
            )
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trained.safetensors"
            # Copies: tensors that share memory, as tied weights do, cannot be saved as they are.
            copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            save_file(copies, path)
            return self.import_(task, str(path), verbose=verbose)

    def add(self, task: Task | str | dict[str, Any], *, relearn: str | None = None, verbose: bool = False) -> Run:
        """Train one more task on the run's mask, and learn how much of it goes into the merged model. The others keep
        their deltas, coefficients and heads. A task that was removed or forgotten, or that a rollback took back, is
        merged in again when it is
        named: its name alone will do.

        Args:
            relearn: `all` finds the coefficients and heads of all tasks anew; as the spec's `search.relearn`, if not
                given.

        Raises:
            SpecError: the task, before any work; or head holds it already.
        """
        edit(spec=self._with(task, relearn), verbose=verbose)
        self.info = self.folder.info()
        return self

    def _with(self, task: Task | str | dict[str, Any], relearn: str | None = None) -> Spec:
        """The run's spec with one more task, the last. Raises SpecError as `add`."""
        spec = self.info["spec"]
        known = self._tasks
        in_force = self._in_force()
        given = known[task] if isinstance(task, str) and task in known else task
        added = make_spec({**spec, "tasks": [given]}).tasks[0]
        if added.name in (t["name"] for t in in_force):
            raise SpecError(
                f"task {added.name!r} is in head of run {self.path!r} already; wanted another; `talos merge` merges "
                "tasks of the run again, `talos remove` takes one out"
            )
        search = {**spec["search"], "relearn": relearn or spec["search"].get("relearn", "new")}
        return make_spec({**spec, "output": self.path, "tasks": [*in_force, added], "search": search})

    def import_(
        self,
        task: Task | str | dict[str, Any],
        checkpoint: str,
        *,
        widen: str | Path | None = None,
        verbose: bool = False,
    ) -> Run:
        """Add a task whose weights were fine-tuned elsewhere: what the checkpoint changed on the run's mask becomes
        its delta, and how much of that goes into the merged model is learned, as by `add`. How much of the change lies
        off the mask, and is lost, is told and kept.

        Args:
            checkpoint: as `Task.checkpoint`: a file or folder of weights, an adapter's folder, a model, or
                `hub:OWNER/NAME@REVISION`; the history keeps the commit that the revision is now.
            widen: a new folder. This run stays as it is, and another is made there, and returned, whose mask also
                holds every weight that the checkpoint changed: the deltas of this run, to the bit, and the task's.

        Raises:
            SpecError: the task, the checkpoint or the folder, before any work; or no weight off the mask is changed.
        """
        given = make_spec({**self.info["spec"], "tasks": [task]}).tasks[0]
        imported = given.model_copy(update={"checkpoint": checkpoint})
        if widen is None:
            return self.add(imported, verbose=verbose)
        from talos_ray.orchestrate.widen import widen as widen_into

        folder = Path(widen).expanduser()
        widen_into(self._with(imported), folder, verbose=verbose)
        return Run(str(folder))

    def merge(self, tasks: Sequence[str], *, reason: str | None = None, verbose: bool = False) -> Run:
        """A version of some of the tasks, with coefficients of its own; trains nothing.

        Raises:
            TalosError: no such task.
        """
        from talos_ray.orchestrate import operations

        operations.merge(self.path, tasks, reason=reason, verbose=verbose)
        return self

    def remove(self, task: str, *, reason: str | None = None, verbose: bool = False) -> Run:
        """A version without one task, exactly as if its delta had never been there; the others keep their coefficients.

        Raises:
            TalosError: head holds no edit of this task.
        """
        from talos_ray.orchestrate import operations

        operations.remove(self.path, task, reason=reason, verbose=verbose)
        return self

    def forget(
        self,
        task: str,
        keep: float = 0.95,
        *,
        at_most: float | None = None,
        reason: str | None = None,
        method: Literal["learned", "grid"] = "learned",
        verbose: bool = False,
    ) -> Run:
        """A version that has forgotten one task, while all control tasks and all that head has learnt keep `keep` of
        their scores: the coefficients of its delta are learned so that its answers come to be as good as chance.

        Args:
            at_most: validation accuracy that counts as forgotten; by default 0.05 above chance.
            method: "grid" for one coefficient of the task's delta, as the paper has it, in a run of
                `search.method: grid`.

        Raises:
            TalosError: not reachable; shows the best that is, and all that was tried. Nothing is changed.
        """
        from talos_ray.orchestrate import forgetting

        forgetting.forget(self.path, task, keep=keep, at_most=at_most, reason=reason, method=method, verbose=verbose)
        return self

    def robustness(self, *, verbose: bool = False) -> dict[str, Any]:
        """Test accuracy of base and head on spoilt inputs (images: noise, blur, contrast, occlusion; texts: typos,
        case, deletion): task -> corruption -> {"base" | "merged": score}. Kept beside the version and shown in its
        report.

        Raises:
            TalosError: a stage could not be finished.
        """
        from talos_ray.orchestrate import operations

        return operations.robustness(self.path, verbose=verbose)

    def watch(self, folder: str | Path, *, input: str | None = None, label: str | None = None) -> list[dict[str, Any]]:
        """Score base and head on what has arrived in a folder (files named after a task, like
        `street_numbers-march.csv`) and has not been scored yet. Each gets an event with its scores and what the gate
        says: `["gate"]` is "fail" where it does not hold any more.

        Args:
            input, label: columns of the new data, if they are called otherwise than the tasks' own.

        Raises:
            SpecError: no such folder, a name that belongs to no task, or the data.
        """
        tasks = self._tasks
        version = self.version
        arrived = list(watch.arrived(self.folder, tasks, Path(folder)))
        if not arrived:  # most nights; no model is loaded for that
            return []
        models = {"base": self._base(), "now": self._composed(version)[0]}
        heads = {"base": self.folder.heads_of(None), "now": self.folder.heads_of(version)}
        events = []
        for task, path, mark in arrived:
            settings, classes = self._asked(task, input, label)
            own = {model: by_task[task] for model, by_task in heads.items()}
            events.append(watch.score(self.folder, version, settings, classes, path, mark, models, own))
        return events

    def history(self) -> list[dict[str, Any]]:
        """Every event, oldest first; raises CorruptError if one was changed, removed or reordered."""
        return list(history.events(self.folder.store))
