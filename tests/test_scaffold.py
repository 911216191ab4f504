"""A first spec from a folder: what is guessed, and that it is a spec."""

import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import write_images
from PIL import Image

from talos_ray import SpecError, load_spec
from talos_ray.scaffold import scaffold, scalar
from talos_ray.tasks import load_task


def write_csv(path, header, rows):
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows])


def test_texts_in_files_become_tasks(tmp_path):
    write_csv(tmp_path / "re views.csv", ("id", "body", "stars"), [(i, f"it was, {i} times", i % 3) for i in range(40)])
    pq.write_table(
        pa.table({"text": [f"words {i}" for i in range(30)], "label": ["a", "b"] * 15}), tmp_path / "b.parquet"
    )
    (tmp_path / "notes.md").write_text("mine")
    write_csv(tmp_path / "empty.csv", ("text", "label"), [])
    (tmp_path / "spec.yaml").write_text(scaffold(tmp_path))
    spec = load_spec(tmp_path / "spec.yaml")
    assert spec.model.startswith("hf:") and [t.name for t in spec.tasks] == ["b", "re_views"]
    reviews = spec.tasks[1]
    assert (reviews.input, reviews.label, reviews.prompts) == ("body", "stars", ("{}",))
    assert load_task(reviews, 0).classes == ("0", "1", "2")
    assert "# 2 classes: a, b" in (tmp_path / "spec.yaml").read_text()


def test_images_in_folders_and_lists_become_tasks(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "pets" / kind / f"{i}.png")
    write_images(tmp_path / "more", 20)
    (tmp_path / "more").rename(tmp_path / "x")
    for p in (tmp_path / "x").iterdir():
        p.rename(tmp_path / p.name)
    write_csv(tmp_path / "talk.csv", ("text", "label"), [("hello there", "a"), ("bye", "b")] * 5)
    (tmp_path / "spec.yaml").write_text(scaffold(tmp_path, model="demo"))
    spec = load_spec(tmp_path / "spec.yaml")
    assert spec.model == "demo" and {t.name: (t.input, t.label) for t in spec.tasks}["pets"] == ("image", "label")
    assert any((t.input, t.label) == ("file", "side") for t in spec.tasks)
    assert "# left out, because it holds texts: talk.csv" in (tmp_path / "spec.yaml").read_text()
    assert all(len(load_task(t, 0).train) for t in spec.tasks)


def test_a_folder_without_tasks_is_told(tmp_path):
    with pytest.raises(SpecError, match="holds no .csv"):
        scaffold(tmp_path)
    with pytest.raises(SpecError, match="does not exist"):
        scaffold(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (147, {"epochs": 30, "batch_size": 16, "lr": 5e-4, "warmup_steps": 18}),  # 103 to train on, 6 updates a pass
        (600, {"epochs": 23, "batch_size": 32, "lr": 5e-4, "warmup_steps": 29}),
        (40_000, {"steps": 300, "batch_size": 64, "lr": 5e-4, "warmup_steps": 30}),
    ],
)
def test_how_long_is_trained_follows_how_many_rows_there_are(tmp_path, rows, wanted):
    write_csv(tmp_path / "a.csv", ("text", "label"), [(f"words {i}", "ab"[i % 2]) for i in range(rows)])
    (tmp_path / "spec.yaml").write_text(scaffold(tmp_path))
    train = load_spec(tmp_path / "spec.yaml").train
    assert train.model_dump(exclude_defaults=True) == {k: v for k, v in wanted.items() if getattr(type(train)(), k) != v}


def made(folder):
    """The tasks of the spec that init writes, each with what check reads by it."""
    (folder / "spec.yaml").write_text(scaffold(folder), encoding="utf-8")
    return [(task, load_task(task, 0)) for task in load_spec(folder / "spec.yaml").tasks]


AB = ["a", "b"] * 20


@pytest.mark.parametrize(
    ("header", "rows", "source", "label"),
    [
        (("text", "label"), [(i % 2, c) for i, c in enumerate(AB)], "text", "label"),  # as few texts as classes
        (("label", "text"), [(c * 90, f"t{i}") for i, c in enumerate(AB)], "text", "label"),  # longer than the texts
        (("phone", "kind"), [(1000 + i % 9, c) for i, c in enumerate(AB)], "phone", "kind"),
        (("text", "label"), [(1000 + i, c) for i, c in enumerate(AB)], "text", "label"),  # every number once
        (("text", "label", ""), [(f"t{i}", c, "") for i, c in enumerate(AB)], "text", "label"),
        (("", "text", "label", "", ""), [(i, f"t{i}", c, "", "") for i, c in enumerate(AB)], "text", "label"),
        (("id", "review_text", "verdict"), [(i, f"t{i}", c) for i, c in enumerate(AB)], "review_text", "verdict"),
        (("tweet", "label", "label_text"), [(f"t{i}", str(i % 2), c) for i, c in enumerate(AB)], "tweet", "label"),
        (("id", "tweet", "sentiment_text"), [(i, f"t{i}", c) for i, c in enumerate(AB)], "tweet", "sentiment_text"),
        (("categoryName", "note"), [(c, f"t{i}") for i, c in enumerate(AB)], "note", "categoryName"),
        (("classroom_text", "verdict"), [(f"t{i}", c) for i, c in enumerate(AB)], "classroom_text", "verdict"),
        (("target_text", "verdict"), [(f"t{i}", c) for i, c in enumerate(AB)], "target_text", "verdict"),
        (("label_text", "label"), [(c, i % 2) for i, c in enumerate(AB)], None, "no column of texts"),
        (("a{b}", "note", "label"), [(f"long {i}", f"t{i}", c) for i, c in enumerate(AB)], None, "a brace in its name"),
        (("{text}", "label"), [(f"t{i}", c) for i, c in enumerate(AB)], None, "a brace in its name"),
        (("text", "label"), [(f"t{i}", f"{i % 2}.0") for i in range(40)], "text", "label"),
        (("text", "score"), [(f"t{i}", f"0.{i % 2 + 1}") for i in range(40)], None, "no classes were found"),
        (("a word", "b"), [(f"t{i}", c) for i, c in enumerate(AB)], None, "its first line looks like a row, because 'b'"),
        (("0", "some text"), [(i % 2, f"t{i}") for i in range(40)], None, "its first line looks like a row, because '0'"),
        (("", "0", "1"), [(i, f"t{i}", str(i % 2)) for i in range(40)], "0", "1"),  # as pandas writes what has no names
        (("text;label",), [(f"t{i};{c}",) for i, c in enumerate(AB)], None, "semicolons between its columns"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_columns_are_told_by_their_names_and_else_by_their_values(tmp_path, header, rows, source, label):
    write_csv(tmp_path / "t.csv", header, rows)
    if source is None:
        with pytest.raises(SpecError, match=label):
            scaffold(tmp_path)
        return
    ((task, data),) = made(tmp_path)
    assert (task.input, task.label) == (source, label)
    place = header.index(label)
    numbers = {"0.0": "0", "1.0": "1"}  # as check reads whole ones
    assert set(data.classes) == {numbers.get(row[place], row[place]) for row in rows}


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), shade).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("columns", "source", "classes"),
    [
        ({"text": [f"t{i}" for i in range(40)], "label": [0.0, 1.0] * 20}, "text", ("0", "1")),
        ({"text": [f"t{i}" for i in range(40)], "label": [0.0, 1.0, 1.0, float("nan")] * 10}, "text", ("0", "1")),
        ({"text": [f"t{i}" for i in range(40)], "label": pa.array(AB, pa.string_view())}, "text", ("a", "b")),
        ({"text": pa.array([f"t{i}" for i in range(40)], pa.string_view()), "label": AB}, "text", ("a", "b")),
        ({"label": pa.array(AB).dictionary_encode(), "t": [f"t{i}" for i in range(40)]}, "t", ("a", "b")),
        ({"image": [picture(i) for i in range(40)], "label": AB}, "image", ("a", "b")),
        ({"body": AB, "label": [0, 1] * 20}, "body", ("0", "1")),
    ],
    ids=["float", "nan", "view", "text view", "dictionary", "bytes", "numbers"],
)
def test_parquet_of_any_types(tmp_path, columns, source, classes):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    ((task, data),) = made(tmp_path)
    assert (task.input, task.label, data.classes) == (source, "label", classes)


@pytest.mark.parametrize(
    ("files", "data", "rows"),
    [
        (("train.csv", "test.csv"), ".", 80),
        (("train/x.csv", "test/x.csv"), ".", 80),
        (("train-00000-of-00002.csv", "train-00001-of-00002.csv", "test-00000-of-00001.csv"), ".", 120),
        (("train.csv", "test.csv", "sample_submission.csv"), "train.csv", 40),
        (("a_train.csv", "a_test.csv"), ".", 80),
        (("a_train.csv", "a_test.csv", "b.md"), ".", 80),
        (("train-1.csv", "train-2.csv", "test.csv"), ".", 120),
        (("a_train_1.csv", "a_train_2.csv", "a_test.csv"), ".", 120),
        (("train_a.csv", "a_val.csv", "a-test-00000-of-00001.csv"), ".", 120),
        (("a_train.csv", "a_test.csv", "id.csv"), "a_train.csv", 40),
        (("x-00000-of-00002.csv", "x-00001-of-00002.csv"), "x-00000-of-00002.csv", 40),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_one_set_of_data_is_one_task(tmp_path, files, data, rows):
    for number, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".md"):
            (tmp_path / name).write_text("mine")
            continue
        header = ("id", "label") if name.startswith(("sample", "id")) else ("text", "label")
        few = [(f"{number} {i}", c) for i, c in enumerate(AB)][: 1 if name.startswith(("sample", "id")) else None]
        write_csv(tmp_path / name, header, few)
    ((_, found),) = made(tmp_path)
    written = (tmp_path / "spec.yaml").read_text()
    assert f"data: {scalar(data)}\n" in written
    assert sum(map(len, (found.train, found.validation, found.test))) == rows
    assert data == "." or f"# left out: {files[1]}: by its name it belongs to {data}" in written


def test_folds_are_sets_of_their_own(tmp_path):
    for number in range(2):
        for part in ("train", "test"):
            write_csv(tmp_path / f"a_{part}_{number}.csv", ("text", "label"), [(f"{part} {number} {i}", c) for i, c in enumerate(AB)])
    made_of = [task.data for task, _ in made(tmp_path)]
    written = (tmp_path / "spec.yaml").read_text()
    assert [data.rsplit("/", 1)[-1] for data in made_of] == ["a_train_0.csv", "a_train_1.csv"]
    assert "# left out: a_test_1.csv: by its name it belongs to a_train_1.csv" in written


def test_a_split_without_labels_is_left_out(tmp_path):
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "train.csv", ("text", "label"), [(f"t{i}", c) for i, c in enumerate(AB)])
    write_csv(tmp_path / "data" / "test.csv", ("text",), [(f"q{i}",) for i in range(9)])
    ((task, found),) = made(tmp_path)
    assert task.data.endswith("data/train.csv") and found.classes == ("a", "b")


def test_what_keeps_splits_from_being_read_together_is_told_with_a_fix_that_works(tmp_path):
    for name in ("train", "valid"):
        write_csv(tmp_path / f"{name}.csv", ("text", "label"), [(f"{name} {i}", c) for i, c in enumerate(AB)])
    write_csv(tmp_path / "test.csv", ("text",), [(f"q{i}",) for i in range(9)])
    made(tmp_path)
    written = (tmp_path / "spec.yaml").read_text()
    assert "test.csv: it belongs to train.csv, and cannot be read with it: it has no column 'label'" in written
    assert "move both into a folder of their own, without test.csv (it has no column 'label')" in written
    (tmp_path / "own").mkdir()
    for name in ("train.csv", "valid.csv"):
        (tmp_path / name).rename(tmp_path / "own" / name)
    (tmp_path / "test.csv").unlink()
    ((_, found),) = made(tmp_path)
    assert len(found.validation) == 40


def test_a_note_beside_splits_loses_none_of_them_unsaid(tmp_path):
    for name in ("train", "test"):
        (tmp_path / "d").mkdir(exist_ok=True)
        write_csv(tmp_path / "d" / f"{name}.csv", ("text", "label"), [(f"{name} {i}", c) for i, c in enumerate(AB)])
    (tmp_path / "d" / "label_map.json").write_text('{"0": "a", "1": "b"}')
    ((_, found),) = made(tmp_path)
    if len(found.train) + len(found.validation) + len(found.test) < 80:  # a reader that does not pass the note over
        assert "to read the others, move away label_map.json" in (tmp_path / "spec.yaml").read_text()
        (tmp_path / "d" / "label_map.json").unlink()
        ((_, found),) = made(tmp_path)
    assert len(found.test) == 40
    (tmp_path / "d" / "label_map.json").write_text('{"0": "a", "1": "b"}')
    ((_, found),) = made(tmp_path / "d")
    assert len(found.test) == 40 or "test.csv: by its name it belongs" in (tmp_path / "d" / "spec.yaml").read_text()


def test_a_folder_that_lists_its_images_and_rows_without_labels(tmp_path):
    for place in (tmp_path / "x", tmp_path / "y"):
        place.mkdir()
        for i in range(40):
            (place / f"{i}.png").write_bytes(picture(i))
        write_csv(place / "metadata.csv", ("file_name", "side"), [(f"{i}.png", c) for i, c in enumerate(AB)])
    assert [(t.name, t.label, d.classes) for t, d in made(tmp_path)] == [(n, "side", ("a", "b")) for n in "xy"]
    ((whole, found),) = made(tmp_path / "x")  # also where the folder itself is the one
    assert (whole.name, whole.input, found.classes) == ("x", "image", ("a", "b"))
    write_csv(tmp_path / "x" / "metadata.csv", ("file_name", "side"), [(f"{i}.png", c) for i, c in enumerate(AB)])
    (tmp_path / "t").mkdir()
    write_csv(tmp_path / "t" / "t.csv", ("text", "label"), [(f"t{i}", c) for i, c in enumerate([*AB, ""])])
    ((dropping, found),) = made(tmp_path / "t")
    assert dropping.missing == "drop" and len(found.train) + len(found.validation) + len(found.test) == 40
    assert "1 of 41 rows of train are left out" in (tmp_path / "t" / "spec.yaml").read_text()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": "\\ud800", "label": "a"}', r"line 1: .* half a character"),
        ('{"text":' + "[" * 5000 + "]" * 5000 + ',"label":"a"}', "too deep|deep"),
    ],
    ids=["surrogate", "deep"],
)
def test_what_cannot_be_read_is_told_in_a_line(tmp_path, line, told):
    (tmp_path / "t.jsonl").write_text(f"{line}\n" * 20)
    with pytest.raises(SpecError, match=told) as caught:
        scaffold(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
