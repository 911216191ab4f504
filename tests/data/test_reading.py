"""What `docs/data.md` says of folders, labels, missing values and splits, with the values that come out."""

import json
import os
import random
import socket
import tempfile
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from talos_ray import SpecError, Task
from talos_ray.scaffold import scaffold
from talos_ray.spec import load_spec
from talos_ray.tasks import load_inputs, load_rows, load_task, told_of

TEXT = {"name": "t", "kind": "text", "input": "text"}


def pictures(root: Path, names: list[str]) -> str:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i % 256, i // 256, 0)).save(root / name)
    return str(root)


def read(data: str | Path, **more) -> dict[str, Counter]:
    """How many examples of each class every split has."""
    found = load_task(Task(**{"name": "t", "data": str(data), **more}), 0)
    return {
        s: Counter(found.classes[i] for i in getattr(found, s).labels.tolist()) for s in ("train", "validation", "test")
    }


def total(data: str | Path, **more) -> Counter:
    return sum(read(data, **more).values(), Counter())


def csv_of(path: Path, rows: list[tuple]) -> str:
    path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
    return str(path)


def refused(match: str, data: str | Path, **more) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        load_task(Task(**{"name": "t", "data": str(data), **more}), 0)
    assert len(str(caught.value).splitlines()) <= 2


# ------------------------------------------------------------------------------------------- folders


def test_every_image_of_a_folder_is_read(tmp_path):
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)] + [f"cat/train-{i}.png" for i in range(3)]
    names += ["dog/test.PNG", "dog/val_1.jpg"]
    assert total(pictures(tmp_path / "a", names)) == {"cat": 13, "dog": 12}
    assert total(pictures(tmp_path / "b", [f"{c}/{i}.png" for c in ("train", "plane") for i in range(10)])) == {
        "train": 10,
        "plane": 10,
    }
    pictures(tmp_path / "c", [f"cat/{i}.png" for i in range(10)])
    os.symlink(pictures(tmp_path / "elsewhere", [f"{i}.png" for i in range(10)]), tmp_path / "c" / "dog")
    assert total(tmp_path / "c") == {"cat": 10, "dog": 10}
    wrapped = pictures(tmp_path / "d", [f"pets/{c}/{i}.png" for c in ("cat", "dog") for i in range(10)])
    assert total(wrapped) == {"cat": 10, "dog": 10}
    splits = [f"{s}/{c}/{i}.png" for s in ("train", "val", "testing") for c in ("cat", "dog") for i in range(3)]
    assert {s: sum(n.values()) for s, n in read(pictures(tmp_path / "e", splits)).items()} == {
        "train": 6,
        "validation": 6,
        "test": 6,
    }
    both = pictures(tmp_path / "f", [f"{c}/{i}.png" for c in ("train", "test") for i in range(10)])
    assert total(both, classes=("train", "test")) == {"train": 10, "test": 10}


def test_images_without_a_place_are_named(tmp_path):
    base = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)]
    for extra, match in (
        ("7.png", "1 of 21 images lie where no class can be told, '7.png'"),
        ("cat/old/1.png", "no class can be told, 'cat/old/1.png'"),
        ("train/cat/1.png", "beside the splits train there are images in 'cat', 'dog'"),
    ):
        refused(match, pictures(tmp_path / extra.replace("/", "-"), [*base, extra]))
    mixed = pictures(
        tmp_path / "mixed",
        [f"{s}/{c}/{i}.png" for s in ("train", "test", "more") for c in ("cat", "dog") for i in range(3)],
    )
    refused("beside the splits test, train there are images in 'more'", mixed)
    flat = pictures(tmp_path / "flat", [f"{s}/{i}.png" for s in ("train", "test") for i in range(9)])
    refused(r"sound like splits, but .*classes: \[test, train\]", flat)
    odd = Path(pictures(tmp_path / "odd", base))
    (odd / "cat" / "11.heic").write_bytes(b"heic")
    (odd / "cat" / "notes.txt").write_text("mine")
    refused("1 files are no images that can be read, 'cat/11.heic'", odd)
    os.symlink(odd, tmp_path / "odd" / "dog" / "again")
    refused("is a link to a folder that it lies in", odd)
    piped = Path(pictures(tmp_path / "piped", base))
    os.mkfifo(piped / "cat" / "12.png")
    refused("12.png' is a pipe, a socket or a device", piped)


def test_nothing_beside_images_is_passed_over_without_a_word(tmp_path):
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(8)]
    inner = Path(pictures(tmp_path / "a", [f"pictures/{n}" for n in names]))  # which alone holds all classes
    (inner / "more.zip").write_bytes(b"PK")
    refused("1 files are no images that can be read, 'more.zip'", inner)
    (inner / "more.zip").rename(inner / "notes.txt")
    assert total(inner) == {"cat": 8, "dog": 8}

    listed = Path(pictures(tmp_path / "b", names))
    rows = "".join(f"{n},{n.split('/')[0]}\n" for n in names)
    (listed / "metadata.csv").write_text(f"file_name,label\n{rows}")
    assert total(listed) == {"cat": 8, "dog": 8}
    for odd in ("cat/9.heic", "more.zip"):
        (listed / odd).write_bytes(b"PK")
        refused(f"1 files are no images that can be read, '{odd}'", listed)
        (listed / odd).unlink()

    splits = Path(pictures(tmp_path / "c", [f"{s}/{n}" for s in ("train", "test") for n in names]))
    (splits / "val").mkdir()  # a copy that failed
    pictures(tmp_path / "d", [".x/1.png", "fox.png"])
    os.symlink(tmp_path / "d", splits / "train" / "fox")
    pictures(splits, ["train/cat/.8.png", "train/cat/._1.png"])
    found = load_task(Task(name="t", data=str(splits)), 0)
    words = ("hidden folders 'train/fox/.x' are", "hidden files 'train/cat/.8.png' are", "folder(s) 'val' of")
    assert all(w in note for w, note in zip(words, found.notes[:3], strict=True))
    assert found.classes == ("cat", "dog", "fox")
    task = Task(name="t", data=str(splits)).model_dump()
    answered = load_inputs(task, splits / "train", ("cat", "dog"))
    assert len(answered) == 17 and len(answered.notes) == 2
    (splits / os.fsdecode(b"test/cat/\xff.png")).write_bytes(b"")
    refused("the name of '.*udcff.png' is not UTF-8", splits)


def test_tables_of_a_folder_are_splits_by_name(tmp_path):
    for name, n in (("train", 20), ("val", 6), ("test", 8)):
        (tmp_path / "a").mkdir(exist_ok=True)
        csv_of(tmp_path / "a" / f"{name}.csv", [(f"{name} {i}", "xy"[i % 2]) for i in range(n)])
    assert {s: sum(n.values()) for s, n in read(tmp_path / "a", **TEXT).items()} == {
        "train": 20,
        "validation": 6,
        "test": 8,
    }
    csv_of(tmp_path / "a" / "more.csv", [("w", "x")])
    refused("name a split, and 'more.csv' do not", tmp_path / "a", **TEXT)
    (tmp_path / "a" / "more.csv").rename(tmp_path / "a" / "train-2.csv")
    assert sum(read(tmp_path / "a", **TEXT)["train"].values()) == 21
    (tmp_path / "a" / "rest.xlsx").write_bytes(b"PK")
    refused("'rest.xlsx' cannot be read", tmp_path / "a", **TEXT)
    (tmp_path / "a" / "rest.xlsx").unlink()
    (tmp_path / "a" / "test.jsonl").write_text('{"text": "a", "label": "x"}')
    refused("tables of several kinds", tmp_path / "a", **TEXT)


def test_a_folder_with_a_list_of_its_images(tmp_path):
    root = tmp_path / "listed"
    names = [f"{i:02d}.png" for i in range(20)]
    pictures(root, names)
    rows = ["file_name,kind", *(f"{n},{'xy'[i % 2]}" for i, n in enumerate(names))]
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    assert total(root, input="image", label="kind") == {"x": 10, "y": 10}
    pictures(root, [*names, "more.png"])
    refused("1 of 21 images are not in its metadata, '.*more.png'", root, input="image", label="kind")


NAMES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=6)
FOLDERS = st.dictionaries(
    st.one_of(NAMES, st.sampled_from(["train", "test", "val", "data", "images"])),
    st.lists(st.one_of(NAMES, st.sampled_from(["train-1", "test", "validation_3", "metadata"])), min_size=1, max_size=6, unique_by=str.lower),
    min_size=2, max_size=4,
)  # fmt: skip
KINDS = st.sampled_from([(), ("train", "test"), ("train",)])


def check_folder(root: Path, folders: dict[str, list[str]], splits: tuple[str, ...]) -> None:
    where = Path(tempfile.mkdtemp(dir=root))  # a name drawn by `random` comes again: Hypothesis seeds it
    tops = splits or (".",)
    wanted = {(top, c): len(files) for top in tops for c, files in folders.items()}
    if len({c.lower() for c in folders}) < len(folders):
        return
    pictures(where, [f"{top}/{c}/{f}.png" for top in tops for c, files in folders.items() for f in files])
    try:
        found = total(where, test_split=None)
    except SpecError as error:
        assert str(where) in str(error) or "too few" in str(error)
        return
    by_class = Counter()
    for (_, c), n in wanted.items():
        by_class[c] += n
    assert found == by_class


@pytest.mark.parametrize("examples", [25, pytest.param(2000, marks=pytest.mark.slow)])
def test_folders_are_read_whole_or_refused(tmp_path, examples):
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(FOLDERS, KINDS)
    def holds(folders, splits):
        check_folder(tmp_path, folders, splits)

    holds()


# ------------------------------------------------------------------------------------- labels, missing values


def test_labels_are_found_by_name(tmp_path):
    pets = pictures(tmp_path / "pets", [f"{c}/{i}.png" for c in ("cat", "dog", "emu") for i in range(10)])
    turned = load_task(Task(name="t", data=pets, classes=("emu", "dog", "cat")), 0)
    paths = turned.train.rows.with_format("arrow")[:].column("image").to_pylist()
    assert [turned.classes[i] for i in turned.train.labels.tolist()] == [Path(p["path"]).parent.name for p in paths]
    refused("label 'emu', which is outside its 2 classes .*outside are 10 'emu'", pets, classes=("cat", "dog"))
    assert total(pets, classes=("cat", "dog"), unknown_classes="drop") == {"cat": 10, "dog": 10}
    task = Task(name="t", data=pets).model_dump()
    new = pictures(tmp_path / "new", [f"{c}/{i}.png" for c in ("emu", "cat", "zebra") for i in range(4)])
    with pytest.raises(SpecError, match="outside are 4 'zebra'"):
        load_rows(task, new, ("cat", "dog", "emu"))
    split = load_rows({**task, "unknown_classes": "drop"}, new, ("cat", "dog", "emu"))
    assert split.labels.tolist() == [0] * 4 + [2] * 4
    assert any("no example of 'dog'" in n for n in split.notes) and any(
        "4 'zebra' (unknown_classes: drop)" in n for n in split.notes
    )
    named = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["0", "1"])})
    rows = {"text": [f"w {i}" for i in range(20)], "label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows, features=named).to_parquet(str(tmp_path / "x.parquet"))
    assert total(tmp_path / "x.parquet", **TEXT, classes=("no", "yes")) == {"no": 10, "yes": 10}


def test_labels_as_they_are_written(tmp_path):
    digits = csv_of(tmp_path / "x.csv", [(f"w {i}", ("007", "012")[i % 2]) for i in range(20)])
    assert total(digits, **TEXT) == {"007": 10, "012": 10}
    odd = csv_of(tmp_path / "y.csv", [(f"w {i}", "n/a" if i == 13 else i % 2) for i in range(20)])
    refused("row 13 of split 'train' has label 'n/a' in column 'label', where others are numbers", odd, **TEXT)
    assert total(odd, **TEXT, missing_words=("n/a",), missing="drop") == {"0": 10, "1": 9}
    assert total(odd, **TEXT, classes=("0", "1", "n/a")) == {"0": 10, "1": 9, "n/a": 1}
    columns = {
        "text": pa.array([f"w {i}" for i in range(20)], pa.large_string()),
        "kind": pa.array(["a", "b"] * 10).dictionary_encode(),
        "flag": pa.array([True, False] * 10),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert total(tmp_path / "x.parquet", **TEXT, label="kind") == {"a": 10, "b": 10}
    assert total(tmp_path / "x.parquet", **TEXT, label="flag") == {"True": 10, "False": 10}


def test_what_is_missing_is_named_or_left_out(tmp_path):
    rows = [{"text": f"note {i}", "label": "ab"[i % 2]} for i in range(30)]
    rows[4]["label"] = None
    rows[9]["text"] = " "
    del rows[11]["text"]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(
        r"row 4 of split 'train' has no label in column 'label' \(3 rows lack something\)", tmp_path / "x.jsonl", **TEXT
    )
    task = Task(**TEXT, data=str(tmp_path / "x.jsonl"), missing="drop")
    assert load_task(task, 0).notes == (
        "task 't': 3 of 30 rows of train are left out (missing: drop), the first is row 4, which has no label in column 'label'",
    )
    assert total(tmp_path / "x.jsonl", **TEXT, missing="drop") == {"a": 14, "b": 13}
    csv_of(tmp_path / "y.csv", [("None", "None"), ("null", "rust")] * 10)
    assert total(tmp_path / "y.csv", **TEXT) == {"None": 10, "rust": 10}
    datasets.Dataset.from_dict({"q": ["a", "b"] * 10, "a": [["x"], [None]] * 10, "label": ["u", "v"] * 10}).to_parquet(
        str(tmp_path / "z.parquet")
    )
    refused(
        r"row 1 of split 'train' does not fit .*a value is missing \(null\)",
        tmp_path / "z.parquet",
        name="t",
        kind="text",
        input="{q} {a[0]}",
    )
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    image = Image.new("RGB", (4, 4))
    datasets.Dataset.from_dict(
        {"image": [image, None] * 10, "label": ["u", "v", "v", "u"] * 5}, features=features
    ).to_parquet(str(tmp_path / "i.parquet"))
    refused("row 1 of split 'train' has no image in column 'image'", tmp_path / "i.parquet")
    assert total(tmp_path / "i.parquet", missing="drop") == {"u": 5, "v": 5}


def test_names_of_image_files_are_no_texts(tmp_path):
    pictures(tmp_path, [f"{i}.png" for i in range(12)])
    csv_of(tmp_path / "x.csv", [(f"{i}.png", "ab"[i % 2]) for i in range(12)])
    refused("holds names of image files, like '0.png'; wanted texts; set kind: image", tmp_path / "x.csv", **TEXT)
    assert total(tmp_path / "x.csv", input="text") == {"a": 6, "b": 6}


def test_classes_that_nobody_can_tell_apart(tmp_path):
    data = csv_of(tmp_path / "x.csv", [(f"w {i}", "ab"[i % 2]) for i in range(20)])
    refused("its classes hold 'a' twice", data, **TEXT, classes=("a", "b", "a"))
    refused(
        "its phrases hold 'a thing' and 'a  thing', which differ in blanks only",
        data,
        **TEXT,
        phrases=("a thing", "a  thing"),
    )
    refused("one of its phrases is empty", data, **TEXT, phrases=("a thing", " "))


# --------------------------------------------------------------------------------------- splits, changes


def test_shares_strata_and_content(tmp_path):
    rows = [(f"w {i}", "rare" if i % 20 == 0 else "common") for i in range(200)]
    data = csv_of(tmp_path / "x.csv", rows)
    shares = read(data, **TEXT, validation_share=0.2, test_share=0.5, stratified=True)
    assert shares == {
        "test": {"common": 95, "rare": 5},
        "validation": {"common": 38, "rare": 2},
        "train": {"common": 57, "rare": 3},
    }
    shuffled = csv_of(tmp_path / "y.csv", random.Random(1).sample(rows, len(rows)))
    for how in ({}, {"stratified": True}):
        a, b = (load_task(Task(**TEXT, data=d, split_by="content", **how), 0) for d in (data, shuffled))
        assert [getattr(a, s).fingerprint() for s in ("train", "validation", "test")] == [
            getattr(b, s).fingerprint() for s in ("train", "validation", "test")
        ]
        assert (len(a.train), len(a.validation), len(a.test)) == (140, 20, 40)
    a, b = (load_task(Task(**TEXT, data=d), 0) for d in (data, shuffled))
    assert a.test.fingerprint() != b.test.fingerprint()  # by position, as ever
    few = csv_of(tmp_path / "few.csv", [(f"w {i}", "rare" if i == 0 else "common") for i in range(30)])
    told = [told_of(load_task(Task(**TEXT, data=few), seed)) or "" for seed in range(4)]
    assert any("its test split has no example of 'rare'" in t for t in told)
    with pytest.raises(Exception, match="leave nothing to train on"):
        Task(**TEXT, data=data, validation_share=0.5, test_share=0.5)


def test_inputs_in_two_splits(tmp_path):
    (tmp_path / "a").mkdir()
    csv_of(tmp_path / "a" / "train.csv", [(f"w {i}", "ab"[i % 2]) for i in range(20)])
    csv_of(tmp_path / "a" / "validation.csv", [(f"v {i}", "ab"[i % 2]) for i in range(6)])
    csv_of(tmp_path / "a" / "test.csv", [(f"w {i}" if i < 4 else f"v {i}", "ab"[i % 2]) for i in range(6)])
    notes = load_task(Task(**TEXT, data=str(tmp_path / "a")), 0).notes
    assert notes[0].startswith(
        "task 't': 2 of 6 inputs of validation stand in test, too; 4 of 20 inputs of train stand in validation or test, too; one is 'v 4'"
    )
    refused("2 of 6 inputs of validation stand in test, too", tmp_path / "a", **TEXT, duplicates="refuse")
    assert {s: sum(n.values()) for s, n in read(tmp_path / "a", **TEXT, duplicates="drop").items()} == {
        "train": 16,
        "validation": 4,
        "test": 6,
    }
    images = Path(
        pictures(
            tmp_path / "b",
            [f"{s}/{c}/{i}.png" for s in ("train", "test", "val") for c in ("cat", "dog") for i in range(5)],
        )
    )
    (images / "test/cat/0.png").write_bytes((images / "train/dog/3.png").read_bytes())
    assert (
        "1 of 10 inputs of train stand in validation or test" in load_task(Task(name="t", data=str(images)), 0).notes[0]
    )


def test_data_that_change_are_read_again(tmp_path):
    path = tmp_path / "x.csv"
    task = Task(**TEXT, data=csv_of(path, [(f"a {i}", "ab"[i % 2]) for i in range(20)]))
    first = load_task(task, 0)
    assert load_task(task, 0) is first
    stamp = path.stat()
    csv_of(path, [(f"b {i}", "cd"[i % 2]) for i in range(20)])  # as many bytes
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert load_task(task, 0).classes == ("c", "d")
    pets = pictures(tmp_path / "pets", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)])
    assert total(pets) == {"cat": 10, "dog": 10}
    pictures(tmp_path / "pets", ["cat/new.png"])
    assert total(pets) == {"cat": 11, "dog": 10}
    pq.write_table(pa.table({"text": ["a", "b"] * 10, "label": ["u", "v"] * 10}), tmp_path / "x.parquet")
    stamp = (tmp_path / "x.parquet").stat()
    assert total(tmp_path / "x.parquet", **TEXT) == {"u": 10, "v": 10}
    pq.write_table(pa.table({"text": ["a", "b"] * 15, "label": ["u", "w"] * 15}), tmp_path / "x.parquet")
    os.utime(tmp_path / "x.parquet", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same time, other bytes
    assert total(tmp_path / "x.parquet", **TEXT) == {"u": 15, "w": 15}


# ------------------------------------------------------------------------------------------------ init


def test_init_reads_what_check_reads(tmp_path, monkeypatch):
    def made(folder: Path) -> list[Task]:
        (folder / "spec.yaml").write_text(scaffold(folder), encoding="utf-8")
        return list(load_spec(folder / "spec.yaml").tasks)

    a = tmp_path / "a"
    pictures(a, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)])
    (task,) = made(a)
    assert task.name == "a" and load_task(task, 0).classes == ("cat", "dog")
    monkeypatch.chdir(a)
    assert "output: ../runs/mine" in scaffold(a)  # not among the data
    b = tmp_path / "b"
    pictures(b, [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in ("cat", "dog") for i in range(10)])
    assert len(load_task(made(b)[0], 0).test) == 20
    c = tmp_path / "c"
    c.mkdir()
    for name, n in (("train", 20), ("test", 8), ("val", 6)):
        csv_of(c / f"{name}.csv", [(f"{name} {i}", "xy"[i % 2]) for i in range(n)])
    (task,) = made(c)
    assert [len(getattr(load_task(task, 0), s)) for s in ("train", "validation", "test")] == [20, 6, 8]
    d = tmp_path / "d: #1"
    d.mkdir()
    texts = pa.array([f"a text {i}" for i in range(20)], pa.large_string())
    pq.write_table(
        pa.table({"text": texts, "y: #": pa.array(["a\nb", "c"] * 10).dictionary_encode()}), d / "it's: «ü».parquet"
    )
    pq.write_table(pa.table({"text": texts, "label": pa.array([True, False] * 10)}), d / "yes.parquet")
    csv_of(d / "yes.csv", [(f"w {i}", ("007", "012")[i % 2]) for i in range(20)])
    tasks = made(d)
    assert {t.name: load_task(t, 0).classes for t in tasks} == {
        "it_s_____": ("a\nb", "c"), "yes": ("007", "012"), "yes_2": ("False", "True"),
    }  # fmt: skip


def test_what_lies_here_is_read_without_a_word_to_anybody(tmp_path, monkeypatch):
    rows = [(f"t{i}", "ab"[i % 2]) for i in range(20)]
    csv_of(tmp_path / "x.csv", rows)
    table = pa.table({"text": [t for t, _ in rows], "label": [c for _, c in rows]})
    pq.write_table(table, tmp_path / "x.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    card = tmp_path / "card"
    card.mkdir()
    pq.write_table(table, card / "all.parquet")
    (card / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: all.parquet\n---\n")
    pictures(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(8)])
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *place, **more: asked.append(place) or [])
    for name in ("x.csv", "x.parquet", "saved", "card"):
        assert total(tmp_path / name, kind="text", input="text") == {"a": 10, "b": 10}
    assert total(tmp_path / "images") == {"a": 8, "b": 8}
    assert total("demo:pointers")
    assert asked == []
