"""A first spec from a folder: what is guessed, and that it is a spec."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import write_images

from talos_ray import SpecError, load_spec
from talos_ray.scaffold import scaffold
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
    from PIL import Image

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
