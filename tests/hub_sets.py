"""Every data set of the Hub that a recipe names, on a Hub of this machine: its own name, configurations, splits, columns
and class names, and a few made-up rows of each split.

What is true of the sets themselves is from their cards (huggingface.co/datasets/NAME). Every row says in itself which
split, which row and which class it is of, so that whoever reads it can see whether all of these stayed together.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, List, NamedSplit, Value, disable_progress_bars
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from hub_server import Hub, Repository
from huggingface_hub import DatasetCardData
from PIL import Image as Pictures

CLASSES: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "hub_classes.yaml").read_text("utf-8"))
DIGITS = [str(digit) for digit in range(10)]
LETTERS = "ABCDEFGH"
SIDE = 8  # pixels
WORDS = ("amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "heath")
# tanganke's sets hold the test images once more for each of these.
CORRUPTED = ("contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate", "spatter")
TRAIN_TEST = {"train": 2, "test": 1}
ALL_THREE = {"train": 2, "validation": 1, "test": 1}
TEXT = Value("string")
INT = Value("int32")
CHOICES = {"text": List(TEXT), "label": List(TEXT)}  # answers that a row brings along
DEFAULTS = ("split",)  # configurations that are read if none is named, although there are others


@dataclass(frozen=True)
class HubSet:
    """A data set as it stands on the Hub.

    Args:
        label: column of the class; `labels` what it holds for each of them, in order.
        splits: name -> rows of every class; there are some at least.
        columns: the others, with what they hold.
        folder: of the configuration's files.
        others: configurations that no recipe reads; one row each.
        hidden: splits whose labels were not given out, and what stands there instead.
        gray: images are of one channel.
        gated: nobody reads it without a token.
        tars: a WebDataset, without a card.
    """

    name: str
    labels: Sequence[Any]
    splits: Mapping[str, int]
    columns: Mapping[str, Any]
    label: str = "label"
    label_type: Any = None
    config: str = "default"
    folder: str = "data"
    others: tuple[str, ...] = ()
    hidden: Mapping[str, Any] = field(default_factory=dict)
    gray: bool = False
    gated: bool = False
    tars: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names; where the set says none, what its label column holds."""
        if isinstance(self.label_type, ClassLabel):
            return tuple(self.label_type.names)
        return tuple(map(str, self.labels))

    @property
    def features(self) -> Features:
        return Features({**self.columns, self.label: self.label_type})

    def classes_of(self, split: str) -> list[int]:
        """The class of every row of a split."""
        # Of fewer than ten rows nothing can be cut.
        count = max(self.splits[split] * len(self.labels), 20 if split == "train" else 8)
        return [row % len(self.labels) for row in range(count)]


def images(name: str, classes: Sequence[str], splits: Mapping[str, int] = TRAIN_TEST, **more: Any) -> HubSet:
    """A set of images and of class names, as most are."""
    columns = more.pop("columns", {"image": Image()})
    return HubSet(name, range(len(classes)), splits, columns, label_type=ClassLabel(names=list(classes)), **more)


def texts(name: str, columns: Sequence[str], labels: Sequence[Any], label_type: Any, **more: Any) -> HubSet:
    """A set whose columns are texts."""
    splits = more.pop("splits", ALL_THREE)
    return HubSet(name, labels, splits, dict.fromkeys(columns, TEXT), label_type=label_type, **more)


def image_net() -> list[str]:
    """The words of ImageNet's classes as WordNet has them, of which one stands for a bird and a machine."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    names = [info.index_to_description(place) for place in range(1_000)]
    machine = len(names) - 1 - names[::-1].index("crane")
    names[machine] = "crane2"
    return names


def image_sets() -> list[HubSet]:
    with_corrupted = TRAIN_TEST | dict.fromkeys(CORRUPTED, 0)
    return [
        images("tanganke/stanford_cars", CLASSES["stanford_cars"], with_corrupted),
        images("tanganke/dtd", CLASSES["dtd"]),
        images("Honaker/eurosat_dataset", CLASSES["eurosat"], ALL_THREE),
        images("tanganke/eurosat", CLASSES["eurosat_words"], with_corrupted),
        images("tanganke/gtsrb", CLASSES["gtsrb"], with_corrupted),
        images("ylecun/mnist", DIGITS, config="mnist", folder="mnist", gray=True),
        images("tanganke/resisc45", CLASSES["resisc45"], with_corrupted),
        images("tanganke/sun397", CLASSES["sun397"], {"train": 1, "test": 1}),
        images(
            "ufldl-stanford/svhn",
            DIGITS,
            {"train": 3, "test": 1, "extra": 1},
            config="cropped_digits",
            folder="cropped_digits",
            others=("full_numbers",),
        ),
        images(
            "uoft-cs/cifar100",
            CLASSES["cifar100"],
            columns={"img": Image(), "coarse_label": ClassLabel(names=CLASSES["cifar100_coarse"])},
            label="fine_label",
            config="cifar100",
            folder="cifar100",
        ),
        images("tanganke/stl10", CLASSES["stl10"]),
        images("dpdl-benchmark/oxford_flowers102", CLASSES["flowers102"], ALL_THREE),
        images(
            "timm/oxford-iiit-pet",
            CLASSES["pets"],
            columns={"image": Image(), "image_id": TEXT, "label_cat_dog": ClassLabel(names=["cat", "dog"])},
        ),
        HubSet(
            "1aurent/PatchCamelyon",
            labels=[False, True],
            splits={"train": 10, "valid": 4, "test": 4},
            columns={"image": Image()},
            label_type=Value("bool"),
        ),
        HubSet(
            "clip-benchmark/wds_fer2013",
            labels=range(7),
            splits={"train": 6, "test": 2},
            columns={"jpg": Image()},
            label="cls",
            label_type=Value("int64"),
            gray=True,
            tars=True,
        ),
        HubSet(
            "ernestchu/emnist-digits",
            labels=range(10),
            splits=TRAIN_TEST,
            columns={"image": Image()},
            label_type=Value("int64"),
            gray=True,
        ),
        images(
            "uoft-cs/cifar10",
            CLASSES["cifar10"],
            columns={"img": Image()},
            config="plain_text",
            folder="plain_text",
        ),
        images("ethz/food101", CLASSES["food101"], {"train": 2, "validation": 1}),
        images(
            "zalando-datasets/fashion_mnist",
            CLASSES["fashion_mnist"],
            config="fashion_mnist",
            folder="fashion_mnist",
            gray=True,
        ),
        images("nateraw/rendered-sst2", ["negative", "positive"], {"train": 10, "validation": 4, "test": 4}),
        HubSet(
            "tanganke/kmnist",
            labels=range(10),
            splits=TRAIN_TEST,
            columns={"image": Image()},
            label_type=ClassLabel(names=CLASSES["kmnist"]),
            config="kmnist",
            folder="kmnist",
            gray=True,
        ),
    ]


def image_net_set() -> HubSet:
    splits = {"train": 1, "validation": 1, "test": 0}
    return images("ILSVRC/imagenet-1k", image_net(), splits, hidden={"test": -1}, gated=True)


def text_sets() -> list[HubSet]:
    yes_no = ClassLabel(names=["0", "1"])
    return [
        HubSet(
            "allenai/qasc",
            labels=LETTERS,
            splits={"train": 4, "test": 1, "validation": 8},
            columns={
                **dict.fromkeys(("id", "question"), TEXT),
                "choices": CHOICES,
                **dict.fromkeys(("fact1", "fact2", "combinedfact", "formatted_question"), TEXT),
            },
            label="answerKey",
            label_type=TEXT,
            hidden={"test": ""},
        ),
        HubSet(
            "allenai/quartz",
            labels="AB",
            splits={"train": 10, "validation": 4, "test": 4},
            columns={
                **dict.fromkeys(("id", "question"), TEXT),
                "choices": CHOICES,
                **dict.fromkeys(("para", "para_id"), TEXT),
                "para_anno": dict.fromkeys(("effect_prop", "cause_dir_str", "effect_dir_str", "cause_dir_sign"), TEXT),
                "question_anno": dict.fromkeys(("more_effect_dir", "less_effect_dir", "more_cause_prop"), TEXT),
            },
            label="answerKey",
            label_type=TEXT,
        ),
        HubSet(
            "google-research-datasets/paws",
            labels=range(2),
            splits={"train": 10, "test": 4, "validation": 4},
            columns={"id": INT, "sentence1": TEXT, "sentence2": TEXT},
            label_type=yes_no,
            config="labeled_final",
            folder="labeled_final",
            others=("labeled_swap", "unlabeled_final"),
        ),
        texts(
            "microsoft/wiki_qa",
            ("question_id", "question", "document_title", "answer"),
            range(2),
            yes_no,
            splits={"test": 4, "validation": 4, "train": 10},
        ),
        texts(
            "allenai/winogrande",
            ("sentence", "option1", "option2"),
            ("1", "2"),
            TEXT,
            label="answer",
            splits={"train": 10, "test": 4, "validation": 40},
            config="winogrande_xl",
            folder="winogrande_xl",
            others=("winogrande_xs", "winogrande_s", "winogrande_m", "winogrande_l", "winogrande_debiased"),
            hidden={"test": ""},
        ),
        HubSet(
            "aps/super_glue",
            labels=range(2),
            splits={"train": 10, "validation": 10, "test": 4},
            columns={
                "text": TEXT,
                **dict.fromkeys(("span1_index", "span2_index"), INT),
                **dict.fromkeys(("span1_text", "span2_text"), TEXT),
                "idx": INT,
            },
            label_type=ClassLabel(names=["False", "True"]),
            config="wsc.fixed",
            folder="wsc.fixed",
            others=("axb", "axg", "boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"),
            hidden={"test": -1},
        ),
        texts(
            "google/boolq",
            ("question", "passage"),
            (False, True),
            Value("bool"),
            label="answer",
            splits={"train": 10, "validation": 4},
        ),
        HubSet(
            "allenai/openbookqa",
            labels="ABCD",
            splits={"train": 5, "validation": 2, "test": 2},
            columns={"id": TEXT, "question_stem": TEXT, "choices": CHOICES},
            label="answerKey",
            label_type=TEXT,
            config="main",
            folder="main",
            others=("additional",),
        ),
        texts(
            "stanfordnlp/imdb",
            ("text",),
            range(2),
            ClassLabel(names=["neg", "pos"]),
            splits={"train": 10, "test": 4, "unsupervised": 4},
            config="plain_text",
            folder="plain_text",
            hidden={"unsupervised": -1},
        ),
        texts(
            "fancyzhx/ag_news",
            ("text",),
            range(4),
            ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"]),
            splits={"train": 5, "test": 2},
        ),
        texts(
            "dair-ai/emotion",
            ("text",),
            range(6),
            ClassLabel(names=["sadness", "joy", "love", "anger", "fear", "surprise"]),
            config="split",
            folder="split",
            others=("unsplit",),
            splits={"train": 4, "validation": 2, "test": 2},
        ),
    ]


# ------------------------------------------------------------------------------------------------ rows


def rows_of(made: HubSet, split: str, rows: int | None = None) -> dict[str, list[Any]]:
    """Column -> its values; every class in turn."""
    draw = random.Random(f"{made.name} {split}")
    classes = made.classes_of(split)[:rows]
    columns: dict[str, list[Any]] = {}
    for column, feature in made.columns.items():
        columns[column] = [value_of(made, feature, column, split, row, kind, draw) for row, kind in enumerate(classes)]
    if split in made.hidden:
        columns[made.label] = [made.hidden[split]] * len(classes)
    else:
        columns[made.label] = [made.labels[kind] for kind in classes]
    return columns


def value_of(made: HubSet, feature: Any, column: str, split: str, row: int, kind: int, draw: random.Random) -> Any:
    """What one cell holds. A label that is none of the task's is any."""
    if isinstance(feature, Image):
        return {"bytes": picture(made, split, row, kind), "path": f"{row}.png"}
    if isinstance(feature, ClassLabel):
        return row % feature.num_classes
    if feature == CHOICES:
        count = len(made.labels)
        return {"text": [f"{draw.choice(WORDS)} {i}" for i in range(count)], "label": list(LETTERS[:count])}
    if isinstance(feature, dict):
        return {name: draw.choice(WORDS) for name in feature}
    if feature == TEXT:
        # Several columns make one input: that they are of one row shows in each of them.
        return f"{draw.choice(WORDS)} {column} {split} row{row} kind{kind}"
    return row


def picture(made: HubSet, split: str, row: int, kind: int) -> bytes:
    """A PNG whose first pixels say what it is of, in the two bytes of each number."""
    pixels = np.random.default_rng([row, kind]).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    for place, number in enumerate((list(made.splits).index(split), row, kind)):
        pixels[0, 2 * place : 2 * place + 2] = divmod(number, 256)
    shown = pixels if made.gray else np.stack([pixels] * 3, axis=-1)
    file = io.BytesIO()
    Pictures.fromarray(shown).save(file, "png")
    return file.getvalue()


def told_by(made: HubSet, image: Pictures.Image) -> tuple[str, int, int]:
    """Split, row and class that an image says of itself."""
    pixels = np.asarray(image.convert("L")).astype(int)
    place, row, kind = (int(pixels[0, 2 * i] * 256 + pixels[0, 2 * i + 1]) for i in range(3))
    return list(made.splits)[place], row, kind


# ----------------------------------------------------------------------------------------- repositories


def repository(made: HubSet) -> Repository:
    """Its files, in one commit."""
    kept = Repository(private=made.gated)
    kept.commit(web_dataset(made) if made.tars else parquet_files(made))
    return kept


def parquet_files(made: HubSet) -> dict[str, bytes]:
    files = {"README.md": card(made).encode()}
    for split in made.splits:
        files[f"{made.folder}/{split}-00000-of-00001.parquet"] = parquet(made, split)
    for other in made.others:
        files[f"{other}/train-00000-of-00001.parquet"] = parquet(made, "train", rows=1)
    return files


def parquet(made: HubSet, split: str, rows: int | None = None) -> bytes:
    out = io.BytesIO()
    Dataset.from_dict(rows_of(made, split, rows), made.features, split=NamedSplit(split)).to_parquet(out)
    return out.getvalue()


def card(made: HubSet) -> str:
    """README.md, whose first lines say what configurations, splits and columns there are."""
    about = DatasetCardData()
    counts = {made.config: {split: len(made.classes_of(split)) for split in made.splits}}
    counts |= {other: {"train": 1} for other in made.others}
    infos = {name: info_of(made, name, of_splits) for name, of_splits in counts.items()}
    DatasetInfosDict(infos).to_dataset_card_data(about)
    configs = {other: {"data_files": [{"split": "train", "path": f"{other}/train-*"}]} for other in made.others}
    configs[made.config] = {
        "data_files": [{"split": split, "path": f"{made.folder}/{split}-*"} for split in made.splits]
    }
    if made.others and made.config in DEFAULTS:
        configs[made.config]["default"] = True
    MetadataConfigs(configs).to_dataset_card_data(about)
    return f"---\n{about}\n---\n# {made.name}\n"


def info_of(made: HubSet, config: str, counts: Mapping[str, int]) -> DatasetInfo:
    """What a card says of a configuration; whoever reads it checks how many rows there are."""
    splits = SplitDict()
    for split, count in counts.items():
        splits.add(SplitInfo(name=split, num_examples=count))
    return DatasetInfo(features=made.features, config_name=config, splits=splits)


def web_dataset(made: HubSet) -> dict[str, bytes]:
    """A folder of tar files a split, and beside them what LAION's CLIP benchmark reads."""
    files = {"classnames.txt": b"angry\n", "zeroshot_classification_templates.txt": b"a {c} face.\n"}
    (column,) = made.columns
    for split in made.splits:
        columns = rows_of(made, split)
        members = []
        for row, (image, kind) in enumerate(zip(columns[column], columns[made.label], strict=True)):
            members.append((f"s{row:07d}.{made.label}", str(kind).encode()))
            members.append((f"s{row:07d}.{column}", image["bytes"]))
        half = len(members) // 4 * 2  # a row is two members
        files[f"{split}/nshards.txt"] = b"2\n"
        files[f"{split}/0.tar"] = tar_of(members[:half])
        files[f"{split}/1.tar"] = tar_of(members[half:])
    return files


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def fill(hub: Hub, sets: Sequence[HubSet]) -> None:
    disable_progress_bars()
    for made in sets:
        hub.repositories[f"datasets/{made.name}"] = repository(made)


# --------------------------------------------------------------------------- what is not on the Hub


def write_story_cloze(folder: Path) -> None:
    """The two files that Story Cloze's authors give out, called as the recipe says."""
    columns = [f"InputSentence{i}" for i in range(1, 5)] + [f"RandomFifthSentenceQuiz{i}" for i in (1, 2)]
    folder.mkdir()
    for split in ("train", "test"):
        lines = [",".join(["InputStoryid", *columns, "AnswerRightEnding"])]
        for row in range(80):
            kind = row % 2
            cells = [f"{column} {split} row{row} kind{kind}" for column in columns]
            lines.append(",".join([f"{split}-{row}", *cells, str(kind + 1)]))
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
