"""Labels by name in every split and in new data, and files that would be lost or misread without a word."""

import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_reading import TEXT, csv_of, pictures, read, refused, total

from talos_ray import SpecError, Task
from talos_ray.tasks import load_inputs, load_rows, load_task


def words(folder: Path, split: str, labels: list, count: int = 24) -> Path:
    """A split as JSON Lines, whose texts say which label was written."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{split}.jsonl"
    rows = [{"text": f"{split} {i} {labels[i % len(labels)]}", "label": labels[i % len(labels)]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_written(rows, classes) -> None:
    """Every input's class is the one that its text names."""
    texts = rows.rows[:][rows.column]
    assert [classes[i].lower() for i in rows.labels.tolist()] == [t.split()[-1].lower() for t in texts]


@pytest.mark.parametrize("classes", [("1", "2", "3", "unknown"), ("3", "unknown", "1", "2")])
def test_a_number_that_a_class_is_called_is_that_class_in_every_split(tmp_path, classes):
    ratings = tmp_path / "a"
    words(ratings, "train", ["1", "2", "3", "unknown"])
    words(ratings, "test", [1, 2, 3])
    task = Task(**TEXT, data=str(ratings), classes=classes)
    data = load_task(task, 0)
    for split in (data.train, data.validation, data.test):
        as_written(split, classes)
    new = csv_of(tmp_path / "new.csv", [(f"new {n}", n) for n in (3, 1, 2, 2)])
    as_written(load_rows(task.model_dump(), new, classes), classes)
    as_written(load_inputs(task.model_dump(), new, classes, labelled=True), classes)
    other = csv_of(tmp_path / "other.csv", [("new 0", 0), ("new 1", 1)])
    with pytest.raises(Exception, match="label 0, which is outside its 4 classes"):
        load_rows(task.model_dump(), other, classes)


def test_a_column_that_names_its_classes_by_numbers_is_read_by_these_names(tmp_path):
    def saved(place: str, names: list[str], values: list[int]) -> str:
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        texts = [f"{i} {names[v]}" for i, v in enumerate(values)]
        rows = datasets.Dataset.from_dict({"text": texts, "label": values}, features=features)
        rows.save_to_disk(str(tmp_path / place))
        return str(tmp_path / place)

    stars = saved("stars", ["1", "2", "3", "4", "5"], list(range(5)) * 8)
    data = load_task(Task(**TEXT, data=stars, classes=("1", "2", "4", "5"), unknown_classes="drop"), 0)
    as_written(data.train, data.classes)
    assert "'3'" in " ".join(data.notes) and sum(len(s) for s in (data.train, data.validation, data.test)) == 32
    task = Task(**TEXT, data=stars).model_dump()
    digits = tuple(map(str, range(10)))
    as_written(load_rows(task, saved("new", ["3", "7"], [0, 1, 1, 0]), digits), digits)
    unsaid = load_task(Task(**TEXT, data=saved("unsaid", ["0", "1"], [0, 1] * 20), classes=("no", "yes")), 0)
    assert [unsaid.classes[i] for i in unsaid.train.labels] == [
        ("no", "yes")[int(t.split()[-1])] for t in unsaid.train.rows[:]["text"]
    ]


def test_numbers_in_one_split_and_words_in_another_are_refused(tmp_path):
    words(tmp_path / "a", "train", [0, 1])
    words(tmp_path / "a", "test", ["neg", "pos"])
    refused(r"its labels are numbers in one split \(0, 1\) and words in another \('neg', 'pos'\)", tmp_path / "a", **TEXT)


@pytest.mark.parametrize("written", ["true", "True", "TRUE"])
def test_truth_values_are_the_words_for_them(tmp_path, written):
    words(tmp_path / "a", "train", [True, False])
    words(tmp_path / "a", "test", [written, "false"])
    found = read(tmp_path / "a", **TEXT)
    assert set(sum(found.values(), Counter())) == {"True", "False"} and found["test"] == {"True": 12, "False": 12}
    assert total(tmp_path / "a", **TEXT, classes=("false", "true")) == {"false": 24, "true": 24}


@pytest.mark.parametrize(
    "names", [("cafe\u0301", "caf\u00e9"), ("cat", "cat\u200b"), ("cat", "\ufeffcat"), ("a b", "a\u00a0b")]
)
def test_names_that_look_the_same_are_told(tmp_path, names):
    data = csv_of(tmp_path / "x.csv", [(f"w {i}", [*names, "dog"][i % 3]) for i in range(30)])
    refused("its classes hold .* and .*, which (look the same|differ in blanks only)", data, **TEXT)
    refused("its classes hold", pictures(tmp_path / "b", [f"{c}/{i}.png" for c in names for i in range(5)]))
    family = ("\U0001f468", "\U0001f468\u200d\U0001f469\u200d\U0001f467")  # a joiner that everybody sees
    emoji = csv_of(tmp_path / "e.csv", [(f"w {i}", family[i % 2]) for i in range(30)])
    assert total(emoji, **TEXT) == dict.fromkeys(family, 15)


def test_digits_of_other_scripts_and_broken_lines_are_words(tmp_path):
    data = csv_of(tmp_path / "x.csv", [(f"w {i}", ("1\u0663", "12")[i % 2]) for i in range(30)])
    assert total(data, **TEXT, classes=("1\u0663", "12")) == {"1\u0663": 15, "12": 15}
    data = csv_of(tmp_path / "y.csv", [(f"w {i}", ('"7\n"', "8")[i % 2]) for i in range(30)])
    assert total(data, **TEXT, classes=("7\n", "8"), quotes="csv") == {"7\n": 15, "8": 15}


# --------------------------------------------------------------------------------- several files


def test_files_of_a_split_hold_the_same_kinds_of_values(tmp_path):
    def parquet(name: str, labels: pa.Array, **more: pa.Array) -> None:
        (tmp_path / "p").mkdir(exist_ok=True)
        texts = pa.array([f"{name} {i}" for i in range(len(labels))])
        pq.write_table(pa.table({"text": texts, "label": labels, **more}), tmp_path / "p" / f"{name}.parquet")

    parquet("train-0", pa.array([0, 1] * 10))
    parquet("train-1", pa.array(["007", "1"] * 10))
    refused("column 'label' holds numbers in .*train-0.parquet' and texts in .*train-1.parquet'", tmp_path / "p", **TEXT)
    parquet("train-1", pa.array([0, 1] * 10, pa.int8()))
    assert total(tmp_path / "p", **TEXT) == {"0": 20, "1": 20}
    parquet("train-1", pa.array([0, 1] * 10), more=pa.array([1] * 20))
    refused(r"train-1.parquet' has other columns \(text, label, more\) than .*train-0.parquet' \(text, label\)", tmp_path / "p", **TEXT)

    csvs = tmp_path / "c"
    csvs.mkdir()
    csv_of(csvs / "train-0.csv", [(f"a {i}", ("007", "008")[i % 2]) for i in range(10)])
    csv_of(csvs / "train-1.csv", [(f"b {i}", ("7", "8")[i % 2]) for i in range(10)])
    assert total(csvs, **TEXT) == {"007": 5, "008": 5, "7": 5, "8": 5}
    csv_of(csvs / "train-0.csv", [(f"a {i}", i % 2) for i in range(10)])
    csv_of(csvs / "train-1.csv", [(f"b {i}", f"{i % 2}.0") for i in range(10)])
    assert total(csvs, **TEXT) == {"0": 10, "1": 10}
    words(tmp_path / "j", "train-0", [True, False])
    words(tmp_path / "j", "train-1", ["True", "False"])
    refused("holds truth values in .*train-0.jsonl' and texts in .*train-1.jsonl'", tmp_path / "j", **TEXT)


def test_a_split_is_named_at_either_end_and_no_file_is_lost(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    csv_of(folder / "mnist_train.csv", [(f"w {i}", "ab"[i % 2]) for i in range(20)])
    csv_of(folder / "mnist_test.csv", [(f"v {i}", "ab"[i % 2]) for i in range(8)])
    assert sum(read(folder, **TEXT)["test"].values()) == 8
    for odd in ("test.dat", "train.jsonlines", "test.csv.bak"):
        (folder / odd).write_text("x")
        refused(f"'{odd}' cannot be read", folder, **TEXT)
        (folder / odd).unlink()
    for odd in ("part.pq", "part-0001", "more.txt", ".hidden/more.csv", "label_map.json"):
        (folder / odd).parent.mkdir(exist_ok=True)
        (folder / odd).write_text("x")
    (folder / "README.md").write_text("what this is")
    notes = load_task(Task(**TEXT, data=str(folder)), 0).notes
    assert "the hidden folders '.hidden' are not read" in notes[0]
    assert "these files are not read: 'label_map.json', 'more.txt', 'part-0001' and 1 more" in notes[1] and len(notes) == 2

    shards = tmp_path / "s"
    shards.mkdir()
    for i in (0, 2):
        csv_of(shards / f"train-0000{i}-of-00003.csv", [(f"{i} {j}", "ab"[j % 2]) for j in range(20)])
    refused("of the 3 files called 'train' 1 cannot be found, the first is number 1", shards, **TEXT)
    csv_of(shards / "train-00001-of-00003.csv", [(f"1 {j}", "ab"[j % 2]) for j in range(20)])
    assert total(shards, **TEXT) == {"a": 30, "b": 30}


def test_a_hidden_folder_of_images_is_told(tmp_path):
    root = pictures(tmp_path / "a", [f"{c}/{i}.png" for c in ("cat", "dog", ".net", ".ipynb_checkpoints") for i in range(9)])
    found = load_task(Task(name="t", data=root), 0)
    assert found.classes == ("cat", "dog") and len(found.notes) == 1 and "hidden folders '.net'" in found.notes[0]


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: rows.csv\n  - split: test\n    path: other.csv\n---\n# x\n"


def test_tables_that_a_card_names_are_read_as_strictly_as_others(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    csv_of(tmp_path / "other.csv", [(f"v {i}", ("007", "None", "N/A")[i % 3]) for i in range(9)])
    csv_of(tmp_path / "rows.csv", [(f"{i:07d}", ("007", "None", "N/A")[i % 3]) for i in range(30)])
    found = load_task(Task(**TEXT, data=str(tmp_path)), 0)
    assert found.classes == ("007", "N/A", "None") and len(found.test) == 9
    assert set(found.train.rows[:]["text"]) <= {f"{i:07d}" for i in range(30)}
    csv_of(tmp_path / "rows.csv", [(f"hello {i}, world {i}", "ab"[i % 2]) for i in range(30)])
    refused(r"rows.csv', line 2: 3 cells; wanted 2", tmp_path, **TEXT)
    (tmp_path / "README.md").write_text(CARD.replace("  data_files:", "  sep: ';'\n  data_files:"))
    for name in ("rows", "other"):
        csv_of(tmp_path / f"{name}.csv", [(f"w {i}", "ab"[i % 2]) for i in range(30)])
        path = tmp_path / f"{name}.csv"
        path.write_text(path.read_text().replace(",", ";"))
    assert total(tmp_path, **TEXT) == {"a": 30, "b": 30}  # as the card says how


def test_a_list_of_images_is_read_as_strictly_as_other_tables(tmp_path):
    names = [f"{('train_', 'test_')[i % 2]}{i}.png" for i in range(24)]
    root = Path(pictures(tmp_path, names))
    how = {"input": "image", "label": "kind"}

    def listed(kinds: list, more: str = "", names: list[str] = names) -> None:
        rows = [f"{n},{kinds[i % len(kinds)]}" for i, n in enumerate(names)]
        (root / "metadata.csv").write_text("\n".join(["file_name,kind", *rows]) + f"\n{more}")

    for kinds in (["007", "008"], ["None", "N/A", "NA"], ["true", "false"]):
        listed(kinds)
        assert total(root, **how) == dict.fromkeys(kinds, 24 // len(kinds))
    listed(["a,", "b,"])
    refused("metadata.csv', line 2: 3 cells; wanted 2", root, **how)
    listed(["a", "b"], more=f"{names[0]},b\n")
    refused(f"row 24: '{names[0]}' is listed twice", root, **how)
    listed(["a", "b"], more="gone.png,b\n")
    refused("row 24: file_name is 'gone.png', and there is no such file", root, **how)
    (root / "metadata.csv").write_text("name,kind\nx,y\n")
    refused("metadata.csv' has no column 'file_name'; it has: name, kind", root, **how)
    (root / "metadata.csv").unlink()
    for split, count in (("train", 20), ("test", 6)):
        inside = [f"{i}.png" for i in range(count)]
        pictures(root / "split" / split, inside)
        rows = [{"file_name": n, "kind": "ab"[i % 2]} for i, n in enumerate(inside)]
        (root / "split" / split / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert {s: sum(n.values()) for s, n in read(root / "split", **how).items()} == {"train": 18, "validation": 2, "test": 6}


def test_rows_that_were_saved_in_another_form_are_the_same_rows(tmp_path):
    files = [str(tmp_path / "in" / f"{i}.png") for i in range(20)]
    pictures(tmp_path / "in", [f"{i}.png" for i in range(20)])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": files, "label": [i % 2 for i in range(20)]}, features=features)
    wanted = None
    for name, form in (
        ("plain", rows),
        ("undecoded", rows.cast_column("image", datasets.Image(decode=False))),
        ("torch", rows.with_format("torch")),
        ("numpy", rows.with_format("numpy", columns=["label"])),
    ):
        form.save_to_disk(str(tmp_path / name))
        split = load_task(Task(name="t", data=str(tmp_path / name), input="image"), 0).train
        seen = [(image.mode, image.tobytes()) for image in split.rows[:]["image"]]
        wanted = wanted or (seen, split.labels.tolist())
        assert (seen, split.labels.tolist()) == wanted, name


def test_a_stream_is_kept_for_the_columns_that_were_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TALOS_CACHE", str(tmp_path / "cache"))
    rows = "".join(f"T{i},hello {i},{'ab'[i % 2]},{'xy'[i % 2]}\n" for i in range(40))
    (tmp_path / "x.csv").write_text(f"title,text,label,topic\n{rows}")
    how = {**TEXT, "data": str(tmp_path / "x.csv"), "stream": 1000}
    assert total(**how) == {"a": 20, "b": 20}
    assert total(**{**how, "label": "topic"}) == {"x": 20, "y": 20}
    titles = load_task(Task(**{**how, "input": "title"}), 0).train
    assert all(t.startswith("T") for t in titles.rows[:][titles.column])


@pytest.mark.parametrize(
    ("rows", "inside"),
    [
        ('"I think so,p\nhe said so.",p\n', "he said so."),
        ('"12 inch pipe,p\nelbow 7",n\n', "elbow 7"),
        ('"open,p\n"", well"",n\nx",n\n', None),
    ],
)
def test_a_mark_that_takes_the_next_row_for_its_own_is_found(tmp_path, rows, inside):
    plain = "".join(f"w {i},{'pn'[i % 2]}\n" for i in range(20))
    (tmp_path / "x.csv").write_text(f"text,label\n{rows}{plain}")
    refused(f"the line '{inside or '.*'}' inside of it looks like a row", tmp_path / "x.csv", **TEXT)
    (tmp_path / "y.csv").write_text(f'text,label\n"Dear all,\nwe write, as ever,\nto say",p\n{plain}')
    assert total(tmp_path / "y.csv", **TEXT) == {"p": 11, "n": 10}


def test_a_blank_line_of_a_table_of_one_column_is_an_empty_cell(tmp_path):
    path = tmp_path / "x.csv"
    task = Task(**TEXT, data=str(path))
    path.write_text("text\nred fox\n\nblue whale\n")
    with pytest.raises(Exception, match="row 1"):
        load_inputs(task.model_dump(), str(path), ("a", "b"))
    path.write_text("text\nred fox\nblue whale\n\n\n")
    assert len(load_inputs(task.model_dump(), str(path), ("a", "b"))) == 2


def test_a_split_without_rows_is_named(tmp_path):
    rows = {"text": [f"w {i}" for i in range(20)], "label": ["a", "b"] * 10}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("string")})
    none = datasets.Dataset.from_dict({"text": [], "label": []}, features=features)
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features), "test": none})
    saved.save_to_disk(str(tmp_path / "saved"))
    refused("split 'test' of .*saved' holds 0 examples", tmp_path / "saved", **TEXT)
    words(tmp_path / "lines", "train", ["a", "b"])
    for text in ("", "\n\n", "[]"):
        (tmp_path / "lines" / "test.jsonl").write_text(text)
        refused("test.jsonl' holds 0 examples", tmp_path / "lines", **TEXT)


def test_classes_that_are_called_by_decimals_are_found_by_them(tmp_path):
    classes = ("1.0", "2.0", "3.0")
    task = Task(**TEXT, data=csv_of(tmp_path / "x.csv", [(f"w {n}", n) for n in ("1.0", "2.0") * 12]), classes=classes)
    as_written(load_task(task, 0).train, classes)
    swapped = task.model_copy(update={"classes": ("2.0", "1.0")})
    as_written(load_task(swapped, 0).train, swapped.classes)
    parquet = {"text": [f"w {n:.1f}" for n in (1.0, 2.0)] * 12, "label": [1.0, 2.0] * 12}
    pq.write_table(pa.table(parquet), tmp_path / "x.parquet")
    as_written(load_task(task.model_copy(update={"data": str(tmp_path / "x.parquet")}), 0).train, classes)
    as_written(load_rows(task.model_dump(), task.data, classes), classes)
    halves = csv_of(tmp_path / "y.csv", [(f"w {n}", n) for n in ("1.5", "2.0", "2.5") * 12])
    as_written(load_task(Task(**TEXT, data=halves, classes=("1.5", "2.0", "2.5")), 0).train, ("1.5", "2.0", "2.5"))
    refused("row 0 of split 'train' has label 0.123456789", csv_of(tmp_path / "z.csv", [(f"w {i}", (i + 1) * 0.12345678901234567) for i in range(60)]), **TEXT)


def test_a_truth_value_is_one_class_however_it_is_written(tmp_path):
    (tmp_path / "a").mkdir()
    csv_of(tmp_path / "a" / "train.csv", [(f"w {i}", ("TRUE", "FALSE")[i % 2]) for i in range(20)])
    csv_of(tmp_path / "a" / "test.csv", [(f"v {i}", ("True", "False", "true")[i % 3]) for i in range(9)])
    assert total(tmp_path / "a", **TEXT) == {"True": 16, "False": 13}
    assert total(csv_of(tmp_path / "b.csv", [(f"w {i}", ("TRUE", "FALSE")[i % 2]) for i in range(20)]), **TEXT) == {"TRUE": 10, "FALSE": 10}


def test_files_whose_names_look_like_patterns_are_read_alone(tmp_path):
    def one(name: str, word: str) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": [f"{word} {i}" for i in range(24)], "label": ["a", "b"] * 12}), tmp_path / name)
        return tmp_path / name

    one("a1.parquet", "other")
    one("xzy.parquet", "other")
    for name in ("a[1].parquet", "a*.parquet", "x?y.parquet"):
        rows = load_task(Task(**TEXT, data=str(one(name, "own"))), 0).train.rows
        assert all(t.startswith("own") for t in rows[:]["text"])
    one("da [v2]/train.parquet", "own")
    assert total(tmp_path / "da [v2]", **TEXT) == {"a": 12, "b": 12}


def test_a_card_that_names_what_stands_between_cells_is_read_strictly(tmp_path):
    (tmp_path / "README.md").write_text(CARD.replace("  data_files:", "  sep: ';'\n  data_files:"))

    def write(rows: str) -> None:
        for name in ("rows", "other"):
            (tmp_path / f"{name}.csv").write_text("text;label\n" + rows.replace("w ", f"{name} "))

    write("".join(f"w {i};{('007', '7x', 'None')[i % 3]}\n" for i in range(30)))
    assert total(tmp_path, **TEXT) == {"007": 20, "7x": 20, "None": 20}
    write("".join(f"w {i};{'ab'[i % 2]}\n" for i in range(30)) + "hello 0;a;x\n")
    refused("line 32: 3 cells; wanted 2", tmp_path, **TEXT)
    write('"open;a\nw 1";b\n' + "".join(f"w {i};{'ab'[i % 2]}\n" for i in range(30)))
    refused("inside of it looks like a row", tmp_path, **TEXT)


def test_classes_that_a_card_names_and_files_that_it_misses(tmp_path):
    head = "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': neg\n          '1': pos\n"
    (tmp_path / "README.md").write_text(head + "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n")
    (tmp_path / "data").mkdir()
    rows = {"text": [f"{('neg', 'pos')[i % 2]} {i} {('neg', 'pos')[i % 2]}" for i in range(24)], "label": [0, 1] * 12}
    pq.write_table(pa.table(rows), tmp_path / "data" / "train-00000-of-00001-0123456789abcdef.parquet")
    found = load_task(Task(**TEXT, data=str(tmp_path)), 0)
    assert found.classes == ("neg", "pos")
    as_written(found.train, found.classes)
    (tmp_path / "data" / "train-00000-of-00001-0123456789abcdef.parquet").rename(tmp_path / "data" / "train-00000-of-00002.parquet")
    refused("of the 2 files called 'train' 1 cannot be found, the first is number 1", tmp_path, **TEXT)
    with pytest.raises(Exception, match="config is 'cola', but no README.md"):
        (tmp_path / "README.md").unlink()
        load_task(Task(**TEXT, data=str(tmp_path), config="cola"), 0)


def test_lists_of_images_in_split_folders_and_of_linked_images(tmp_path):
    how = {"input": "image", "label": "kind"}
    for folder in ("data/train", "data/test"):
        pictures(tmp_path / "a" / folder, [f"{i}.png" for i in range(12)])
        rows = "".join(f"{i}.png,{(i % 2) if folder == 'data/train' else 'x'}\n" for i in range(12))
        (tmp_path / "a" / folder / "metadata.csv").write_text(f"file_name,kind\n{rows}")
    found = read(tmp_path / "a", **how, classes=("0", "1", "x"))
    assert found["test"] == {"x": 12} and sum(found["train"].values()) + sum(found["validation"].values()) == 12
    pictures(tmp_path / "blobs", ["same.png"])
    (tmp_path / "b").mkdir()
    for i in range(20):
        (tmp_path / "b" / f"{i}.png").symlink_to(tmp_path / "blobs" / "same.png")
    rows = "".join(f"{i}.png,{'xy'[i % 2]}\n" for i in range(20))
    (tmp_path / "b" / "metadata.csv").write_text(f"file_name,kind\n{rows}")
    assert total(tmp_path / "b", **how) == {"x": 10, "y": 10}
    (tmp_path / "b" / "20.png").symlink_to(tmp_path / "blobs" / "same.png")
    refused("1 of 21 images are not in its metadata", tmp_path / "b", **how)


def test_tables_beside_class_folders_are_notes(tmp_path):
    root = Path(pictures(tmp_path / "a", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(9)]))
    (root / "cat_to_name.json").write_text('{"cat": "a cat"}')
    (root / "labels.csv").write_text("a,b\n1,2\n")
    found = load_task(Task(name="t", data=str(root)), 0)
    assert found.classes == ("cat", "dog") and "these tables are not read: 'cat_to_name.json', 'labels.csv'" in found.notes[0]


def test_tables_in_split_folders_name_images_beside_themselves(tmp_path):
    for split, colour in (("train", 10), ("test", 200)):
        (tmp_path / split / "img").mkdir(parents=True)
        rows = []
        for i in range(12):
            Image.new("RGB", (4, 4), (colour, i, 0)).save(tmp_path / split / "img" / f"{i}.png")
            rows.append(f"img/{i}.png,{'ab'[i % 2]}\n")
        (tmp_path / split / "list.csv").write_text("image,label\n" + "".join(rows))
    pictures(tmp_path, [f"img/{i}.png" for i in range(12)])
    data = load_task(Task(name="t", data=str(tmp_path)), 0)
    for split, colour in ((data.train, 10), (data.test, 200)):
        assert {image.getpixel((0, 0))[0] for image in split.rows[:][split.column]} == {colour}


def test_a_split_word_anywhere_in_a_name(tmp_path):
    for i, (train, test) in enumerate((("imdb_train_small", "imdb_test_small"), ("trainset", "testset"))):
        folder = tmp_path / str(i)
        folder.mkdir()
        csv_of(folder / f"{train}.csv", [(f"w {i}", "ab"[i % 2]) for i in range(20)])
        csv_of(folder / f"{test}.csv", [(f"v {i}", "ab"[i % 2]) for i in range(8)])
        (folder / "_SUCCESS").write_text("")
        assert sum(read(folder, **TEXT)["test"].values()) == 8


def test_a_table_of_images_that_slides_is_no_note(tmp_path):
    root = Path(pictures(tmp_path / "a", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(9)]))
    (root / "list.csv").write_text("image,label\ncat/0.png,x\ncat/1.png,x,y\n")
    refused("list.csv', line 3: 3 cells; wanted 2", root)


def test_of_numbers_and_words_the_rarer_are_named(tmp_path):
    """As where a spreadsheet ends with a sum."""
    path = words(tmp_path, "train", ["a", "b"])
    with path.open("a") as more:
        more.write(json.dumps({"text": "sum", "label": "24"}) + "\n")
    refused("row 24 of split 'train' has label '24'.*others are words", path, **TEXT)
    path = words(tmp_path, "other", ["1", "2"])
    with path.open("a") as more:
        more.write(json.dumps({"text": "sum", "label": "all"}) + "\n")
    refused("row 24 of split 'train' has label 'all'.*others are numbers", path, **TEXT)


def test_a_label_that_stands_in_its_own_input_is_refused(tmp_path):
    path = words(tmp_path, "train", ["a", "b"])
    for more in ({"input": "label"}, {"input": "{text} ({label})"}, {"label": "text"}):
        refused("is its label, and stands in its input", path, **{**TEXT, **more})


def test_a_split_that_stands_for_another_is_compared_with_the_others(tmp_path):
    """test_split: validation, where a test split has no answers: nothing is chosen by it, and train may hold its rows."""
    words(tmp_path, "train", ["a", "b"], 30)
    same = (tmp_path / "train.jsonl").read_text().splitlines()[:10]
    (tmp_path / "validation.jsonl").write_text("\n".join(same))
    task = Task(**TEXT, data=str(tmp_path), test_split="validation")
    (note,) = load_task(task, 0).notes
    assert "of train stand in validation or test" in note
    data = load_task(task.model_copy(update={"duplicates": "drop"}), 0)
    assert len(data.test) == 10 and len(data.train) + len(data.validation) <= 20
    assert not set(map(repr, data.validation.contents())) & set(map(repr, data.test.contents()))
    refused("inputs", tmp_path, **TEXT, test_split="validation", duplicates="refuse")


def test_what_is_gone_through_otherwise_than_input_by_input_is_refused():
    settings = Task(**TEXT, data="x.csv").model_dump()
    frame = datasets.Dataset.from_dict({"text": ["a", "b"]}).to_pandas()
    for inputs, match in (
        ({"text": "a"}, "the inputs are a dict.*by its keys"),
        (frame, "the inputs are a DataFrame"),
        ({"a", "b"}, "an order that stays"),
        (b"ab", "the inputs are bytes"),
        (["a", "\ud800"], "input 1, .*half a character"),
    ):
        with pytest.raises(SpecError, match=match):
            load_inputs(settings, inputs, ("a", "b"))
    assert load_inputs(settings, frame["text"], ("a", "b")).rows[:]["text"] == ["a", "b"]
    pixels = {"name": "t", "data": "x", "kind": "image"}
    for shape in ((8, 8), (8, 8, 3)):
        with pytest.raises(SpecError, match="which is one image at most"):
            load_inputs(Task(**pixels).model_dump(), np.zeros(shape, np.uint8), ("a", "b"))
    assert len(load_inputs(Task(**pixels).model_dump(), np.zeros((5, 8, 8, 3), np.uint8), ("a", "b"))) == 5


def test_a_template_of_nothing_but_empty_texts_has_no_input(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"title": "" if i < 3 else "t", "body": "  " if i < 2 else f"b {i}", "label": "ab"[i % 2]} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = {"name": "t", "kind": "text", "input": "{title}: {body}"}
    refused("row 0 .* no text in any of its columns.*2 rows", path, **task)
    assert sum(total(path, **task, missing="drop").values()) == 28
    with pytest.raises(SpecError, match="row 0 .* no text in any of its columns"):
        load_inputs(Task(**task, data="x").model_dump(), str(path), ("a", "b"))
    nested = tmp_path / "y.jsonl"
    nested.write_text('{"a": {"b": "c"}, "label": "x"}\n' * 20)
    refused("row 0 .* does not fit the template .*'b'; correct", nested, **{**task, "input": "{a.b}"})


def test_new_data_without_rows_are_named(tmp_path):
    path = csv_of(tmp_path / "x.csv", [])
    for wanted in ({}, {"labelled": True}, {"labelled": False}):
        with pytest.raises(SpecError, match="holds 0 (examples|inputs)"):
            (load_inputs if wanted else load_rows)(Task(**TEXT, data=path).model_dump(), path, ("a", "b"), **wanted)


def test_messages_show_the_beginning_of_long_values(tmp_path):
    path = words(tmp_path, "train", ["a" * 5000, "b"])
    with pytest.raises(SpecError, match="row 0 .*5,002 characters") as caught:
        load_task(Task(**TEXT, data=str(path), classes=("b", "c")), 0)
    assert len(str(caught.value)) < 700
    csv_of(tmp_path / "x.csv", [("x" * 5000, "ab"[i % 2]) for i in range(20)])
    (note,) = load_task(Task(**TEXT, data=str(tmp_path / "x.csv")), 0).notes
    assert "inputs of train stand in" in note and len(note) < 700
    refused("no row of split 'train'.*12 'b'.*is left|is left.*12 'b'", path, **TEXT, classes=("c", "d"), unknown_classes="drop")


def test_files_of_a_split_count_their_classes_alike(tmp_path):
    """Each Parquet file may say itself which class its 0 is."""

    def write(name: str, labels: list, names: list[str] | None) -> None:
        rows = datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(len(labels))], "label": labels})
        rows = rows if names is None else rows.cast_column("label", datasets.ClassLabel(names=names))
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))

    write("train-0", [0, 1] * 10, ["neg", "pos"])
    write("train-1", [0, 0, 0, 1] * 5, ["neg", "pos"])
    assert total(tmp_path, **TEXT) == {"neg": 25, "pos": 15}
    write("train-1", [0, 0, 0, 1] * 5, ["pos", "neg"])
    refused("number 0 .* is 'neg' in .*train-0.* and 'pos' in .*train-1.*write the classes' names", tmp_path, **TEXT)
    write("train-1", [0, 0, 0, 1] * 5, None)
    refused("number 0 .* is 'neg' in .*train-0.* and no class in .*train-1", tmp_path, **TEXT)
    (tmp_path / "train-1.parquet").unlink()
    write("test", [0, 0, 0, 1] * 5, ["pos", "neg"])  # another split may: it is read by its own names
    assert read(tmp_path, **TEXT)["test"] == {"pos": 15, "neg": 5}
