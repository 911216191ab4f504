"""Every recipe in examples/, shrunk: the same path, on a tiny model of the same class and made-up rows with its columns and classes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import talos_ray
from talos_ray import SpecError
from talos_ray.cli import app
from talos_ray.models import load_model
from talos_ray.smoke import shrunk
from talos_ray.spec import load_spec
from talos_ray.tasks import load_task

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
BY_STEM = {path.stem: path for path in EXAMPLES}
MODELS = {"clip_vit_b32": "ViT-B-32", "clip_vit_b16": "ViT-B-16", "clip_vit_l14": "ViT-L-14"}
SUITES = {"eight": 8, "fourteen": 14, "twenty": 20}
# A recipe that is another's with a model of another size, or with fewer of its tasks -> that one, which is checked for both.
PART_OF = {f"{m}_{suite}_tasks": "clip_vit_b32_twenty_tasks" for m in MODELS for suite in SUITES}
PART_OF |= {"t5_base_seven_tasks": "t5_seven_tasks", "t5_large_seven_tasks": "t5_seven_tasks"}
del PART_OF["clip_vit_b32_twenty_tasks"]
# Pictures of a thousand classes are made up for it, for half a minute.
CHECKED = [
    pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem == "clip_vit_b32_negation" else [])
    for p in EXAMPLES
    if p.stem not in PART_OF
]

# Of each vision task: rows of train and of what is cut from it (a tenth, at most 5,000; EuroSAT has a split of its own),
# classes, prompts, epochs, and the updates that these come to with 128 samples each. Rows and classes: the papers of the
# data sets, and their cards on the Hub. Prompts, epochs and splits of the first eight: iurada/talos-task-arithmetic,
# vision/datasets/templates.py, vision/prune_finetune.py and vision/datasets/registry.py; of the other twelve:
# nik-dim/tall_masks, src/datasets/templates.py, finetune.py and src/datasets/registry.py. Almost all come to 2,000 updates,
# as these papers say, which holds the rows against the epochs.
VISION = {
    "cars": (8_144, 814, 196, 8, 35, 1_995),
    "dtd": (3_760, 376, 47, 8, 76, 1_976),
    "eurosat": (21_600, 0, 10, 3, 12, 2_016),
    "gtsrb": (26_640, 2_664, 43, 3, 11, 2_057),
    "mnist": (60_000, 5_000, 10, 1, 5, 2_145),
    "resisc45": (18_900, 1_890, 45, 18, 15, 1_980),
    "sun397": (19_850, 1_985, 397, 2, 14, 1_946),
    "svhn": (73_257, 5_000, 10, 1, 4, 2_132),
    "cifar100": (50_000, 5_000, 100, 18, 6, 2_106),
    "stl10": (5_000, 500, 10, 2, 60, 2_100),
    "flowers102": (1_020, 102, 102, 1, 147, 1_029),
    "pets": (3_680, 368, 37, 1, 82, 2_050),
    "pcam": (262_144, 5_000, 2, 1, 1, 2_008),
    "fer2013": (28_709, 2_870, 7, 6, 10, 2_010),
    "emnist": (240_000, 5_000, 10, 1, 2, 3_670),
    "cifar10": (50_000, 5_000, 10, 18, 6, 2_106),
    "food101": (75_750, 5_000, 101, 1, 4, 2_208),
    "fashion_mnist": (60_000, 5_000, 10, 2, 5, 2_145),
    "rendered_sst2": (6_920, 692, 2, 1, 39, 1_872),
    "kmnist": (60_000, 5_000, 10, 1, 5, 2_145),
}
# Of each language task: classes, whether rows bring their answers along, and the rows of the split that validation and test
# data are cut from, where they are (data cards); iurada/talos-task-arithmetic, nlp/data/dataset_readers.py.
LANGUAGE = {
    "qasc": (8, True, 926),
    "quartz": (2, True, None),
    "paws": (2, False, None),
    "story_cloze": (2, True, 1_871),
    "wiki_qa": (2, False, None),
    "winogrande": (2, True, 1_267),
    "wsc": (2, False, 104),
}


@pytest.mark.parametrize("path", CHECKED)
def test_a_recipe_is_checked_on_made_up_rows(path, tmp_path, capfd):
    asked = load_spec(path)
    spec = shrunk(asked, tmp_path)
    assert [t.name for t in spec.tasks] == [t.name for t in asked.tasks]
    gate = asked.gate.model_copy(update={"strict": False})  # a few made-up rows show nothing
    assert (spec.mask, spec.gate, spec.search.method) == (asked.mask, gate, asked.search.method)
    talos_ray.check(spec)
    told = capfd.readouterr()
    assert f"classes: {spec.tasks[0].name} {len(load_task(spec.tasks[0], spec.seed).classes)}" in told.err + told.out
    for was, task in zip((*asked.tasks, *asked.control), (*spec.tasks, *spec.control), strict=True):
        data = load_task(task, spec.seed)
        assert (task.input, task.label) == (was.input, was.label)
        if not asked.model.startswith("open_clip:"):  # there a model that reads little stands in, and gets short words
            assert (task.prompts, task.phrases) == (was.prompts, was.phrases)
        assert was.classes is None or data.classes == was.classes
        assert len(data.train) >= 2 * len(data.classes) and set(data.test.labels.tolist()) == set(
            range(len(data.classes))
        )
    families = {"open_clip": "Clip", "demo": "Clip", "hf": ("Encoder", "Seq2Seq", "Causal")}
    assert type(load_model(spec.model)).__name__ in families[asked.model.partition(":")[0]]


@pytest.mark.slow
@pytest.mark.parametrize("path", CHECKED)
def test_a_recipe_runs_shrunk(path, tmp_path):
    out = tmp_path / "run"
    told = CliRunner().invoke(app, ["edit", str(path), "--smoke", "--json", "-o", str(out)])
    assert told.exit_code in (0, 3), told.output  # made-up rows may not satisfy a gate
    assert json.loads(told.stdout)["kind"]
    run = talos_ray.open_run(f"{out}-smoke/run")
    assert set(run.newest.coefficients) == {t.name for t in load_spec(path).tasks} and run.verify() == []


@pytest.mark.parametrize("stem", PART_OF)
def test_what_is_part_of_another_recipe_needs_no_check_of_its_own(stem):
    part = load_spec(BY_STEM[stem])
    whole = load_spec(BY_STEM[PART_OF[stem]])
    assert part.tasks == whole.tasks[: len(part.tasks)] and not part.control
    assert part.output != whole.output and part.model.partition(":")[0] == whole.model.partition(":")[0]
    alike = {"model": whole.model, "output": whole.output, "tasks": whole.tasks}
    micro = {"micro_batch_size": whole.train.micro_batch_size}  # which decides memory, and no update
    alike["train"] = part.train.model_copy(update=micro)
    assert part.model_copy(update=alike) == whole


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("model", MODELS)
def test_the_vision_recipes_are_as_published(model, suite):
    spec = load_spec(BY_STEM[f"{model}_{suite}_tasks"])
    assert spec.model == f"open_clip:{MODELS[model]}-quickgelu/openai" and spec.seed == 0
    t = spec.train
    assert (t.batch_size, t.lr, t.weight_decay, t.warmup_steps, t.precision) == (128, 1e-5, 0.1, 500, "bf16")
    assert (t.schedule, t.clip_norm, t.label_smoothing) == ("cosine", 1.0, 0.0)
    # pruners.py: least sensitive over all tensors, 4 rounds, the sampled logit; eval_task_addition.py: 21 points.
    assert (spec.mask.keep, spec.mask.strategy, spec.mask.granularity) == (0.1, "least_sensitive", "element")
    assert (spec.calibration.rounds, spec.calibration.score, spec.calibration.damping) == (4, "logit", 0.1)
    assert (spec.search.method, spec.search.shared_points, spec.search.low, spec.search.high) == ("grid", 21, 0, 1)
    assert [task.name for task in spec.tasks] == list(VISION)[: SUITES[suite]]
    # heads.py: classes are scored by their words, and these heads stay as they are; test_hub_recipes.py makes them.
    assert spec.search.heads == "words" and {task.head for task in spec.tasks} == {"words"}
    for task in spec.tasks:
        rows, validation, classes, prompts, epochs, steps = VISION[task.name]
        assert (task.class_count, len(task.prompts), task.train) == (classes, prompts, {"epochs": epochs})
        assert len(set(task.prompts)) == prompts and len(set(task.phrases or range(classes))) == classes
        if validation:
            cut = min(int(task.validation_share * rows), task.validation_most)
            assert (task.validation_from, task.split_by, cut) == ("train", "random_split", validation)
        else:
            assert task.validation_from is None
        assert spec.train_for(task, rows - validation).steps == steps


def test_what_negation_must_keep_is_imagenet_with_the_80_prompts_of_clip():
    spec = load_spec(BY_STEM["clip_vit_b32_negation"])
    (imagenet,) = spec.control
    templates = pytest.importorskip("open_clip.zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES
    assert imagenet.prompts == tuple(template("{}") for template in templates) and len(imagenet.prompts) == 80
    assert len(set(imagenet.phrases)) == imagenet.class_count == 1_000
    # eval_task_negation.py, datasets/registry.py: 5,000 rows of train to choose by, and all of its validation split to test.
    assert (imagenet.test_split, imagenet.validation_from, imagenet.validation_most) == ("validation", "train", 5_000)
    assert spec.search.control_keep == 0.95 and imagenet.validation_share * imagenet.stream == 5_000
    assert spec.tasks == load_spec(BY_STEM["clip_vit_b32_eight_tasks"]).tasks


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_language_recipes_are_as_published(size):
    """iurada/talos-task-arithmetic, nlp/prune_finetune.py: 16 times 64 samples, and no scheduler."""
    spec = load_spec(BY_STEM["t5_seven_tasks" if size == "small" else f"t5_{size}_seven_tasks"])
    assert spec.model == f"hf:google-t5/t5-{size}" and spec.tokens == 128
    t = spec.train
    assert (t.steps, t.batch_size, t.lr, t.schedule, t.warmup_steps) == (75_000, 1_024, 1e-4, "constant", 0)
    assert (t.clip_norm, t.weight_decay, t.precision, t.loss) == (None, 0.0, "bf16", "completion")
    assert t.batch_size % t.micro_batch_size == 0 and t.micro_batch_size <= 64
    # nlp/pruners.py: answers are sampled among a row's own, and a logit is the sum of an answer's log-probabilities.
    assert (spec.calibration.labels, spec.calibration.score, spec.search.shared_points) == ("classes", "logit", 21)
    assert [task.name for task in spec.tasks] == list(LANGUAGE)
    for task in spec.tasks:
        classes, own, rows = LANGUAGE[task.name]
        assert (len(task.classes), task.choices is not None, task.ranking) == (classes, own, "sum")
        assert task.phrases == (None if own else ("No", "Yes")) and task.prompts == ("{}",)
        if rows is not None:
            assert task.validation_from == "test" and task.test_split is not None
            assert min(int(task.validation_share * rows), task.validation_most) == 32
        else:
            assert task.validation_from is None and task.test_split is None
    assert spec.tasks[-1].config == "wsc.fixed"


def test_boolq_is_tested_on_its_validation_split_and_nothing_is_chosen_by_it():
    boolq = load_spec(BY_STEM["causal_lm_tasks"]).tasks[0]
    assert (boolq.name, boolq.test_split, boolq.validation_from) == ("boolq", "validation", "train")


def test_a_spec_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(SpecError, match="extends itself"):
        load_spec(tmp_path / "a.yaml")
