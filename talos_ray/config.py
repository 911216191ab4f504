"""Every setting, frozen and validated, with its unit. `talos_ray.spec` reads them from YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from talos_ray.errors import SpecError
from talos_ray.secrets import blotted, refuse_secrets
from talos_ray.shown import plain

LONGEST_PATH = 1024
HALF = re.compile("[\ud800-\udfff]")  # which is no text, and cannot be stored
WIDE = re.compile(r"[{}]|\d{4}")  # in a template's format: a width of another column's, or of 1,000 characters and more
CHOICE = "\x1f"  # ASCII's unit separator: stands before every answer that an input brings along


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    later: ClassVar[frozenset[str]] = frozenset()  # settings that came after results were addressed without them

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Values that pydantic would take for others, or that cannot be stored."""
        assert info.field_name is not None  # pydantic gives a field's validator its name
        kinds = _leaves(cls.model_fields[info.field_name].annotation)
        for part in _parts(value):
            if isinstance(part, bool) and kinds & {int, float} and bool not in kinds:
                raise PydanticCustomError("number_wanted", "wanted a number, and no yes or no")
            if isinstance(part, str) and HALF.search(part):
                raise ValueError(f"{shortly(part)} holds half a character (a surrogate); wanted a text; correct it")
        return value

    def keyed(self) -> dict[str, Any]:
        """What addresses a result of these settings: a later one counts where it is not at its default."""
        # Left out, and not written as its default: or results of releases that did not know it would be made again.
        at_default = {name for name in self.later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude=at_default)


def _leaves(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    inside = get_args(annotation)
    return {annotation}.union(*map(_leaves, inside))


def _parts(value: Any) -> Iterator[Any]:
    """A value, or what a list or mapping holds."""
    # Keys too: half a character in the name of a group could not be stored either.
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
    else:
        yield value


Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Strategy = Literal["least_sensitive", "least_sensitive_per_tensor", "random", "magnitude", "most_sensitive", "all"]
Granularity = Literal["element", "row"]


def _share_or_auto(value: Any) -> float | str:
    # By hand, because of a union pydantic would tell what is wrong with each member. Python takes True for 1.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1:
        return value
    if value == "auto":
        return "auto"
    raise PydanticCustomError("share_or_auto", "wanted a number in (0, 1], or 'auto'")


ShareOrAuto = Annotated[float | str, PlainValidator(_share_or_auto, json_schema_input_type=Share | Literal["auto"])]


class Mask(_Settings):
    """Which weights may change."""

    later: ClassVar[frozenset[str]] = frozenset({"layers"})

    keep: ShareOrAuto = Field(
        0.2,
        description=(
            "share of the eligible weights that may change, in (0, 1]; the paper has 0.1; auto tries those of "
            "auto.keeps"
        ),
    )
    strategy: Literal[Strategy, "auto"] = Field(
        "least_sensitive_per_tensor",
        description=(
            "how they are chosen: the least sensitive of each tensor, or of the whole model (least_sensitive, the "
            "paper); auto tries those of auto.strategies"
        ),
    )
    granularity: Literal[Granularity, "auto"] = Field(
        "row",
        description=(
            "whole rows of a matrix, which are faster to train and to compose, or single weights (element, the paper);"
            " auto tries both"
        ),
    )
    layers: ShareOrAuto = Field(
        1.0,
        description=(
            "share of the layers, those nearest the output, that may change: backward ends where they begin; auto "
            "tries those of auto.layers"
        ),
    )
    path: str | None = Field(
        None, description="reuse this mask.safetensors (of the same base; a path or a URI) and skip calibration"
    )

    @property
    def open(self) -> bool:
        """Whether something is to be chosen by trying."""
        return self.path is None and "auto" in (self.keep, self.strategy, self.granularity, self.layers)


class Auto(_Settings):
    """What is tried in short runs where `mask` says auto, and how long; the best by merged validation accuracy is
    trained in full."""

    strategies: tuple[Strategy, ...] = Field(
        ("least_sensitive", "least_sensitive_per_tensor", "random"), min_length=1, description="mask strategies"
    )
    granularities: tuple[Granularity, ...] = Field(("element", "row"), min_length=1, description="granularities")
    keeps: tuple[Share, ...] = Field(
        (0.05, 0.1, 0.2),
        min_length=1,
        description="shares of weights; the middle one with every strategy, the others with the best",
    )
    layers: tuple[Share, ...] = Field(
        (0.75,), description="shares of the layers that the best of all layers is tried with, too"
    )
    lr_factors: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 2.0), description="further learning rates that the best strategy is tried with, as factors on train.lr"
    )
    budget: Annotated[float, Field(gt=0)] = Field(
        2.0, description="updates of all short runs together, as a share of those of the whole training"
    )
    tolerance: Annotated[float, Field(ge=0)] = Field(
        2.0,
        description=(
            "standard errors below the best score within which the cheapest to train is taken; 0 takes the best "
            "score. Two equally good settings are further than 1.4 apart in a third of all cases"
        ),
    )

    @property
    def middle(self) -> float:
        """The share of weights that every strategy is tried with."""
        return sorted(self.keeps)[len(self.keeps) // 2]


class Calibration(_Settings):
    """How the sensitivity of every weight is measured."""

    samples_per_task: Count = Field(
        256, description="most training inputs of each task that are scored, in every round"
    )
    shards_per_task: Count = Field(
        4, description="virtual shards; fixed, so that the mask does not depend on the number of workers"
    )
    stable: Share | None = Field(
        0.97,
        description=(
            "overlap of two successive estimates of the mask at which a round ends early; null scores every sample"
        ),
    )
    rounds: Count = Field(4, description="rounds R; round r keeps keep^(r/R) of the weights")
    damping: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="factor on weights not kept, while the next round is scored"
    )
    score: Literal["log_prob", "logit"] = Field(
        "log_prob", description="log-probability (the paper's formula) or the sampled logit"
    )
    labels: Literal["classes", "tokens"] = Field(
        "classes",
        description=(
            "labels are sampled among a task's classes; or, from a model that writes text, whole answers are, token "
            "by token"
        ),
    )
    batch_size: Count = Field(64, description="samples in one backward, if memory_gb allows it")
    memory_gb: Annotated[float, Field(gt=0)] = Field(
        4.0, description="GB of activations that one backward may keep; larger batches are cut into micro-batches"
    )
    precision: Literal["float32", "bf16"] = Field(
        "bf16", description="precision of the products on a GPU, sums are float32; CPUs use float32"
    )

    later: ClassVar[frozenset[str]] = frozenset({"labels"})

    @model_validator(mode="after")
    def _one_score(self) -> Calibration:
        if self.labels == "tokens" and self.score == "logit":
            raise ValueError(
                "calibration.score is 'logit' with calibration.labels 'tokens'; wanted 'log_prob', because an answer "
                "has no logit"
            )
        return self


class Train(_Settings):
    """Sparse fine-tuning of one task."""

    steps: Count = Field(200, description="updates a task")
    epochs: Count | None = Field(None, description="passes over a task's training data, instead of `steps`")
    batch_size: Count = Field(128, description="samples an update, over all workers of the team")
    micro_batch_size: Count | None = Field(
        None, description="samples in one backward of a worker; gradients of a batch add up. All at once, if not given"
    )
    gradient_checkpointing: bool = Field(
        False,
        description=(
            "keep the inputs of a block only and run its forward again in the backward: less memory for about a third "
            "more time"
        ),
    )
    lr: Annotated[float, Field(gt=0)] = Field(1e-5, description="peak learning rate of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay, on masked weights")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(20, description="updates of linear warm-up")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after the warm-up: to 0 along a cosine, or at its peak to the end"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(1.0, description="largest norm of the masked gradient")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the target spread over all classes"
    )
    label_noise: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the training labels that are made wrong, by seed: to learn what bad labels would cost",
    )
    loss: Literal["choice", "completion"] = Field(
        "choice",
        description=(
            "cross-entropy over a task's classes; or, for a model that writes text, that of the right answer's tokens "
            "alone: the loss of a language model, on completions"
        ),
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description=(
            "weight of an example in the loss: the same for all, or the inverse of its class's share of the training "
            "data, so that rare classes count as much as frequent ones"
        ),
    )
    validate_every: Count | None = Field(
        None,
        description=(
            "updates between two looks at a task's loss on its validation data, of which the weights with the least "
            "are kept; the weights after the last update, if not given"
        ),
    )
    patience: Count | None = Field(
        None,
        description="looks without a lesser validation loss after which a task's training stops; never, if not given",
    )
    precision: Literal["float32", "bf16"] = Field("bf16", description="forward precision on a GPU; CPUs use float32")
    checkpoint_every: Count = Field(100, description="updates between two checkpoints")
    delta_dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="dtype in which deltas are stored")

    later: ClassVar[frozenset[str]] = frozenset(
        {"label_noise", "loss", "schedule", "class_weights", "validate_every", "patience"}
    )

    @model_validator(mode="after")
    def _labels_of_choices(self) -> Train:
        if self.loss == "completion" and (self.label_noise or self.label_smoothing or self.class_weights != "none"):
            raise ValueError(
                "train.loss is 'completion' with label_noise, label_smoothing or class_weights; wanted 'choice', "
                "because these are about classes"
            )
        return self

    @model_validator(mode="after")
    def _patience_of_looks(self) -> Train:
        if self.patience is not None and self.validate_every is None:
            raise ValueError(
                f"train.patience is {self.patience} without train.validate_every; wanted the updates between two looks "
                "at the validation data; add it"
            )
        return self


class Baseline(_Settings):
    """Dense fine-tuning of the same tasks, for comparison in the report."""

    enabled: bool = Field(False, description="also train every task densely, merged by the same search")
    lr: Annotated[float, Field(gt=0)] | None = Field(None, description="its peak learning rate; train.lr if not given")


class Merge(_Settings):
    """What is done to the task vectors before they are added up; `core.merging` cites each method's paper."""

    method: Literal[
        "auto", "linear", "ties", "dare", "breadcrumbs", "consensus", "normalized", "tsv", "iso_c", "iso_cts"
    ] = Field(
        "linear",
        description=(
            "task arithmetic as it is (linear, the paper), or one that resolves conflicts between tasks; tsv, iso_c "
            "and iso_cts work on singular vectors and may leave the mask; auto searches linear and consensus and "
            "takes the better on validation data. Those that thin out may need search.high above 1"
        ),
    )
    density: Share = Field(0.2, description="share of a task vector that is kept (ties, dare, breadcrumbs)")
    outliers: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.01, description="share of its largest changes that is dropped in every tensor (breadcrumbs)"
    )
    threshold: Annotated[float, Field(ge=0)] = Field(
        0.4, description="a change matters to its task if it is this many times what the other tasks add (consensus)"
    )
    agreement: Count = Field(2, description="tasks to which a weight must matter to be kept (consensus)")
    common: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="share of a matrix's directions that all tasks have in common (iso_cts)"
    )
    seed: int = Field(0, description="of what is dropped at random (dare)")
    groups: Annotated[int, Field(ge=2)] | dict[str, str] | None = Field(
        None,
        description=(
            "layers that get coefficients of their own: so many groups by depth, or name: pattern (a regular "
            "expression of tensor names; what no pattern finds is 'rest'). One coefficient a task, if not given"
        ),
    )

    @field_validator("groups")
    @classmethod
    def _patterns(cls, groups: int | dict[str, str] | None) -> int | dict[str, str] | None:
        # Looked at now, or it would be found on a worker, after the training.
        for name, pattern in groups.items() if isinstance(groups, dict) else ():
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(
                    f"pattern {pattern!r} of group {name!r} is no regular expression: {error}; wanted one, like "
                    "'blocks\\.[0-3]\\.'"
                ) from None
        return groups

    @property
    def tried(self) -> tuple[Merge, ...]:
        """What is searched."""
        if self.method != "auto":
            return (self,)
        return tuple(self.model_copy(update={"method": m}) for m in ("linear", "consensus"))


MergeGranularity = Literal["task", "group", "tensor", "row"]


class Search(_Settings):
    """Merge search: coefficients and heads, found on training inputs and chosen on validation data."""

    method: Literal["learned", "grid"] = Field(
        "learned",
        description=(
            "coefficients learned by gradient, or the grid of one coefficient shared by all tasks (the paper's "
            "protocol)"
        ),
    )
    granularity: MergeGranularity | tuple[MergeGranularity, ...] = Field(
        "row",
        description=(
            "what has a coefficient of its own: a task, a task and group of layers (merge.groups, or 4 by depth), a "
            "task and tensor, or a task and output row; of several, the best on validation data"
        ),
    )
    relearn: Literal["new", "all"] = Field(
        "new",
        description=(
            "what is learned when tasks are added to a version in force: coefficients and heads of the new ones "
            "alone, so that the others keep what was approved, or all of them"
        ),
    )
    teacher: Literal["edits", "labels", "both"] = Field(
        "both",
        description=(
            "what the merged model learns from on a task's training inputs: the answers of its single edit (no label "
            "is read), their labels, or both"
        ),
    )
    heads: Literal["words", "own", "auto"] = Field(
        "auto",
        description=(
            "what scores a target's classes in the merged model: its frozen head (words), a linear head of its own "
            "that is fitted to the merged features, or the own one where validation data say that it is better"
        ),
    )
    steps: Count = Field(240, description="updates of the coefficients")
    lr: Annotated[float, Field(gt=0)] | tuple[Annotated[float, Field(gt=0)], ...] = Field(
        0.12, description="peak rate of Adam on the coefficients, or several to try"
    )
    head_lr: Annotated[float, Field(ge=0)] = Field(
        0.1, description="peak rate of Adam on heads of the tasks' own, as a share of the standard deviation of a head"
    )
    words_weight: Annotated[float, Field(ge=0)] = Field(
        0.3,
        description=(
            "weight of a target's frozen head in the loss where it has a learned one beside it; more helps those who "
            "classify by words, less the control tasks"
        ),
    )
    start: float = Field(0.3, description="every coefficient at first")
    pressure: Annotated[float, Field(ge=0)] | tuple[Annotated[float, Field(ge=0)], ...] | Literal["auto"] = Field(
        "auto",
        description=(
            "weight of the control tasks' answers in the loss, or several to try; auto raises it until they hold on "
            "validation data, with control_margin"
        ),
    )
    inputs: Count = Field(2000, description="most training inputs of each task that are learned from")
    batch_size: Count = Field(12, description="inputs of each target task an update")
    control_batch_size: Count = Field(48, description="inputs an update of all control tasks together")
    trials: Annotated[int, Field(ge=0)] = Field(
        0, description="further learning runs, in which Optuna chooses granularity, rate, pressure and merge method"
    )
    generation: Count = Field(
        3, description="runs that Optuna proposes together; fixed, so that the result does not depend on the cluster"
    )
    control_keep: Annotated[float, Field(ge=0, le=1)] = Field(
        0.97, description="share of the base's control score that a candidate must hold"
    )
    control_margin: Annotated[float, Field(ge=0)] = Field(
        1.0, description="standard errors by which a learned candidate must hold it, if any does"
    )
    low: float = Field(0.0, description="smallest coefficient of the grid")
    high: float = Field(1.0, description="largest coefficient of the grid")
    shared_points: Annotated[int, Field(ge=2)] = Field(21, description="points of the grid; the paper uses 21")
    merge: Merge = Field(Merge(), description="merge method of the sparse arm; the dense baseline is task arithmetic")

    @model_validator(mode="after")
    def _range(self) -> Search:
        if self.low >= self.high:
            raise ValueError(f"search.low is {self.low:g} and search.high {self.high:g}; wanted low < high")
        return self

    def several(self, name: str) -> tuple[Any, ...]:
        """What is tried of a setting that may name several."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,)


class Gate(_Settings):
    """What must be shown on test data before a version becomes head. Judged with 95 % intervals on paired answers;
    null asks nothing."""

    control_keep: Share | None = Field(0.95, description="share of the base's score that every control task must keep")
    target_keep: Share | None = Field(
        1.0,
        description=(
            "share of the base's score that every target task must be shown to exceed; 1: a task that was not learnt "
            "keeps the version aside"
        ),
    )
    target_gain: float | None = Field(None, description="least gain of the targets' mean accuracy over the base's")
    disentanglement: Share | None = Field(
        None, description="most disentanglement error: predictions that the other edits change, mean over tasks"
    )
    strict: bool = Field(
        True,
        description=(
            "keep aside, too, what there is not enough test data to tell of. false takes a risk: it puts in force "
            "whatever is not shown to fail, so that of 100 versions whose control truly keeps 92 % where 95 % is "
            "asked, judged on 100 inputs, about 90 are in force"
        ),
    )


class Cluster(_Settings):
    """Where it runs. Without an address Ray starts on this machine."""

    address: str | None = Field(None, description="Ray address, or 'auto' for the cluster this machine belongs to")
    workers_per_task: Count = Field(
        1, description="workers that train one task together; several are a team of Ray Train"
    )
    teams: Count | None = Field(
        None,
        description=(
            "tasks trained at once; as many as fit, if not given. More than fit wait for the nodes that an autoscaler "
            "brings"
        ),
    )
    calibration_workers: Count | None = Field(
        None, description="calibration shards at once; as many as fit, if not given"
    )
    search_workers: Count | None = Field(None, description="search trials at once; as many as fit, if not given")
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(
        1.0, description="CPUs of every worker; also its number of torch threads"
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs of every worker, or a fraction of one"
    )
    loaders_per_worker: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description=(
            "processes that decode and preprocess ahead for every worker, until a split's inputs are kept; 4 with a "
            "GPU and none without, if not given"
        ),
    )
    input_cache_gb: Annotated[float, Field(ge=0)] = Field(
        20.0,
        description=(
            "GB on each node's disk ($TALOS_CACHE, or ~/.cache/talos_ray) for decoded inputs, which its processes "
            "share, and at most a quarter of what is free; 0 keeps none"
        ),
    )
    memory_gb_per_worker: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GB of memory that Ray reserves for every worker, if given"
    )
    accelerator_type: str | None = Field(None, description="kind of GPU, as Ray names it: 'H100', 'A100-80G'")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="labels that the node of every worker must have, as `ray start --labels` sets them",
    )
    base: Literal["object_store", "storage"] = Field(
        "object_store",
        description=(
            "how the base reaches the workers: through Ray's object store or, if it is tens of GB, as a file in "
            "`output` that every node reads once"
        ),
    )
    wait_minutes: Annotated[float, Field(ge=0)] = Field(
        0.0, description="how long to wait for nodes that an autoscaler may still bring; 0 refuses at once"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3,
        description=(
            "times a task's worker (a team, a trial of the search) is replaced before the run gives the task up; "
            "nodes that were taken away do not count"
        ),
    )
    storage_minutes: Annotated[float, Field(ge=0)] = Field(
        1.0, description="minutes that storage may refuse what a run reads or writes before the run gives up"
    )
    stall_minutes: Annotated[float, Field(ge=0)] = Field(
        30.0,
        description=(
            "minutes without a step after which a task's worker is replaced, where a task has one; 0 waits for ever"
        ),
    )


class Task(_Settings):
    """One task: data, and the words that describe its classes.

    `data` is a demo set (`demo:NAME`), a local CSV, Parquet, JSON-lines file or image folder, or any
    Hugging Face dataset name. A split that does not exist is cut from the training split by seed.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100, description="unique; names the task's files"
    )
    data: str = Field(
        description=(
            "a CSV, TSV, Parquet, JSON or JSON Lines file, a folder of images (a folder a class) or of a data set (as "
            "on the Hub, or as save_to_disk writes it), a name of the Hugging Face Hub, demo:NAME, lm_eval:TASK of "
            "the lm-evaluation-harness, or clip_benchmark:SET of LAION's CLIP benchmark"
        )
    )
    config: str | None = Field(None, description="configuration of a Hugging Face dataset")
    stream: Count | None = Field(
        None,
        description=(
            "rows of each split that are read, drawn by seed, where the whole data set is too large to download; they "
            "are kept in $TALOS_CACHE, or ~/.cache/talos_ray"
        ),
    )
    train_split: str = "train"
    validation_split: str | None = Field(None, description="'validation', if there is one; otherwise cut from train")
    validation_from: Literal["train", "test"] | None = Field(
        None, description="split that validation data are cut from, even where the data have a validation split"
    )
    test_split: str | None = Field(None, description="'test', if there is one; otherwise cut from train")
    kind: Literal["image", "text"] = Field(
        "image", description="what the inputs are; what the model reads, if not given"
    )
    input: str = Field(
        "image",
        description=(
            "column that holds the inputs; 'text' for a model that reads text, or a template of several columns: "
            "'{question} {choices[text][0]}'"
        ),
    )
    choices: tuple[str, ...] | None = Field(
        None,
        description=(
            "where answers differ from row to row, for a model that writes text: a template of columns for each "
            "class, in label order"
        ),
    )
    label: str = Field(
        "label",
        description=(
            "column that holds the labels: classes' names, or numbers from 0; other numbers, like ratings from 1 to "
            "5, are names"
        ),
    )
    classes: tuple[str, ...] | None = Field(
        None,
        description=(
            "class names; from the data, if not given. Labels that are names are found by name, numbers are places in "
            "this list"
        ),
    )
    class_count: Count | None = Field(
        None, description="how many classes the data must have; another number is refused"
    )
    underscores: Literal["keep", "spaces"] = Field(
        "keep", description="underscores of class names in a prompt: as they are, or spaces"
    )
    prompts: tuple[str, ...] = Field(
        ("a photo of a {}.",),
        json_schema_extra={"minItems": 1},
        description=(
            "templates for the zero-shot head; {} is the class name, other braces are as they stand. Just '{}' for a "
            "model that reads text"
        ),
    )
    phrases: tuple[str, ...] | None = Field(
        None, description="what stands for each class in a prompt, where its name is not the right word"
    )
    head: Literal["words", "linear"] = Field(
        "words",
        description=(
            "what scores the classes: their words, without training (zero-shot), or a linear layer on the base's "
            "features, fitted to training data before anything is edited. Frozen either way"
        ),
    )
    ranking: Literal["mean", "sum"] = Field(
        "mean",
        description=(
            "what ranks the answers of a model that writes text: the mean of their tokens' log-probabilities, so that "
            "a long answer is not worse for being long, or the sum; other models have none to rank"
        ),
    )
    metric: Literal["accuracy", "balanced_accuracy"] = Field(
        "accuracy",
        description=(
            "what the task's score is, in the search, the gate and the report: the share of inputs that are answered "
            "right, or the mean of that share over the classes, so that a rare class counts as much as a frequent one"
        ),
    )
    missing: Literal["refuse", "drop"] = Field(
        "refuse",
        description=(
            "rows without a label, a text or an image: named, or left out and counted. An empty cell of a CSV or TSV "
            "file is missing, and so is an empty text"
        ),
    )
    missing_words: tuple[str, ...] = Field(
        (), description="words that stand for a missing value in a table, like N/A; none do by themselves"
    )
    quotes: Literal["csv", "none"] | None = Field(
        None,
        description=(
            "quotation marks in CSV and TSV files: around cells, which may then hold commas and several lines (csv), "
            "or a part of the texts (none); if not given, as csv, and whatever else they could mean is refused"
        ),
    )
    unknown_classes: Literal["refuse", "drop"] = Field(
        "refuse", description="rows whose label is none of `classes`: refused, or left out and counted"
    )
    duplicates: Literal["refuse", "warn", "drop"] = Field(
        "warn",
        description=(
            "inputs that stand in two splits: refused, counted and told, or left out of the training data (of "
            "validation, where test has them)"
        ),
    )
    stratified: bool = Field(False, description="splits that are cut from train keep the classes' shares")
    split_by: Literal["position", "content", "random_split"] = Field(
        "position",
        description=(
            "what splits are cut by, with the seed: the rows' places; what they hold, so that their order in the file "
            "does not matter; or their places as torch's random_split draws them"
        ),
    )
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of train (of validation_from) that becomes validation data, where there are none"
    )
    validation_most: Count | None = Field(None, description="rows that become validation data, at most")
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of train that becomes test data, where there are none"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="settings of `train` that differ for this task")
    checkpoint: str | None = Field(
        None,
        description=(
            "weights that were fine-tuned elsewhere, instead of training: a safetensors file, a folder of them, the "
            "folder of a PEFT adapter, or a model as `model` names one; or any of these on the Hugging Face Hub, as "
            "'hub:OWNER/NAME@REVISION'; what they changed on the mask is the task's delta"
        ),
    )

    @property
    def measured(self) -> tuple[str, ...]:
        """What of the metric addresses a result: nothing of the only one that earlier releases knew, so that what they
        found is still found."""
        return () if self.metric == "accuracy" else (self.metric,)

    @property
    def scoring(self) -> str:
        """What scores the classes: `scoring`."""
        return scoring(self.head, self.ranking)

    @property
    def templated(self) -> bool:
        """Whether an input is made of several columns."""
        return self.kind == "text" and ("{" in self.input or self.choices is not None)

    @property
    def template(self) -> str:
        """Of a row's text and of the answers that it brings along."""
        text = self.input if "{" in self.input else f"{{{self.input}}}"
        return CHOICE.join([text, *(self.choices or ())])

    @field_validator("data", "checkpoint")
    @classmethod
    def _can_be_a_place(cls, place: str | None) -> str | None:
        if place is None:
            return None
        if not place.strip():
            raise ValueError(f"{place!r} is no path; wanted one, or a name; write it there")
        if len(place) > LONGEST_PATH or "\0" in place:
            raise ValueError(
                f"{shortly(place)} is no path; wanted one of at most {LONGEST_PATH} characters, without a byte 0"
            )
        try:
            Path(place).expanduser()
        except RuntimeError:
            raise ValueError(f"{shortly(place)}: there is no such user here; wanted a path; write it in full") from None
        _no_secret(place, "data")
        return place

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_prompt(cls, prompts: object) -> object:
        return (prompts,) if isinstance(prompts, str) else prompts

    @field_validator("prompts")
    @classmethod
    def _has_slot(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts:
            raise ValueError("an empty list; wanted at least one template, like 'a photo of a {}.'")
        # Without a place for it every class would have the same text, and so the same row of the head.
        for prompt in prompts:
            if (places := prompt.count("{}")) != 1:
                fault = f"has {{}} {places} times" if places else "has no {}"
                raise ValueError(
                    f"prompt {prompt!r} {fault}; wanted one place for the class name, like 'a photo of a {{}}.'"
                )
        return prompts

    @field_validator("input", "choices")
    @classmethod
    def _of_moderate_width(cls, texts: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        # A width of a billion, or one that a row of the data says, would fill the memory with a single input.
        for template in _parts(texts or ()):
            try:
                formats = [width or "" for _, _, width, _ in Formatter().parse(template)]
            except ValueError:  # whoever reads the rows tells what is wrong with it
                continue
            if wide := next(filter(WIDE.search, formats), None):
                raise ValueError(
                    f"{shortly(template)} formats a column as {shortly(wide)}; wanted a width of at most 999 that is "
                    "written there; take it out"
                )
        return texts

    @model_validator(mode="after")
    def _one_source(self) -> Task:
        if self.validation_split is not None and self.validation_from is not None:
            raise ValueError(
                f"validation_split is {self.validation_split!r} and validation_from {self.validation_from!r}; wanted "
                "one, because validation data are a split of their own or are cut; leave the other out"
            )
        return self

    @model_validator(mode="after")
    def _shares(self) -> Task:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share:g} and test_share {self.test_share:g} leave nothing to "
                "train on; wanted less than 1 together; lower them"
            )
        return self

    @field_validator("train")
    @classmethod
    def _known_settings(cls, train: dict[str, Any]) -> dict[str, Any]:
        validated(Train, train, "train")
        return train


def scoring(head: str, ranking: str) -> str:
    """What scores a task's classes, as `models.heads.scorer` calls it: 'words', 'sums' of answers, or 'linear'."""
    return "sums" if head == "words" and ranking == "sum" else head


def _no_secret(place: str, what: str) -> None:
    try:
        refuse_secrets(place, what)
    except SpecError as error:  # pydantic keeps a ValueError's place in the spec
        raise ValueError(str(error)) from None


def filled(prompt: str, phrase: str) -> str:
    """A prompt with a phrase in its place; other braces stay as they are."""
    return prompt.replace("{}", phrase)


HUGGING_FACE = ("hf", "hf-bf16")  # kinds of models that transformers reads
ON_HUB = "hub:"  # before OWNER/NAME, where something lies in a repository of the Hub
REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+$")
HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
# Files of the Hub that hold weights in other forms than safetensors, pickles among them: none is downloaded.
OTHER_WEIGHTS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.pkl",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.gguf",
    "*.tflite",
    "*.ot",
)


class Spec(_Settings):
    """A whole job. `talos edit spec.yaml` reads it; `run.json` holds it as resolved."""

    model: str = Field(
        description=(
            "'demo', 'open_clip:ARCHITECTURE/PRETRAINED' (a tag, or a local checkpoint; or "
            "'open_clip:local-dir:FOLDER', 'open_clip:hf-hub:OWNER/NAME'), 'hf:NAME' (a text encoder, T5-like model "
            "or causal LM of the Hub, at a revision by 'hf:NAME@REVISION', or a folder), 'hf-bf16:NAME' (the same with "
            "weights in bfloat16, for GPUs), or "
            "'python:MODULE:FUNCTION' (any module: talos_ray/models/python.py)"
        )
    )
    tasks: tuple[Task, ...] = Field(min_length=1, description="target tasks")
    control: tuple[Task, ...] = Field((), description="control tasks: they must hold")
    output: str = Field(
        description=(
            "run folder, local or any pyarrow.fs URI; hub:OWNER/NAME is short for a folder runs/NAME and `push: "
            "OWNER/NAME`"
        )
    )
    push: str | None = Field(
        None,
        description=(
            "private repository of the Hugging Face Hub, OWNER/NAME, to which a version that an edit puts in force is "
            "sent, as by `talos push`"
        ),
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    tokens: Annotated[int, Field(ge=4)] | None = Field(
        None, description="tokens of a text that are read, at most; as many as the model can, if not given"
    )
    tracker: Literal["mlflow", "tensorboard", "wandb"] | None = Field(
        None,
        description=(
            "also send metrics there, from the driver; its server and keys come from its own environment, the folder "
            "for TensorBoard from TENSORBOARD_LOGDIR (./tensorboard, if that is not set)"
        ),
    )
    mask: Mask = Mask()
    auto: Auto = Auto()
    calibration: Calibration = Calibration()
    train: Train = Train()
    search: Search = Search()
    gate: Gate = Gate()
    baseline: Baseline = Baseline()
    cluster: Cluster = Cluster()

    @field_validator("model")
    @classmethod
    def _of_somebody(cls, model: str) -> str:
        try:
            Path(model.partition(":")[2]).expanduser()
        except RuntimeError:
            raise ValueError(f"{shortly(model)}: there is no such user here; wanted a path; write it in full") from None
        return model

    @model_validator(mode="before")
    @classmethod
    def _on_the_hub(cls, values: Any) -> Any:
        """A run lies on a file system, where its history can be held against other writers; the Hub gets versions."""
        output = values.get("output") if isinstance(values, Mapping) else None
        if not isinstance(output, str) or not output.startswith(ON_HUB):
            return values
        repo = output.removeprefix(ON_HUB)
        return {**values, "output": f"runs/{repo.rpartition('/')[2]}", "push": repo}

    @field_validator("push")
    @classmethod
    def _a_repository(cls, push: str | None) -> str | None:
        if push is not None and not REPOSITORY.match(push):
            raise ValueError(
                f"{shortly(push)} is no repository to push to; wanted OWNER/NAME without a revision, because a push "
                "makes a new one; correct it"
            )
        return push

    @field_validator("output")
    @classmethod
    def _without_secret(cls, output: str) -> str:
        _no_secret(output, "output")
        if not output.strip():
            raise ValueError(f"output is {output!r}; wanted a folder for the run, like runs/mine; write it there")
        return output

    @model_validator(mode="after")
    def _unique_names(self) -> Spec:
        # Names are those of files, and of rows in tables where targets and control stand together.
        seen: set[str] = set()
        for task in (*self.tasks, *self.control):
            if task.name in seen:
                raise ValueError(f"two tasks are named {task.name!r}; wanted unique names; rename one")
            seen.add(task.name)
        return self

    def train_for(self, task: Task, examples: int) -> Train:
        """`train` with the task's own settings on top, its epochs as steps over so many training examples."""
        # Only what the task names, or the class's defaults would take the place of what the spec says for all tasks.
        own = validated(Train, task.train, f"tasks.{task.name}.train").model_dump(include=set(task.train))
        if "steps" in own:  # epochs of all tasks would go before a task's own steps
            own = {"epochs": None, **own}
        train = self.train.model_copy(update=own)
        if train.epochs is None:
            return train
        # The last batch of an epoch, where it is not full, is none: a task smaller than a batch has one all the same.
        steps_per_epoch = max(1, examples // train.batch_size)
        return train.model_copy(update={"steps": train.epochs * steps_per_epoch, "epochs": None})

    def to_yaml(self) -> str:
        """As a spec file, without what are defaults."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def shortly(value: object) -> str:
    """A value that was found, in a line."""
    # Messages end up in logs: no password of a URI goes there, and no escape sequence that a terminal would obey.
    whole = repr(value)
    text = plain(blotted(whole[:1000]))
    return text if len(text) <= 80 else f"{text[:60]}… ({len(whole):,} characters)"


# What pydantic says, in the words of all other messages.
SAID = {
    "String should match pattern": "wanted a text that matches",
    "String should have": "wanted a text of",
    "Input should be a valid tuple": "wanted a list",
    "Input should be": "wanted",
    "Tuple should have": "wanted",
    "List should have": "wanted",
    "Keys should be strings": "wanted a text as key",
}


# What keys are called in libraries that people come from, and here.
ELSEWHERE = {
    "learning_rate": "train.lr",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "warmup_ratio": "train.warmup_steps",
    "lr_scheduler_warmup_steps": "train.warmup_steps",
    "save_steps": "train.checkpoint_every",
    "eval_steps": "train.validate_every",
    "early_stopping": "train.patience",
    "early_stopping_patience": "train.patience",
    "load_best_model_at_end": "train.validate_every",
    "class_weight": "train.class_weights",
    "output_dir": "output",
    "base_model": "model",
    "model_name_or_path": "model",
    "dataset": "data",
    "dataset_name": "data",
    "data_files": "data",
    "dataset_config": "config",
    "text_column": "input",
    "text_field": "input",
    "image_column": "input",
    "input_column": "input",
    "label_column": "label",
    "target_column": "label",
    "density": "mask.keep",
    "sparsity": "mask.keep",
    "controls": "control",
    "targets": "tasks",
}


def _is_a_way(part: str | int) -> bool:
    """Whether a part of an error's place is no key, but one of the ways in which a value may be meant."""
    return isinstance(part, str) and (
        part == "function-after" or part.startswith(("constrained-", "dict[", "function-"))
    )


def _describe(error: ErrorDetails, model: type[BaseModel], where: str) -> str:
    """One pydantic error in the project's form: thing, value found, value wanted, fix."""
    loc = [part for part in error["loc"] if not _is_a_way(part)]
    keys = map(str, loc)
    path = plain(".".join([where, *keys] if where else keys))[:200]
    kind = error["type"]
    found = error.get("input")
    if kind == "extra_forbidden":
        return f"spec key {path!r} does not exist; {_called_here(str(loc[-1]), _fields_at(model, loc[:-1]))}"
    if kind == "missing":
        return f"spec key {path!r} is missing; add it ({_description_at(model, loc)})"
    wanted = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return plain(f"{path}: {wanted}" if path else wanted)
    if kind == "string_type" and found is None and isinstance(loc[-1], int):  # in a list, where nothing is no text
        return (
            f"spec key {path!r} is null; wanted a text: YAML reads null, ~ and what is empty as nothing; put what is "
            'written there into quotation marks, like "null", or take it out'
        )
    if kind == "string_type" and isinstance(found, bool | int | float | date):
        return (
            f"spec key {path!r} is {shortly(found)}; wanted a text: YAML reads yes, no, numbers and dates as such; "
            f"put what is written there into quotation marks, like {_quoted(found)}"
        )
    for words, ours in SAID.items():
        wanted = wanted.replace(words, ours)
    # Pydantic tells only the bound that was broken, and of a share both are wanted.
    if path.endswith("keep"):
        wanted = wanted.replace("greater than 0", "a number in (0, 1]")
    return f"spec key {path!r} is {shortly(found)}; {wanted[0].lower() + wanted[1:]} ({_description_at(model, loc)})"


def _called_here(key: str, known: list[str]) -> str:
    """What somebody may have meant by a key that does not exist."""
    # A name of another library first: by its letters alone it would be taken for whatever key looks like it.
    if (here := ELSEWHERE.get(key.lower())) is not None:
        return f"here it is called {here!r}"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _quoted(found: object) -> str:
    """An example of a text that YAML reads as a value; what was written need not be it."""
    text = {True: "yes", False: "no"}[found] if isinstance(found, bool) else str(found)
    return f'"{text}" for {text}'


def _model_at(model: type[BaseModel], loc: list[Any]) -> type[BaseModel]:
    """The settings class that an error's place leads to."""
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is None:  # the number of a list's item, which leads to no other class
            continue
        # A field of several types, like a list of tasks or a value that may be left out, holds the class among them.
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
                break
    return model


def _fields_at(model: type[BaseModel], loc: list[Any]) -> list[str]:
    return list(_model_at(model, loc).model_fields)


def _description_at(model: type[BaseModel], loc: list[Any]) -> str:
    names = [part for part in loc if isinstance(part, str)]
    field = _model_at(model, loc[:-1]).model_fields.get(names[-1]) if names else None
    return (field.description if field else None) or "see docs of talos_ray.config"


def validated(model: type[BaseModel], values: dict[str, Any], where: str = "") -> Any:
    """An instance of one of the settings classes; `where` is its place in the spec, for the messages.

    Raises:
        SpecError: one line for each problem found.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # Of a value that may be meant in several ways pydantic tells what is wrong with each: the first says enough.
        # A key too many stands apart, because its place may be that of a value that is wrong as well.
        lines: dict[tuple[Any, ...], str] = {}
        for fault in error.errors():
            place = [part for part in fault["loc"] if not _is_a_way(part)]
            unknown = fault["type"] == "extra_forbidden"
            lines.setdefault((*place, unknown), _describe(fault, model, where))
        raise SpecError("\n".join(dict.fromkeys(lines.values()))) from None
