"""What lies in a folder of data: images a class, or tables a split. Every file is accounted for; one that is not is
named.

Only folders say what a file is: its class and its split are never read off its own name, so `train-3.png` is a picture
like `3.png`. Folders that are links are read like others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from talos_ray.data.tables import KINDS
from talos_ray.errors import SpecError

SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "valset", "devset"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "testset"), "test"),
}
# What Pillow opens by these names.
IMAGES = frozenset(
    [
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".ico",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pcx",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".psd",
        ".sgi",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
# Files that people leave beside data, and that are no data themselves.
BESIDE = frozenset(
    [
        ".cfg",
        ".css",
        ".html",
        ".ini",
        ".ipynb",
        ".js",
        ".json",
        ".log",
        ".md",
        ".pdf",
        ".py",
        ".rst",
        ".sh",
        ".toml",
        ".txt",
        ".xml",
        ".yaml",
        ".yml",
    ]
)
NAMELESS = frozenset(("license", "licence", "readme", "notice", "makefile", "thumbs.db", "desktop.ini", "checksums"))
# Data that nothing here reads: to pass them over would be to lose rows.
UNREAD = frozenset(
    [
        ".7z",
        ".arrow",
        ".avro",
        ".bz2",
        ".csvs",
        ".db",
        ".feather",
        ".gz",
        ".npy",
        ".npz",
        ".ods",
        ".orc",
        ".pickle",
        ".pkl",
        ".rar",
        ".sqlite",
        ".tar",
        ".tgz",
        ".tsvs",
        ".xls",
        ".xlsx",
        ".xz",
        ".zip",
        ".zst",
    ]
)
TOOLS = frozenset((".git", ".ipynb_checkpoints", ".cache", ".dvc", ".thumbnails", ".Trash"))  # which keep copies
# How a name ends of which there are several: train-00000-of-00002, with a hash behind or without.
SHARD = re.compile(r"[-_.]?(\d{1,6})[-_]of[-_](\d{1,6})([-_][0-9a-f]{8,})?$")
SHOWN = 3  # files that a message names
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as datasets' imagefolder names a list of images
PUBLISHED = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
)  # of the Hub's tools, no rows


@dataclass(frozen=True)
class Images:
    """Files and their classes' numbers, a split; class names in label order."""

    classes: tuple[str, ...]
    splits: Mapping[str, list[tuple[Path, int]]]
    empty: tuple[str, ...]  # folders of no image


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and those below, through links, hidden ones left out. Raises SpecError where links lead in
    a circle."""
    yield from _below(folder, ())


def _below(folder: Path, within: tuple[str, ...]) -> Iterator[Path]:
    # By where links lead to: within a circle a folder has a longer name at every turn.
    here = os.path.realpath(folder)
    if here in within:
        raise SpecError(
            f"folder {str(folder)!r} is a link to a folder that it lies in; wanted an end; take the link out"
        )
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            _check_name(entry)
            if entry.is_dir():
                yield from _below(Path(entry.path), (*within, here))
            elif entry.is_file():
                yield Path(entry.path)
            elif entry.is_symlink():
                raise SpecError(
                    f"{entry.path!r} is a link to what does not exist; wanted a file; mend the link or drop it"
                )
            else:
                raise SpecError(f"{entry.path!r} is a pipe, a socket or a device; wanted a file; move it away")


def _check_name(entry: os.DirEntry[str]) -> None:
    """Raises SpecError where a name is no text, which no table of files can hold."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise SpecError(f"the name of {entry.path!r} is not UTF-8; wanted characters; rename it") from None


def hidden_data(folder: Path) -> list[str]:
    """Hidden files and folders (by a leading dot) that are or hold images or tables, and are not read."""
    names = []
    for entry in _hidden(folder, ()):
        files = list(entry.rglob("*")) if entry.is_dir() else [entry]
        # A hidden JSON file alone is settings, not data.
        if not entry.is_dir() and entry.suffix.lower() == ".json":
            continue
        if any(file.suffix.lower() in IMAGES or file.suffix.lower() in KINDS for file in files):
            names.append(str(entry.relative_to(folder)))
    return names


def _hidden(folder: Path, within: tuple[str, ...]) -> Iterator[Path]:
    """What is hidden in a folder and those below, through links; not what tools keep there, and what macOS notes of a
    file (._NAME)."""
    here = os.path.realpath(folder)
    if here in within:  # whoever reads the folder tells of the circle
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith("."):
                if entry.name not in TOOLS and not entry.name.startswith("._"):
                    yield Path(entry.path)
            elif entry.is_dir() and entry.name != "__MACOSX":
                yield from _hidden(Path(entry.path), (*within, here))


def state_of(path: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of a file, or of all files of a folder: what tells whether it is still the
    same."""
    files = [path] if path.is_file() else []
    if path.is_dir():
        files = list(files_below(path))
    states = []
    for file in files:
        stat = file.stat()
        states.append((str(file), stat.st_size, stat.st_mtime_ns))
    return states


def told_some(files: Sequence[object]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(repr(str(file)) for file in files[:SHOWN]) + more


# ---------------------------------------------------------------------------------------------- images


def read_images(root: Path, classes: Collection[str] = (), beside: Collection[str] = ()) -> Images:
    """The images of `root/CLASS/file`, or of `root/SPLIT/CLASS/file`.

    Args:
        classes: names that are known to be classes, also where they sound like splits.
        beside: files, as paths from the root, that are known to be no images.

    Raises:
        SpecError: an image that has no class, or two possible ones; a file that nobody can read.
    """
    folder = _unwrapped(root)
    # Also what lies beside the only folder: that nobody reads it has to be told.
    everything = [file.relative_to(root) for file in files_below(root)]
    check_readable(root, [file for file in everything if str(file) not in beside])
    within = [root / file for file in everything if (root / file).is_relative_to(folder)]
    images = [file.relative_to(folder) for file in within if file.suffix.lower() in IMAGES]
    if not images:
        raise SpecError(f"{str(root)!r} holds 0 images; wanted a folder of images a class, like {root.name}/cat/1.png")
    splits = _split_folders(root, images, classes)
    depth = 3 if splits else 2
    unplaced = [image for image in images if len(image.parts) != depth]
    if unplaced:
        where = "SPLIT/CLASS/file" if splits else "CLASS/file"
        raise SpecError(
            f"{str(root)!r}: {len(unplaced)} of {len(images)} images lie where no class can be told, "
            f"{told_some(unplaced)}; wanted {where}; move them"
        )
    names = tuple(sorted({image.parts[-2] for image in images}))
    number = {name: i for i, name in enumerate(names)}
    images_of: dict[str, list[tuple[Path, int]]] = {}
    for image in images:
        split = SPLITS[image.parts[0].lower()] if splits else "train"
        images_of.setdefault(split, []).append((folder / image, number[image.parts[-2]]))
    if splits and len(images_of) < len(splits):  # train and training, say
        raise SpecError(
            f"{str(root)!r}: the folders {', '.join(splits)} name a split twice; wanted one each; merge them"
        )
    return Images(names, images_of, tuple(_empty(folder, names, splits)))


def _split_folders(root: Path, images: Sequence[Path], classes: Collection[str]) -> list[str]:
    """The outermost folders of images, where they are splits; none, where they are classes.

    Raises:
        SpecError: it cannot be told, or they are both.
    """
    depths: dict[str, list[int]] = {}  # outermost folder -> parts of its images' paths
    for image in images:
        if len(image.parts) > 1:
            depths.setdefault(image.parts[0], []).append(len(image.parts))
    tops = sorted(depths)
    named = [top for top in tops if top.lower() in SPLITS and top not in classes]
    # A split holds folders of classes; what only sounds like one and holds images is a class.
    deep = [top for top in named if min(depths[top]) > 2]
    if not named:
        return []
    if deep != named:
        if deep:
            raise SpecError(
                f"{str(root)!r}: of the folders {', '.join(named)} some hold a folder a class and some hold images; "
                "wanted the same in all; move them"
            )
        if len(named) == len(tops):
            raise SpecError(
                f"{str(root)!r}: the folders {', '.join(named)} sound like splits, but their images lie in no folder "
                f"of a class; wanted SPLIT/CLASS/file, or classes: [{', '.join(tops)}] if these are the classes"
            )
        return []
    others = [top for top in tops if top not in named]
    if others:
        raise SpecError(
            f"{str(root)!r}: beside the splits {', '.join(named)} there are images in {told_some(others)}; wanted "
            "splits only; move them"
        )
    return named


def images_below(root: Path) -> list[Path]:
    """All images of a folder and those below, in the order of their paths, whatever the folders are called.

    Raises:
        SpecError: there are none, or a file that nobody can read.
    """
    files = list(files_below(root))
    check_readable(root, files)
    images = [file for file in files if file.suffix.lower() in IMAGES]
    if not images:
        raise SpecError(f"{str(root)!r} holds 0 images; wanted at least 1; check the path")
    return images


def _unwrapped(root: Path) -> Path:
    """The folder itself, or the only one in it where that holds all classes, as archives unpack."""
    folder = root
    while True:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        folders = [entry for entry in entries if entry.is_dir()]
        images = [entry for entry in entries if entry.is_file() and Path(entry.name).suffix.lower() in IMAGES]
        if len(folders) != 1 or images or folders[0].name.lower() in SPLITS:
            return folder
        # A folder without folders is a class, the only one.
        only = Path(folders[0].path)
        inside = [entry for entry in os.scandir(only) if entry.is_dir() and not entry.name.startswith(".")]
        if not inside:
            return folder
        folder = only


def check_readable(root: Path, files: Sequence[Path]) -> None:
    """Raises SpecError where one of some files, which are paths in `root`, is neither an image nor plainly a note."""
    known = IMAGES | BESIDE
    odd = [file for file in files if file.suffix.lower() not in known and file.name.lower() not in NAMELESS]
    if odd:
        raise SpecError(
            f"{str(root)!r}: {len(odd)} files are no images that can be read, {told_some(odd)}; wanted PNG, JPEG or "
            "another of Pillow's formats; convert them or move them away"
        )


def _empty(folder: Path, names: Sequence[str], splits: Sequence[str]) -> Iterator[str]:
    """Folders of no image: beside those of the classes, or of the splits, and beside the classes in each of these."""
    known_in = {folder: splits or names}
    known_in |= {folder / split: names for split in splits}
    for root, known in known_in.items():
        for entry in os.scandir(root):
            shown = not entry.name.startswith(".") and entry.name != "__MACOSX"
            if shown and entry.is_dir() and entry.name not in known:
                yield entry.name


# ---------------------------------------------------------------------------------------------- tables


def tables_in(root: Path) -> dict[str, list[Path]]:
    """The tables of a folder, a split: by the folder that they lie in, or by their names (train.csv,
    data/test-00000-of-00001.parquet).

    Raises:
        SpecError: files of several kinds, some with a split and some without, or what nobody reads.
    """
    files = [file.relative_to(root) for file in files_below(root) if file.name not in PUBLISHED]
    # A file of an unknown kind that is called like a split holds rows, if anything does.
    unread = [file for file in files if file.suffix.lower() in UNREAD or (_is_odd(file) and split_of(file))]
    if unread:
        raise SpecError(
            f"{str(root)!r}: {told_some(unread)} cannot be read; wanted {', '.join(KINDS)}; unpack or convert, or "
            "move away"
        )
    beside = json_notes(files)
    tables = [file for file in files if file.suffix.lower() in KINDS and file not in beside]
    kinds = {KINDS[file.suffix.lower()]: file for file in tables}
    if len(kinds) > 1:
        raise SpecError(
            f"{str(root)!r} holds tables of several kinds, {told_some(list(kinds.values()))}; wanted one kind; name "
            "one file in `data`, or move the others"
        )
    check_shards(root, tables)
    split_by_file = {file: split for file in tables if (split := split_of(file)) is not None}
    if tables and not split_by_file:
        return {"train": [root / file for file in tables]}
    nameless = [file for file in tables if file not in split_by_file]
    if nameless:
        raise SpecError(
            f"{str(root)!r}: {told_some(list(split_by_file))} name a split, and {told_some(nameless)} do not; wanted a "
            "split in all names or in none; rename or move them"
        )
    tables_of: dict[str, list[Path]] = {}
    for file in sorted(split_by_file):
        tables_of.setdefault(split_by_file[file], []).append(root / file)
    return tables_of


def passed_over(root: Path) -> list[Path]:
    """Files beside a folder's tables of which nobody can tell whether they hold rows: they are not read."""
    files = [file.relative_to(root) for file in files_below(root)]
    beside = json_notes(files)
    return [file for file in files if _is_odd(file) or file.suffix.lower() == ".txt" or file in beside]


def json_notes(files: Sequence[Path]) -> list[Path]:
    """JSON files beside tables of another kind, which no split is named by: a list of class names, say."""
    suffixes = {file.suffix.lower() for file in files}
    if not (suffixes & set(KINDS)) - {".json"}:
        return []
    json_files = [file for file in files if file.suffix.lower() == ".json" and file.name not in PUBLISHED]
    return [file for file in json_files if split_of(file) is None]


def _is_odd(file: Path) -> bool:
    """Whether a file is neither a table nor an image, nor anything that is known to lie beside data."""
    suffix = file.suffix.lower()
    if file.name.startswith("_") and not suffix:  # _SUCCESS and the like, of those who write tables in parts
        return False
    known = suffix in KINDS or suffix in IMAGES or suffix in BESIDE or suffix in UNREAD
    return not known and file.name.lower() not in NAMELESS


def check_shards(root: Path, tables: Sequence[Path]) -> None:
    """Raises SpecError where a table says that it is one of several, and another of these is not there."""
    numbers_of: dict[tuple[Path, str, int], set[int]] = {}  # (folder, name, how many) -> those that are there
    for file in tables:
        shard = SHARD.search(file.stem)
        if shard is not None:
            name = file.stem[: shard.start()]
            numbers = numbers_of.setdefault((file.parent, name, int(shard[2])), set())
            numbers.add(int(shard[1]))
    for (folder, name, count), numbers in numbers_of.items():
        first = 0 if 0 in numbers else 1  # some count from 1
        missing = sorted(set(range(first, first + count)) - numbers)
        if missing:
            raise SpecError(
                f"{str(root / folder)!r}: of the {count} files called {name!r} {len(missing)} cannot be found, the "
                f"first is number {missing[0]}; wanted all of them; get them, or rename the others"
            )


@dataclass(frozen=True)
class SetName:
    """What the name of a table or a folder says: mnist_train-00000-of-00002 is a shard of mnist's training split."""

    words: tuple[str, ...]  # without the split's: what the splits of one set have in common
    split: str | None
    shard: bool
    numbered: bool = False  # the last word is a number, right behind the split's

    @classmethod
    def of(cls, name: str) -> SetName:
        """Of a name without its ending. A split is a word of it; of several the one at its beginning, else the one at
        its end."""
        whole = SHARD.sub("", name.lower())
        shard = len(whole) < len(name)
        words = tuple(re.split(r"[-_. ]+", whole))
        last = len(words) - 1
        places = [i for i, word in enumerate(words) if word in SPLITS]
        # In the middle a word may mean anything (imdb_test_bank_train).
        if len({SPLITS[words[i]] for i in places}) > 1:
            places = [i for i in places if i in (0, last)]
        if not places:
            return cls(words, None, shard)
        place = places[0]
        return cls(
            words=words[:place] + words[place + 1 :],
            split=SPLITS[words[place]],
            shard=shard,
            numbered=place == last - 1 and words[last].isdecimal(),
        )


def split_of(file: Path) -> str | None:
    """The split that stands in a table's name as a word (train-00000-of-00002, mnist_train, imdb_train_small), or that
    a folder of it is called."""
    folders = [folder.lower() for folder in reversed(file.parts[:-1])]  # the innermost first
    outer = next((SPLITS[folder] for folder in folders if folder in SPLITS), None)
    return SetName.of(file.stem).split or outer


def split_of_folder(file: Path) -> str:
    """The split that a folder on a path is called, the outermost first; '' if none is."""
    folders = [folder.lower() for folder in file.parts[:-1]]
    return next((SPLITS[folder] for folder in folders if folder in SPLITS), "")


def has_tables(root: Path) -> bool:
    # A list of images, metadata.csv, is no table of its own.
    for file in files_below(root):
        if file.suffix.lower() in KINDS and file.stem != "metadata" and file.name not in PUBLISHED:
            return True
    return False
