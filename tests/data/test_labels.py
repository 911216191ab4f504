"""Labels by name in every split and in new data, and files that would be lost or misread without a word."""

import json
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_reading import TEXT, csv_of, pictures, read, refused, total

from talos_ray import Task
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
    for odd in ("part.pq", "part-0001", "more.txt", ".hidden/more.csv"):
        (folder / odd).parent.mkdir(exist_ok=True)
        (folder / odd).write_text("x")
    (folder / "README.md").write_text("what this is")
    notes = load_task(Task(**TEXT, data=str(folder)), 0).notes
    assert "the hidden folders '.hidden' are not read" in notes[0]
    assert "these files are not read: 'more.txt', 'part-0001', 'part.pq'" in notes[1] and len(notes) == 2

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
