"""A version, as `versions/NNNN.json` holds it: what a model is made of, what it scores, and what its gate says of that.

All that knows how the file looked in earlier releases is here: what they did not write has a default. What a later one
may write beside these fields is kept, and written as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from talos_ray.core.merging import coefficients_of
from talos_ray.core.segments import Granularity
from talos_ray.errors import CorruptError
from talos_ray.storage.schema import Flag, Many, Number, Part, Stored, Text, fits

if TYPE_CHECKING:
    from talos_ray.config import Merge

PASS = "pass"
FAIL = "fail"
OPEN = "not enough data to tell"
MOST_TOLD = 6  # conditions in a sentence on why a version is kept aside


class Score(Stored):
    """Accuracy on `n` test inputs, with its 95 % interval (Wilson)."""

    value: Part
    n: Many
    low: Part
    high: Part


class TaskScores(Stored):
    """What models score on one task. `merged`: the version, by the task's own head where it has one; `probe`: the base
    under a head of its own; `single`: the task's edit alone; `*_words`: the same by the frozen head."""

    __pydantic_extra__: dict[str, Score]  # of what else a later release may measure

    base: Score
    merged: Score
    probe: Score | None = None
    merged_words: Score | None = None
    single: Score | None = None
    single_words: Score | None = None

    def measured(self) -> dict[str, Score]:
        """Those that there are, by their names."""
        return {kind: score for kind, score in self if score is not None}


class Summary(Stored):
    """Means over the targets, where there are any, of the kinds of `TaskScores` (`zero_shot`: of the base).
    `normalized`: of merged / single; `control_kept`: control task -> merged / base; `intervals`: 95 % intervals by
    bootstrap, [low, high], of zero_shot, merged and gain."""

    zero_shot: Number | None = None
    merged: Number | None = None
    probe: Number | None = None
    merged_words: Number | None = None
    single: Number | None = None
    single_words: Number | None = None
    normalized: Number | None = None
    control_kept: dict[str, Number] = {}
    intervals: dict[str, list[Number]] = {}

    def mean(self, kind: str) -> float | None:
        """Of one kind of `TaskScores`; None where it was not measured."""
        return self.zero_shot if kind == "base" else getattr(self, kind)


class Change(Stored):
    """How right answers changed on `n` inputs: accuracy `before` and `after`, how many were `won` and `lost`, and the
    two-sided `p` of McNemar's test."""

    n: Many
    before: Part
    after: Part
    won: Many
    lost: Many
    p: Part


class Candidate(Stored):
    """What the search tried (`point`), under which pressure to hold; its validation objective, each task's mean
    coefficient, whether every control task holds, and the least that one keeps."""

    objective: Number
    coefficients: dict[str, Number]
    point: dict[str, Any] = {}
    pressure: Number | None = None
    holds: Flag | None = None
    kept: Number | None = None
    whole: Flag = True  # earlier releases kept some that were stopped early


class Disentanglement(Stored):
    """Share of a task's validation inputs that are answered otherwise than by its edit alone, where all other edits
    join (`together`), and where one does (`pairs`: a row a task of `tasks`, a column the other)."""

    tasks: list[Text] = []
    pairs: list[list[Number]] | None = None
    together: dict[str, Number] = {}


class Search(Stored):
    """How the coefficients were found: what was chosen (`point`, what it was taught by, under which pressure, [step,
    loss], task -> tensor -> mean coefficient, seconds), its validation accuracies (by the words' heads, of single
    edits, of the controls before), whether the controls hold, and by a margin; all candidates and how many were
    evaluated, and the best objective of every merge method and granularity."""

    point: dict[str, Any] = {}
    teacher: Text | None = None
    pressure: Number | None = None
    curve: list[list[Number]] = []
    by_tensor: dict[str, dict[str, Number]] = {}
    seconds: Number | None = None
    objective: Number | None = None
    validation: dict[str, Number] = {}
    validation_words: dict[str, Number] = {}
    single_validation: dict[str, Number] = {}
    control_validation: dict[str, Number] = {}
    control_held: Flag | None = None
    held_by_margin: Flag | None = None
    candidates: list[Candidate] = []
    evaluated: Many | None = None
    methods: dict[str, Number] = {}
    granularities: dict[str, Number] = {}
    disentanglement: Disentanglement = Disentanglement()


class Cost(Stored):
    """Of the deltas: seconds of training, bytes of the largest optimizer state, bytes on storage; how many weights may
    change; bytes of what a method on singular vectors stores beside."""

    train_seconds: Number
    state_bytes: Many
    delta_bytes: Many
    weights_changed: Many
    merged_bytes: Many | None = None


class TensorChange(Stored):
    """How many of a tensor's weights changed, and the length of the change over the base's."""

    changed: Many
    weights: Many
    relative: Number


class Impact(Stored):
    """Of every tensor that changed how far; of every task the share of test inputs that are answered otherwise than by
    the base (`flipped`)."""

    tensors: dict[str, TensorChange] = {}
    flipped: dict[str, Part] = {}

    @property
    def changed(self) -> int:
        """Weights that differ from the base."""
        return sum(tensor.changed for tensor in self.tensors.values())


class Learned(Stored):
    """Where the coefficients of a version's segments are, and the heads of its tasks' own. `count`: segments of each
    task; `range`: task -> least and largest coefficient; `near_zero`: task -> share of those next to nothing."""

    file: Text
    granularity: Granularity | None
    groups: Many | dict[str, Text] | None = None
    count: Many = 1
    heads: list[Text] = []
    range: dict[str, list[Number]] = {}
    near_zero: dict[str, Number] = {}


class GateCheck(Stored):
    """One condition. `kind`: the gate's setting that asks for it. `value`, `low`, `high`: what was found, with its 95
    % interval, in the unit of `wanted`; `more` and `most`: from how many to how many test inputs are missing to tell,
    where it cannot be told and more would help; no `most` where there is no end; `together`: tasks that are asked the
    same, and judged by Holm's rule."""

    kind: Text = ""
    what: Text
    task: Text
    wanted: Number
    value: Number
    low: Number
    high: Number
    n: Many
    result: Text
    more: Many | None = None
    most: Many | None = None
    together: Many = 1

    def __str__(self) -> str:
        measured = f"{self.what} is {self.value:.3f} ({self.low:.3f} to {self.high:.3f}), wanted {self.wanted:.3f}"
        if self.result != OPEN:
            return measured
        if not self.more:
            missing = "more test inputs may not help"
        elif self.most:
            missing = f"about {self.more:,} to {self.most:,} more test inputs needed"
        else:
            missing = f"{self.more:,} more test inputs needed, or many times as many"
        return f"{measured}: not enough data to tell, {missing}"


class GateResult(Stored):
    """What a gate says of a version, all of its conditions, and the settings that asked for them."""

    result: Literal["pass", "fail", "not enough data to tell"]
    checks: list[GateCheck]
    settings: dict[str, Any]

    @property
    def strict(self) -> bool:
        """Whether what cannot be told keeps a version aside."""
        strict: bool = self.settings.get("strict", True)
        return strict

    @property
    def holds(self) -> bool:
        """Whether a version so judged may become head by itself."""
        return self.result == PASS or (self.result == OPEN and not self.strict)

    @property
    def unmet(self) -> list[GateCheck]:
        """What is shown not to hold, and then what cannot be told."""
        unmet = [check for check in self.checks if check.result != PASS]
        return sorted(unmet, key=lambda check: check.result != FAIL)

    @property
    def told(self) -> list[str]:
        """A sentence for each of these."""
        return [str(check) for check in self.unmet]

    @property
    def why(self) -> str:
        """The same in a line: what is asked and not found, the worst first; of hundreds of tasks the rest is
        counted."""
        # One line of a terminal or a commit: the report has room for all of them.
        unmet = self.unmet
        shown = unmet if len(unmet) <= MOST_TOLD else unmet[: MOST_TOLD - 1]
        sentences = [str(check) for check in shown]
        if more := unmet[len(shown) :]:
            failed = sum(check.result == FAIL for check in more)
            failing = f"{failed} of them not met, " if failed else ""
            sentences.append(f"and {len(more)} more conditions, {failing}which its report lists")
        return "; ".join(sentences)


class Stages(Stored):
    """Wall seconds of every stage, and how many workers were at it at once; seconds to the first training step, and of
    the merge search; most bytes in the object stores."""

    seconds: dict[str, Number]
    slots: dict[str, Many]
    first_step: Number | None = None
    merge_seconds: Number | None = None
    object_store_peak: Many | None = None


class Setting(Stored):
    """Of a short run: which weights may change, of which share of the layers, and the factor on the learning rate."""

    strategy: Text
    granularity: Text
    keep: Number
    lr: Number
    layers: Number = 1.0


class ShortRun(Stored):
    """What a setting scores after a share of the training, on validation data: `single` edits, `merged` with its
    standard `error`, the least that a `control` task keeps. `weights` may change; `work`: of a step, over that of a
    dense one."""

    setting: Setting
    share: Number
    work: Number
    held: Flag
    single: Number
    merged: Number
    error: Number
    control: Number | None
    weights: Many | None = None
    disentanglement: Number | None = None


class Choice(Stored):
    """Which settings were tried where the spec left the mask open, and which one was chosen: `choice.json`."""

    asked: dict[str, Any]
    tasks: list[Text] = []
    chosen: Setting
    tried: list[ShortRun]
    seconds: Number


class Attempt(Stored):
    """Of forgetting: validation accuracy of the task, and the least share that another one keeps (`worst`, if it is
    named), under a pressure; by coefficient where one was asked for, and in earlier releases."""

    pressure: Number | None = None
    coefficient: Number | None = None
    target: Part
    kept: Number
    worst: Text = ""


class Beyond(Stored):
    """What a model still knows of a task: how often it predicts each class on test data, and how often each is the
    label; the score of a linear `probe` on its features, and its own when it was `retrained` a little."""

    predicted: list[Many]
    labels: list[Many]
    probe: Score
    retrained: Score


class Negation(Stored):
    """How a task was forgotten: the share that others had to keep, validation accuracies (of `chance`, which was the
    `aim`, the `limit` of what counts, `before` and `after`), all attempts, and what was left of it (`beyond`, of the
    base, the model `before` and `now`)."""

    task: Text
    helpers: list[Text] = []
    keep: Number
    chance: Part
    aim: Part | None = None
    limit: Number | None = None
    before: Part | None = None
    after: Part | None = None
    curve: list[Attempt]
    retrained_steps: Many
    beyond: dict[str, Beyond]
    classes: list[Text]


class ArmResult(Stored):
    """What was made of one mask's deltas: task -> coefficient (the mean over the weights, where it has several), scores
    and what they cost."""

    coefficients: dict[str, Number]
    scores: dict[str, TaskScores] = {}
    summary: Summary = Summary()
    search: Search = Search()
    cost: Cost | None = None


class Version(ArmResult):
    """A version of a run. It never changes once it is stored; `with_fields` makes another.

    Args:
        number: in the run, from 0; None before it is stored.
        kind: base, addition, removal or negation.
        created: when, in UTC, ISO 8601.
        base, mask, model: fingerprints of what was edited, of the weights that may change, and of what came of it.
        rows: file of what the merge method made of the deltas, where it cannot be made again to the bit.
        deltas: task -> fingerprint of the delta that the version is made of.
        targets, others, controls: tasks that it learnt, that the run has beside, that had to hold.
        forgotten: tasks that it forgot, or that one before it did.
        metrics: task -> what its scores are, where that is not accuracy.
        merge: settings of the method that made the rows.
        probe: target -> how the version answers, compared with the base under a head of its own.
        looks: task -> how often versions were judged on its test inputs, this one included.
        baseline: the same of dense fine-tuning, where that was asked for.
        key: hash of all that decides it, by which an edit knows that it was made already.
        seconds: that making it took.
    """

    number: Many | None = Field(None, alias="version")
    kind: Text = ""
    created: Text = ""
    base: Text = ""
    mask: Text = ""
    model: Text
    rows: Text | None = None
    deltas: dict[str, Text] = {}
    targets: list[Text] = []
    others: list[Text] = []
    controls: list[Text] = []
    forgotten: list[Text] = []
    metrics: dict[str, Text] = {}
    merge: dict[str, Any] = {"method": "linear"}
    learned: Learned | None = None
    probe: dict[str, Change] = {}
    impact: Impact = Impact()
    gate: GateResult | None = None
    looks: dict[str, Many] = {}
    negation: Negation | None = None
    choice: Choice | None = None
    baseline: ArmResult | None = None
    key: Text | None = None
    seconds: Number | None = None
    stages: Stages | None = None

    @classmethod
    def read(cls, path: str, found: Mapping[str, object], number: int) -> Version:
        """What the file of a version holds. `path`: as it is called in an error.

        Raises:
            CorruptError: a field of it is not what it should be; names file and field.
        """
        version = fits(cls, path, found)
        # A file that was copied over another one is whole, and still not the version that it is called.
        if version.number != number:
            raise CorruptError(f"{path}: field 'version' is {version.number}; wanted {number}; restore it from a copy")
        return version

    @classmethod
    def of(cls, content: Version | Mapping[str, object]) -> Version:
        """The same, or what a mapping of its fields says.

        Raises:
            CorruptError: a field of it is not what it should be.
        """
        return content if isinstance(content, Version) else fits(cls, "version", content)

    def __getitem__(self, field: str) -> Any:
        """A field as the file has it: for scripts of users, for whom a version was a dict once."""
        return self.as_dict()[field]

    def __setitem__(self, field: str, value: Any) -> None:
        """The same for scripts that try what a changed version would look like: this object alone is another one then,
        never what the run holds. Fields by name stay frozen.

        Raises:
            CorruptError: no version can have that value.
        """
        other = self.of({**self.as_dict(), field: value})
        for part in ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__"):  # all that pydantic keeps in one
            object.__setattr__(self, part, getattr(other, part))

    def __contains__(self, field: object) -> bool:
        return field in self.as_dict()

    def get(self, field: str, default: Any = None) -> Any:
        """The same, or what is given, where the file has no such field."""
        return self.as_dict().get(field, default)

    @property
    def how(self) -> Merge:
        """The method that made the rows which the coefficients multiply."""
        from talos_ray.config import Merge  # loads slowly, and most that read a folder need it not

        return fits(Merge, f"version {self.number}, merge", self.merge)

    @property
    def rows_by_group(self) -> bool:
        """Whether there is a row a task and group of layers, `TASK@GROUP`, as earlier releases made them; since then
        groups are segments of the coefficients."""
        return any("@" in row for row in self.coefficients)

    @property
    def passes(self) -> bool:
        """Whether its gate lets it through. What was never judged, like the base, passes."""
        return self.gate is None or self.gate.holds

    @property
    def checks(self) -> list[GateCheck]:
        """The conditions that it was judged by."""
        return [] if self.gate is None else self.gate.checks

    def holds(self, task: str) -> bool:
        """Whether a task's edit is in it: its delta is there, and neither forgotten nor only a help to forget another
        one."""
        return task in self.deltas and task in self.targets and task not in self.forgotten

    def kind_of(self, task: str) -> str:
        """'target', 'forgotten', 'control', or 'other': of the run, but no part of this version."""
        if task in self.forgotten:
            return "forgotten"
        if task in self.targets:
            return "target"
        return "control" if task in self.controls else "other"

    def coefficient_of(self, task: str) -> str:
        """A task's coefficient in words; those of its groups of layers, where it has several; nothing, where it has
        none."""
        own = coefficients_of(self.coefficients, task)
        return ", ".join(f"{group} {coefficient:.2f}".strip() for group, coefficient in own.items())
