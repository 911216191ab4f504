"""Paths in data that no file can have, or that begin in the folder of the table that names them."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from talos_ray import SpecError
from talos_ray.scaffold import scaffold
from talos_ray.spec import resolve_task
from talos_ray.tasks import load_inputs, load_task, troubled_images

LONG = "x" * 300
AB = ["a", "b"] * 20
FILES = [f"im/{i}.png" for i in range(40)]


def task(data, kind="image"):
    return resolve_task(
        {"name": "t", "data": str(data), "kind": kind, "input": "input", "label": "label", "prompts": ["{}"]}
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "im").mkdir()
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"im/{i}.png")
    return tmp_path


def csv_of(path, inputs):
    path.write_text("input,label\n" + "".join(f"{v},{c}\n" for v, c in zip(inputs, AB, strict=True)))
    return path


def parquet_of(path, images, kind):
    """A table whose images are structs, or have the type that `datasets` gives them."""
    table = pa.table({"input": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": AB})
    if kind == "image":
        features = datasets.Features({"input": datasets.Image(), "label": datasets.Value("string")})
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(table, path)
    return path


def test_a_name_that_is_too_long_is_refused_by_its_row(folder):
    with pytest.raises(SpecError, match=r"task 't': row 1 of .*t\.csv names image '.*xxx.*, which does not exist"):
        load_task(task(csv_of(folder / "t.csv", [FILES[0], f"{LONG}.png", *FILES[2:]])), 0)


def test_a_long_text_that_ends_like_an_image_is_a_text(folder):
    path = csv_of(folder / "t.csv", [f"{LONG}{i}.png" for i in range(40)])
    found = load_task(task(path, "text"), 0)
    assert len(found.train) + len(found.validation) + len(found.test) == 40
    path.rename(folder / "im" / "t.csv")
    for file in FILES:
        (folder / file).unlink()
    assert "input: input" in scaffold(folder / "im")


@pytest.mark.parametrize("data", [LONG, f"{LONG}.csv", f"/{LONG}"])
def test_data_that_nothing_can_be_called(data):
    with pytest.raises(SpecError, match="task 't': data '/?xxx.* is no name of a file .File name too long.; wanted"):
        load_task(task(data), 0)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_inputs_that_nothing_can_be_called(kind):
    settings = task("x", kind).model_dump(exclude_none=True)
    with pytest.raises(SpecError, match=f"'x+' is no file, no folder and no name of the Hub; wanted .* list of {kind}"):
        load_inputs(settings, LONG, ["a", "b"])
    for name in (LONG, "~nouser/0.png") if kind == "image" else ():
        with pytest.raises(SpecError, match=f"input '{name[:20]}.*' does not exist; wanted an image file"):
            load_inputs(settings, [name], ["a", "b"])


@pytest.mark.parametrize("kind", ["struct", "image"])
def test_paths_in_structs_begin_in_the_folder_of_their_table(folder, monkeypatch, kind):
    named = [{"bytes": None, "path": p} for p in FILES]
    path = parquet_of(folder / "t.parquet", named, kind)
    monkeypatch.chdir("/")
    wanted = load_task(task(csv_of(folder / "t.csv", FILES)), 0)
    found = load_task(task(path), 0)
    assert found.train.fingerprint() == wanted.train.fingerprint() and not troubled_images(found.train)
    some = [{"bytes": (folder / p).read_bytes(), "path": p} if i % 3 else named[i] for i, p in enumerate(FILES)]
    mixed = load_task(task(parquet_of(folder / "mixed.parquet", some, kind)), 0)
    assert mixed.train.fingerprint() == wanted.train.fingerprint()
    for gone in ("im/gone.png", LONG, ""):
        some[3] = {"bytes": None, "path": gone}
        path = parquet_of(folder / "gone.parquet", some, kind)
        with pytest.raises(SpecError, match=r"task 't': row 3 of .*gone\.parquet names image .* does not exist"):
            load_task(task(path), 0)
