"""Tasks from files and folders, and what is said of data that are wrong."""

import datasets
import numpy as np
import pytest
import torch
from images import write_images
from PIL import Image

from talos_ray import SpecError, Task
from talos_ray.inputs import Examples
from talos_ray.tasks import encoded, load_task


def test_csv_of_paths(sides):
    data = load_task(Task(**sides), 0)
    assert data.classes == ("left", "right")
    assert (len(data.train), len(data.validation), len(data.test)) == (84, 12, 24)
    inputs, labels = Examples(
        data.train, lambda images: torch.stack([torch.from_numpy(np.asarray(i).copy()) for i in images])
    ).batch(torch.tensor([5, 2]))
    assert inputs.shape == (2, 16, 16, 3) and labels.tolist() == data.train.labels[[5, 2]].tolist()
    brighter = inputs.float().mean((1, 3))
    assert [int(row[8:].mean() > row[:8].mean()) for row in brighter] == labels.tolist()


def test_cut_splits_do_not_overlap_and_follow_the_seed(sides):
    a, again, b = (load_task(Task(**sides), s) for s in (0, 0, 1))
    paths = [
        tuple(v["path"] for v in s.rows.with_format("arrow")[:].column("file").to_pylist())
        for s in (a.train, a.validation, a.test)
    ]
    assert len(set().union(*paths)) == 120
    assert a.train.fingerprint() == again.train.fingerprint() != b.train.fingerprint()


def test_parquet_image_folder_and_names(tmp_path, sides):
    csv = load_task(Task(**sides), 0).train
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["left", "right"])})
    datasets.Dataset.from_dict({"image": encoded(csv), "label": csv.labels.tolist()}, features=features).to_parquet(
        str(tmp_path / "x.parquet")
    )
    parquet = load_task(Task(name="p", data=str(tmp_path / "x.parquet")), 0)
    assert (
        parquet.classes == ("left", "right") and len(parquet.train) + len(parquet.validation) + len(parquet.test) == 84
    )
    for split, n in (("train", 12), ("test", 6)):
        for i in range(n):
            folder = tmp_path / "folder" / split / ("left", "right")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    folder = load_task(Task(name="f", data=str(tmp_path / "folder")), 0)
    assert folder.classes == ("left", "right") and len(folder.test) == 6 and len(folder.train) == 11


def test_fingerprint_is_of_content_not_of_place(tmp_path):
    a, b, c = (
        Task(name="t", data=write_images(tmp_path / f, 30, seed), input="file", label="side")
        for f, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    marks = [load_task(t, 0).train.fingerprint() for t in (a, b, c)]
    assert marks[0] == marks[1] != marks[2]


def refused(match: str, **task):
    with pytest.raises(SpecError, match=match) as caught:
        load_task(Task(**{"name": "t", **task}), 0)
    assert len(str(caught.value).splitlines()) <= 2


def test_what_is_wrong_is_named(tmp_path, sides):
    refused("'nowhere.csv' does not exist", data="nowhere.csv")
    refused(r"'\./nowhere' does not exist", data="./nowhere")
    refused("demo data 'demo:cuonts' does not exist .*demo:counts", data="demo:cuonts")
    refused(r"column 'file_' is not in .*did you mean 'file'.*set input", **{**sides, "input": "file_"})
    refused(r"column 'label' is not in .*it has: file, side; set label", **{**sides, "label": "label"})
    refused(r"label 'right', which is outside its 2 classes \(left, top\)", **{**sides, "classes": ["left", "top"]})
    refused("1 phrases for 2 classes", **{**sides, "phrases": ["left"]})
    refused("has no split 'dev'", **{**sides, "validation_split": "dev"})
    (tmp_path / "few.csv").write_text("file,side\n")
    refused("holds 0 examples", data=str(tmp_path / "few.csv"), input="file", label="side")
    (tmp_path / "nothing.csv").write_text("")
    refused("holds 0 examples|cannot be read", data=str(tmp_path / "nothing.csv"))
    (tmp_path / "lost.csv").write_text("file,side\nlost.png,left\n")
    refused("row 0 .*lost.png', which does not exist", data=str(tmp_path / "lost.csv"), input="file", label="side")
    (tmp_path / "text.csv").write_text("file,side\n1.5,left\n")
    refused("holds .*wanted images", data=str(tmp_path / "text.csv"), input="file", label="side")
    (tmp_path / "x.xyz").write_text("hello")
    refused("is a .xyz file", data=str(tmp_path / "x.xyz"))


def test_a_text_is_made_of_several_columns(tmp_path):
    rows = {
        "question": [f"why {i}?" for i in range(20)],
        "choices": [{"text": [f"a{i}", f"b{i}"], "label": ["A", "B"]} for i in range(20)],
        "answer": ["AB"[i % 2] for i in range(20)],
    }
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "rows.parquet"))
    task = {
        "name": "q",
        "data": str(tmp_path / "rows.parquet"),
        "kind": "text",
        "label": "answer",
        "classes": ["A", "B"],
    }
    data = load_task(Task(**task, input="{question} A: {choices[text][0]} B: {choices[text][1]}"), 0)
    assert set(encoded(data.test)) <= {f"why {i}? A: a{i} B: b{i}" for i in range(20)} and len(data.test) == 4
    assert data.train.words(0).startswith("why ")
    for template, wanted in (
        ("{questoin}", r"column 'questoin' is not in split 'train' .*did you mean 'question'"),
        ("{choices[text][2]}", r"row 0 of split 'train' does not fit the template .*IndexError"),
        ("{question", "is no template"),
    ):
        with pytest.raises(SpecError, match=wanted):
            load_task(Task(**task, input=template), 0)


def test_too_few_to_cut(tmp_path):
    refused("too few to cut", data=write_images(tmp_path, 2), input="file", label="side")


def test_a_hub_name_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    refused("no Hugging Face dataset that can be reached", data="somebody/some-set-that-is-not-here")
