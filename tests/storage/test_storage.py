"""Storage attacked: half-written files, changed bytes, files of another run, histories that were edited."""

import json
import os

import pytest
import torch

from talos_ray import CorruptError, MismatchError, SpecError, StorageError, TalosError
from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout
from talos_ray.core.mask import mask_from_flags
from talos_ray.storage import history
from talos_ray.storage.files import Store
from talos_ray.storage.run_folder import RunFolder

LAYOUT = Layout(("a", "b"), ((4, 5), (7,)))
MASK = mask_from_flags(LAYOUT, torch.arange(27) % 3 == 0, {"strategy": "random", "keep": 1 / 3})
BASE = "b" * 64


def delta(values=1.0, dtype=torch.bfloat16, task="t"):
    return Delta(task, torch.full((MASK.k,), values, dtype=dtype), BASE, MASK.fingerprint, {"key": "k", "seconds": 1.0})


@pytest.fixture
def folder(tmp_path):
    return RunFolder(str(tmp_path / "run"))


def test_mask_and_deltas_come_back_bitwise(folder):
    folder.save_mask(MASK, BASE)
    again = folder.load_mask(BASE)
    assert again.fingerprint == MASK.fingerprint and again.layout == LAYOUT and again.info["strategy"] == "random"
    for dtype in (torch.bfloat16, torch.float32):
        folder.save_delta(delta(dtype=dtype))
        found = folder.load_delta("t")
        assert (
            found.values.dtype == dtype
            and torch.equal(found.values, delta(dtype=dtype).values)
            and found.fingerprint == delta(dtype=dtype).fingerprint
        )


def test_a_mask_of_another_base_names_both(folder):
    folder.save_mask(MASK, BASE)
    with pytest.raises(MismatchError, match="bbbbbbbbbbbb.*cccccccccccc"):
        folder.load_mask("c" * 64)


def test_a_replaced_delta_stays_for_the_versions_that_use_it(folder):
    folder.save_delta(delta(1.0))
    folder.save_delta(delta(2.0))
    folder.save_delta(delta(2.0))
    assert folder.load_delta("t").fingerprint == delta(2.0).fingerprint
    assert folder.load_delta("t", delta(1.0).fingerprint).values[0] == 1.0
    assert folder.load_delta("t", "0" * 64) is None and folder.load_delta("u") is None
    assert len(folder.store.list("deltas/archive")) == 1


def test_any_changed_byte_of_a_delta_is_found(folder, tmp_path):
    folder.save_delta(delta())
    path = tmp_path / "run" / "deltas" / "t.safetensors"
    good = path.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 0x10
        path.write_bytes(bytes(data))
        try:
            found = folder.load_delta("t")
        except CorruptError as error:
            assert "t.safetensors" in str(error)
        else:  # only what is not part of the delta's identity may differ unnoticed here
            assert torch.equal(found.values, delta().values), position


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"hello, world, this is no tensor file"])
def test_what_is_no_tensor_file_is_named(folder, content):
    folder.store.write("mask.safetensors", content)
    with pytest.raises(CorruptError, match=r"mask\.safetensors"):
        folder.load_mask(BASE)


def test_a_cut_off_checkpoint_falls_back_to_the_one_before(folder, tmp_path):
    for step in (4, 8, 12):
        folder.save_checkpoint("t", "key", step, {"values": torch.full((3,), float(step))})
    assert len(folder.store.list("checkpoints/t")) == 2
    newest = tmp_path / "run" / "checkpoints" / "t" / "step-00000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    step, state = folder.load_checkpoint("t", "key")
    assert step == 8 and state["values"].tolist() == [8.0] * 3
    assert folder.load_checkpoint("t", "other settings") is None
    folder.drop_checkpoints("t")
    assert folder.load_checkpoint("t", "key") is None


def test_half_written_files_are_not_seen(folder, tmp_path):
    folder.store.write_json("trials/a.json", {"x": 1})
    (tmp_path / "run" / "trials" / ".b.json.1234").write_text("{")
    assert folder.store.list("trials") == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(folder, tmp_path, monkeypatch):
    folder.store.write_json("head.json", {"version": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="head.json .*bytes.*No space"):  # at once: waiting does not mend it
        folder.store.write_json("head.json", {"version": 2})
    assert folder.store.read_json("head.json") == {"version": 1}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["head.json"]


def test_storage_that_refuses_for_a_while_is_asked_again(folder, monkeypatch):
    refusals, replace = iter([OSError(5, "Input/output error"), OSError(110, "timed out")]), os.replace

    def moody(*args):
        if (error := next(refusals, None)) is not None:
            raise error
        replace(*args)

    monkeypatch.setattr(os, "replace", moody)
    folder.store.write_json("head.json", {"version": 1})
    assert folder.store.read_json("head.json") == {"version": 1} and folder.store.list() == ["head.json"]
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(StorageError, match="cannot be written.*Input/output"):
        folder.store.write("other", b"x", patience=0.3)


def test_another_run_and_other_files_are_refused_and_left_alone(folder, tmp_path):
    folder.check_new()
    folder.write_info({}, BASE, {"base": BASE, "tasks": ["a"]})
    folder.check_new(BASE, {"base": BASE, "tasks": ["a"]})
    with pytest.raises(
        SpecError, match=r"another run: its tasks is \['a'\], this spec's is \['b'\]; choose another output"
    ):
        folder.check_new(BASE, {"base": BASE, "tasks": ["b"]})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(SpecError, match="holds other files and no run"):
        RunFolder(str(tmp_path / "thesis")).check_new()
    assert os.listdir(tmp_path / "thesis") == ["chapter.txt"]


def test_no_run_here_and_a_format_from_the_future(folder):
    with pytest.raises(TalosError, match="holds no run"):
        folder.info()
    folder.store.write_json("run.json", {"format": 99})
    with pytest.raises(CorruptError, match="format 99"):
        folder.info()


def test_a_scheme_that_does_not_exist():
    with pytest.raises(SpecError, match="cannot be opened"):
        Store("ftp2://somewhere/run")


def versioned(folder, n=3):
    for i in range(n):
        folder.add_version({"model": str(i) * 64, "coefficients": {"t": float(i)}}, "version")


def test_versions_head_and_history(folder):
    versioned(folder)
    folder.set_head(0, "rollback", was=2)
    assert folder.head == 0 and folder.versions() == [0, 1, 2] and folder.load_version(2)["coefficients"] == {"t": 2.0}
    found = list(history.events(folder.store))
    assert [e["operation"] for e in found] == ["version"] * 3 + ["rollback"] and found[-1]["was"] == 2
    assert all(e["user"] and e["host"] and e["time"].endswith("+00:00") for e in found)
    with pytest.raises(TalosError, match="version 7 does not exist.*0, 1, 2"):
        folder.set_head(7, "rollback")
    assert len(folder.store.list("history")) == 4


@pytest.mark.parametrize("attack", ["change", "remove", "swap", "add"])
def test_an_edited_history_is_found(folder, tmp_path, attack):
    versioned(folder, 4)
    where = tmp_path / "run" / "history"
    names = sorted(p.name for p in where.iterdir())
    if attack == "change":
        event = json.loads((where / names[1]).read_text())
        (where / names[1]).write_text(json.dumps({**event, "user": "somebody else"}))
    elif attack == "remove":
        (where / names[1]).unlink()
    elif attack == "swap":
        a, b = (where / names[1]).read_text(), (where / names[2]).read_text()
        (where / names[1]).write_text(b)
        (where / names[2]).write_text(a)
    else:
        (where / ("00000002-" + "0" * 64 + ".json")).write_text((where / names[2]).read_text())
    with pytest.raises(CorruptError, match="history/0000000[12]"):
        list(history.events(folder.store))
