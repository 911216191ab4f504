"""Every recipe's own data sets, read as from the Hub: names, configurations, columns, classes, splits and what is cut."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hub_server import data_served, served
from hub_sets import LETTERS, WORDS, HubSet, fill, image_net_set, image_sets, text_sets, told_by, write_story_cloze

import talos_ray
from talos_ray import SpecError, tasks
from talos_ray.config import Spec, Task
from talos_ray.data.readers import is_here
from talos_ray.models import load_model
from talos_ray.models.heads import check_head, make_head
from talos_ray.smoke import shrunk, tiny_model
from talos_ray.spec import load_spec
from talos_ray.tasks import load_task

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
TOKEN = "hf_of_no_one"
BY_STEM = {path.stem: path for path in EXAMPLES}
SPECS = [load_spec(path) for path in EXAMPLES]
ALL_TASKS = [task for spec in SPECS for task in (*spec.tasks, *spec.control)]
# What two recipes share is read once.
READ = {task.model_dump_json(exclude={"train"}): task for task in ALL_TASKS if not is_here(task)}
CASES = [pytest.param(task, id=task.name) for task in READ.values() if task.name != "imagenet"]
BY_NAME = {task.name: task for task in reversed(READ.values())}
IMAGENET = BY_NAME["imagenet"]
STORIES = SimpleNamespace(config=None, classes=("1", "2"), labels=("1", "2"), columns=())  # no set of the Hub

# Of each task: the set's configuration where it has several, the splits that training, validation and test data are rows
# of, how many classes there are, and what stands for one of them, of this number. Sets and splits are from their cards on
# the Hub; of what and how much validation data are cut, as in test_recipes.py. Phrases of vision are the class names in
# iurada/talos-task-arithmetic, vision/datasets, and in nik-dim/tall_masks, src/datasets.
TTT = ("train", "train", "test")
OWN = ("train", "validation", "test")
FROM_TEST = ("train", "validation", "validation")  # which a task of T5 is tested on
WANTED = {
    "cars": (None, TTT, 196, 194, "a photo of a Volvo XC90 SUV 2007."),
    "dtd": (None, TTT, 47, 30, "a photo of a polka-dotted texture."),
    "eurosat": (None, OWN, 10, 2, "a centered satellite photo of brushland or shrubland."),
    "tanganke/eurosat": (None, TTT, 10, 2, "a centered satellite photo of brushland or shrubland."),  # of own_images.yaml
    "gtsrb": (None, TTT, 43, 14, 'a zoomed in photo of a "stop" traffic sign.'),
    "mnist": ("mnist", TTT, 10, 7, 'a photo of the number: "7".'),
    "resisc45": (None, TTT, 45, 16, "satellite imagery of ground track field."),
    "sun397": (None, TTT, 397, 8, "a photo of a apartment building outdoor."),
    "svhn": ("cropped_digits", TTT, 10, 9, 'a photo of the number: "9".'),
    "cifar100": ("cifar100", TTT, 100, 26, ("a photo of a crab.", "a photo of a cra.")),
    "stl10": (None, TTT, 10, 7, "a photo of a monkey."),
    "flowers102": (None, TTT, 102, 15, "a photo of a globe flower, a type of flower."),
    "pets": (None, TTT, 37, 2, "a photo of a american pit bull terrier, a type of pet."),
    "pcam": (None, TTT, 2, 0, "this is a photo of lymph node"),
    "fer2013": (None, TTT, 7, 6, "a photo of a surprised looking face."),
    "emnist": (None, TTT, 10, 3, 'a photo of the digit character: "3".'),
    "cifar10": ("plain_text", TTT, 10, 1, "a photo of a automobile."),
    "food101": (None, ("train", "train", "validation"), 101, 17, "a photo of cheese plate, a type of food."),
    "fashion_mnist": ("fashion_mnist", TTT, 10, 0, "a photo of a T-shirt/top."),
    "rendered_sst2": (None, TTT, 2, 1, "a positive review of a movie."),
    "kmnist": ("kmnist", TTT, 10, 8, "a photo of the character re."),
    "qasc": (None, FROM_TEST, 8, 7, "H"),
    "quartz": (None, OWN, 2, 1, "B"),
    "paws": ("labeled_final", OWN, 2, 1, "Yes"),
    "story_cloze": (None, ("train", "test", "test"), 2, 1, "2"),
    "wiki_qa": (None, OWN, 2, 0, "No"),
    "winogrande": ("winogrande_xl", FROM_TEST, 2, 0, "1"),
    "wsc": ("wsc.fixed", FROM_TEST, 2, 1, "Yes"),
    "boolq": (None, ("train", "train", "validation"), 2, 1, "yes"),
    "openbook": ("main", OWN, 4, 3, "D"),
    "reviews": ("plain_text", TTT, 2, 0, ("negative", "a bad film")),
    "news": (None, TTT, 4, 3, "science and technology"),
    "emotions": ("split", OWN, 6, 5, "a text full of surprise"),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The sets by their names, which a Hub of this machine has and this process reads."""
    folder = tmp_path_factory.mktemp("hub")
    stories = folder / "story_cloze"
    write_story_cloze(stories)
    made = [*image_sets(), *text_sets()]
    with pytest.MonkeyPatch.context() as patch, data_served(patch, folder) as hub:
        fill(hub, made)
        patch.chdir(folder)
        yield {one.name: one for one in made} | {"story_cloze": STORIES}
    tasks._load_task.cache_clear()  # they are called as the real ones are


def told(made, split, number: int) -> tuple[str, int, int]:
    """Split, row and class that an input says of itself, in all that was put together for it."""
    if split.column != "input" and not isinstance(split.rows[number][split.column], str):
        return told_by(made, split.rows[number][split.column])
    found = set(re.findall(r" (\w+) row(\d+) kind(\d+)", split.rows[number][split.column]))
    ((name, row, kind),) = found
    return name, int(row), int(kind)


def all_told(made, split) -> list[tuple[str, int]]:
    """The split and row of every input, which say the class that it is labelled with."""
    found = []
    for number, label in enumerate(split.labels.tolist()):
        name, row, kind = told(made, split, number)
        assert kind == label
        found.append((name, row))
    return found


def rows_cut(task: Task, rows: int) -> int:
    exact = task.validation_share * rows
    return min(int(exact) if task.split_by == "random_split" else round(exact), task.validation_most or rows)


def test_every_recipe_is_read_from_the_hub_or_needs_none_of_it(sets):
    assert {task.data for task in READ.values()} - {IMAGENET.data} == set(sets)
    assert {task.name for task in READ.values()} - {"imagenet"} == {name for name in WANTED if "/" not in name}


@pytest.mark.parametrize("task", CASES)
def test_a_recipes_data_are_what_their_card_says(task, sets):
    made = sets[task.data]
    config, splits, classes, number, phrase = WANTED.get(task.data) or WANTED[task.name]
    # A configuration has to be named where there are others; where it stands alone, it need not be.
    assert made.config in (config, "default", None) and task.config in (config, None)
    data = load_task(task, 0)

    assert len(data.classes) == classes == len(made.labels)
    assert data.classes == (task.classes or made.classes)
    assert len(data.phrases) == classes and "_" not in "".join(data.phrases)
    assert task.prompts[0].replace("{}", data.phrases[number]) in (phrase if isinstance(phrase, tuple) else (phrase,))
    assert task.head == "words"

    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    stood = {}
    for (kind, part), split in zip(parts.items(), splits, strict=True):
        rows = all_told(made, part)
        assert {name for name, _ in rows} == {split}
        stood[kind] = [row for _, row in rows]
    # Every row of the splits that are read is in one part, and no row in two.
    for split in set(splits):
        together = sorted(row for kind, name in zip(parts, splits, strict=True) if name == split for row in stood[kind])
        assert together == list(range(len(together)))
        assert len(together) == (len(made.classes_of(split)) if made is not STORIES else 80)
    if splits[1] == "validation" and task.validation_from is None:
        return
    whole = len(stood["train" if splits[1] == splits[0] else "test"]) + len(stood["validation"])
    assert len(stood["validation"]) == rows_cut(task, whole) > 0
    if task.split_by == "random_split":
        lengths = [whole - len(stood["validation"]), len(stood["validation"])]
        kept, cut = torch.utils.data.random_split(range(whole), lengths, torch.Generator().manual_seed(0))
        assert (stood["train"], stood["validation"]) == (sorted(kept), sorted(cut))


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_cut_than_the_most(most, sets):
    dtd = BY_NAME["dtd"]
    data = load_task(dtd.model_copy(update={"validation_most": most}), 0)
    assert len(data.validation) == most and len(data.train) == len(sets[dtd.data].classes_of("train")) - most


REFUSED = (
    ("sun397", {"class_count": 396}, "tanganke/sun397 has 397 classes; wanted 396"),
    ("cifar100", {"input": "image"}, "column 'image' is not in split 'train' of uoft-cs/cifar100.*it has: img"),
    ("food101", {"test_split": "test"}, "ethz/food101 has no split 'test'; it has: train, validation"),
    ("paws", {"config": None}, "labeled_final.*labeled_swap.*unlabeled_final"),
    ("qasc", {"test_split": "test"}, "split 'test' has no label"),
    ("wsc", {"test_split": "test"}, "split 'test' of aps/super_glue has no labels"),
)


@pytest.mark.parametrize(("name", "change", "match"), REFUSED)
def test_what_is_not_as_the_recipe_says_is_refused(name, change, match, sets):
    with pytest.raises(SpecError, match=match):
        load_task(BY_NAME[name].model_copy(update=change), 0)


def test_columns_of_a_web_dataset_have_their_own_names_for_who_asks(sets):
    faces = BY_NAME["fer2013"]
    own = load_task(faces.model_copy(update={"input": "jpg", "label": "cls"}), 0)
    usual = load_task(faces, 0)
    assert (own.test.column, usual.test.column) == ("jpg", "image")
    assert own.test.fingerprint() == usual.test.fingerprint()


NOWHERE = "http://127.0.0.1:9"  # no port that anything listens at
WITHOUT = {
    "offline": {"huggingface_hub.constants.HF_HUB_OFFLINE": True, "datasets.config.HF_HUB_OFFLINE": True},
    "unreachable": {
        "huggingface_hub.constants.ENDPOINT": NOWHERE,
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE": NOWHERE + "/{repo_id}/resolve/{revision}/{filename}",
        "datasets.config.HF_ENDPOINT": NOWHERE,
    },
}


# Its library asks an address where nothing is six times, and then takes what it has.
UNREACHABLE = pytest.param("unreachable", "dtd", marks=pytest.mark.slow)
OFFLINE = [("offline", name) for name in ("dtd", "svhn", "fer2013", "winogrande", "emotions")]


@pytest.mark.parametrize(("how", "name"), [*OFFLINE, UNREACHABLE])
def test_what_was_read_is_there_without_the_hub(how, name, sets, monkeypatch):
    online = load_task(BY_NAME[name], 0)
    for setting, value in WITHOUT[how].items():
        monkeypatch.setattr(setting, value)
    tasks._load_task.cache_clear()
    again = load_task(BY_NAME[name], 0)
    assert again.classes == online.classes
    assert again.train.fingerprint() == online.train.fingerprint()


def test_what_negation_must_keep_is_streamed_with_a_token(tmp_path, monkeypatch):
    """A few of its fifty thousand rows, of a set that nobody sees without a token."""
    made = image_net_set()
    with data_served(monkeypatch, tmp_path / "none") as hub:
        fill(hub, [made])
        few = IMAGENET.model_copy(update={"stream": 400})
        with pytest.raises(SpecError, match="task 'imagenet': .*ILSVRC/imagenet-1k"):
            load_task(few, 0)
    with data_served(monkeypatch, tmp_path / "one", TOKEN) as hub:
        fill(hub, [made])
        hub.readers.add(TOKEN)
        data = load_task(few, 0)
        assert len(data.classes) == 1_000 and data.phrases[134] == "crane bird" and data.phrases[517] == "construction crane"
        assert (len(data.train), len(data.validation), len(data.test)) == (360, 40, 400)
        for part, split in ((data.train, "train"), (data.validation, "train"), (data.test, "validation")):
            assert {name for name, _ in all_told(made, part)} == {split}
        # Its splits as often as each other, and its test data, which have no labels, not at all.
        read = Counter(path.rpartition("/")[2] for _, path, _, _ in hub.asked if path.endswith(".parquet"))
        assert read["train-00000-of-00001.parquet"] == read["validation-00000-of-00001.parquet"] > 0
        assert len(read) == 2
    tasks._load_task.cache_clear()


def test_heads_are_those_of_the_recipes_prompts_and_of_the_sets_own_class_names(sets, tmp_path):
    """iurada/talos-task-arithmetic, vision/heads.py: the normalised mean over the prompts of normalised text features,
    times the logit scale."""
    from transformers import AutoModel, AutoTokenizer

    spec = load_spec(BY_STEM["clip_vit_b32_twenty_tasks"])
    model = tiny_model("clip", words_of(spec, list(sets.values())), tmp_path)
    reads_long_prompts(model)
    family = load_model(model)
    module = AutoModel.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for task in spec.tasks:
        data = load_task(task, 0)
        head = make_head(family, data, 0)
        check_head(family, data, head)  # no two classes are the same to the model
        _, _, classes, number, _ = WANTED[task.name]
        texts = [prompt.replace("{}", data.phrases[number]) for prompt in task.prompts]
        tokens = tokenizer(texts, return_tensors="pt", padding=True)
        assert tokens.input_ids.shape[1] <= LONGEST
        with torch.no_grad():
            features = module.get_text_features(**tokens).pooler_output
            mean = torch.nn.functional.normalize(features, dim=-1).mean(0)
            wanted = torch.nn.functional.normalize(mean, dim=-1) * module.logit_scale.exp()
        assert head.shape == (classes, wanted.numel())
        torch.testing.assert_close(head[number], wanted)


# ------------------------------------------------------------------------------------- from check to tables

RUN = {"clip_vit_b32_eight_tasks": "clip", "t5_seven_tasks": "t5", "causal_lm_tasks": "qwen3"}
LONGEST = 32  # words of a prompt, as many as the tiny model's tokenizer gives


def words_of(spec: Spec, made: list[HubSet]) -> list[str]:
    """All that a tiny model has to know to tell two classes or two rows apart."""
    texts = [*WORDS, *LETTERS, *(f"{what}{number}" for what in ("row", "kind") for number in range(100))]
    for task in (*spec.tasks, *spec.control):
        texts += [*task.prompts, *(task.phrases or ()), *(task.classes or ()), task.input]
    for one in made:
        texts += [*one.classes, *(name.replace("_", " ") for name in one.classes), *one.columns]
    return sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(texts))))


def reads_long_prompts(model: str) -> None:
    """A tiny CLIP reads half of what its tokenizer gives, and these recipes' prompts are longer."""
    from transformers import AutoConfig, AutoModel

    folder = model.partition(":")[2]
    config = AutoConfig.from_pretrained(folder)
    config.text_config.max_position_embeddings = LONGEST
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)


def few_steps(stem: str, folder: Path, made: list[HubSet]) -> Path:
    """A recipe with its own tasks and data, a tiny model of its class and a few steps, as a file."""
    asked = load_spec(BY_STEM[stem])
    model = tiny_model(RUN[stem], words_of(asked, made), folder / "model")
    if RUN[stem] == "clip":
        reads_long_prompts(model)
    small = shrunk(asked, folder / "shrunk")
    own = tuple(task.model_copy(update={"train": {}}) for task in asked.tasks)
    spec = small.model_copy(update={"tasks": own, "control": asked.control, "model": model})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json"), allow_unicode=True))
    return path


@pytest.mark.slow
@pytest.mark.timeout(2_700)  # some ten runs of up to eight tasks
@pytest.mark.parametrize("stem", RUN)
def test_a_recipe_runs_from_check_to_its_tables_on_its_own_data(stem, tmp_path):
    """In processes of their own, which read HF_ENDPOINT as a user sets it."""
    made = [*image_sets(), *text_sets()]
    write_story_cloze(tmp_path / "story_cloze")
    path = few_steps(stem, tmp_path, made)
    names = {task.name for task in load_spec(path).tasks}
    own = {"HF_HOME": f"{tmp_path}/home", "TALOS_CACHE": f"{tmp_path}/talos", "HF_HUB_DISABLE_XET": "1"}
    with served() as hub:
        fill(hub, made)
        env = {**os.environ, **own, "HF_ENDPOINT": hub.url}

        def talos(*words: str, codes: tuple[int, ...] = (0,)) -> dict:
            command = [sys.executable, "-m", "talos_ray.cli", *words, "--json"]
            done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=2_400)
            assert done.returncode in codes, done.stderr[-5_000:] + done.stdout[-2_000:]
            return json.loads(done.stdout)

        assert talos("check", str(path)) == {"problems": []}
        edited = talos("edit", str(path), "-o", f"{tmp_path}/run", codes=(0, 3))  # made-up rows may not satisfy a gate
        assert edited["kind"]
        tables = talos("reproduce", str(path), "--seeds", "1", "-o", f"{tmp_path}/reproduced")
        # Everything was downloaded once.
        downloaded = [asked for method, asked, _, _ in hub.asked if method == "GET" and asked.endswith(".parquet")]
        assert len(downloaded) == len(set(downloaded)) > 0
    run = talos_ray.open_run(f"{tmp_path}/run")
    assert set(run.newest.coefficients) == names and run.verify() == []
    assert {"zero-shot", "TaLoS", "dense task arithmetic", "learned merge"} <= {row["method"] for row in tables["addition"]}
    assert names < set(tables["tasks"][0])
    assert (tmp_path / "reproduced/addition.tex").exists()
