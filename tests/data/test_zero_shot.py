"""Sets of LAION's CLIP benchmark, from a Hub of this machine, as tasks and control tasks."""

import io
import tarfile

import numpy as np
import pytest
from hub_server import Repository, logged_in
from PIL import Image

import talos_ray
from talos_ray import SpecError
from talos_ray.spec import make_spec, resolve_task
from talos_ray.tasks import load_task

NAMES = ["red fox", "grey crane", "tower crane"]
SET = "datasets/clip-benchmark/wds_vtab-beasts"


def images(count: int) -> list[tuple[bytes, int]]:
    """Lossless images in three colours, and their classes."""
    made = []
    for number in range(count):
        kind = number % len(NAMES)
        pixels = np.zeros((24, 24, 3), dtype=np.uint8)
        pixels[..., kind] = 255 - number  # no two are the same
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "webp", lossless=True)
        made.append((file.getvalue(), kind))
    return made


def shard(rows: list[tuple[bytes, int]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, (image, kind) in enumerate(rows):
            for ending, data in (("webp", image), ("cls", str(kind).encode())):
                entry = tarfile.TarInfo(f"s{number:07d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def repository(names: list[str] = NAMES, **splits: list[bytes]) -> Repository:
    made = Repository(private=False)
    files = {
        "classnames.txt": "\n".join(names).encode() + b"\n",
        "zeroshot_classification_templates.txt": b"a photo of a {c}.\n\nthe {c}\n",
    }
    for split, shards in splits.items():
        files[f"{split}/nshards.txt"] = f"{len(shards)}\n".encode()
        files |= {f"{split}/{number}.tar": data for number, data in enumerate(shards)}
    made.commit(files)
    return made


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with logged_in(monkeypatch, "hf_of_no_one", tmp_path / "hub") as server:
        yield server


def test_a_set_is_its_images_classes_and_prompts(hub, tmp_path):
    rows = images(60)
    hub.repositories[SET] = repository(train=[shard(rows[:20]), shard(rows[20:40])], test=[shard(rows[40:])])
    task = resolve_task("clip_benchmark:vtab/beasts")
    assert (task.name, task.classes, task.prompts) == ("vtab_beasts", tuple(NAMES), ("a photo of a {}.", "the {}"))
    data = load_task(task, 0)
    assert (len(data.train) + len(data.validation), len(data.test)) == (40, 20)
    assert data.test.labels.tolist() == [kind for _, kind in rows[40:]]
    shown = [np.asarray(image.convert("RGB")) for image in data.test.rows[data.test.column][:]]
    assert all((image.argmax(-1) == label).all() for image, label in zip(shown, data.test.labels, strict=True))

    # As `data`, with a name of one's own, and as what a spec records: the Hub is not asked again.
    named = resolve_task({"name": "mine", "data": "clip_benchmark:vtab/beasts", "prompts": ["{}"]})
    assert (named.name, named.classes, named.prompts) == ("mine", tuple(NAMES), ("{}",))
    asked = len(hub.asked)
    assert resolve_task(named.model_dump(mode="json")) == named
    assert len(hub.asked) == asked

    # Some rows alone, and offline what was once read.
    few = load_task(task.model_copy(update={"stream": 12}), 0)
    assert (len(few.train) + len(few.validation), len(few.test)) == (12, 12)


def test_images_to_be_tested_on_alone_are_cut(hub, tmp_path):
    hub.repositories["datasets/clip-benchmark/wds_beasts"] = repository(
        ["crane", "fox", "crane"], test=[shard(images(60))]
    )
    values = {"model": "demo", "tasks": ["demo:pointers"], "control": ["clip_benchmark:beasts"], "output": f"{tmp_path}/run"}
    (control,) = make_spec(values).control
    assert control.classes == ("crane (0)", "fox", "crane (2)")
    data = load_task(control, 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (42, 6, 12)
    assert "one split only" in data.notes[0]
    talos_ray.check(values)  # of values beside a Spec or a path, too


def test_what_is_no_set_of_classification_is_refused(hub):
    hub.repositories[SET] = repository(test=[shard(images(6))])
    hub.repositories[SET].commit({**hub.repositories[SET].at("main")[1], "dataset_type.txt": b"retrieval\n"})
    with pytest.raises(SpecError, match="is one of retrieval; wanted one of classification"):
        resolve_task("clip_benchmark:vtab/beasts")
    with pytest.raises(SpecError, match=r"clip-benchmark/wds_vtab-beats cannot be read: .*check its name"):
        resolve_task("clip_benchmark:vtab/beats")


def test_columns_of_a_webdataset_are_called_as_everywhere_else(tmp_path):
    import datasets

    from talos_ray.data.readers import _with_usual_names

    path = tmp_path / "0.tar"
    path.write_bytes(shard(images(6)))
    rows = datasets.load_dataset("webdataset", data_files={"train": [str(path)]}, cache_dir=str(tmp_path / "cache"))
    (named,) = _with_usual_names(rows).values()
    assert {"image", "label"} < set(named.column_names)
    assert named["label"][:] == [0, 1, 2, 0, 1, 2]
