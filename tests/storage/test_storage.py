"""Storage attacked: half-written files, changed bytes, files of another run, histories that were edited."""

import hashlib
import itertools
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from talos_ray import ConflictError, CorruptError, MismatchError, SpecError, StorageError, TalosError
from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout
from talos_ray.core.mask import mask_from_flags
from talos_ray.storage import files, history
from talos_ray.storage.files import Store, patient
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version

LAYOUT = Layout(("a", "b"), ((4, 5), (7,)))
MASK = mask_from_flags(LAYOUT, torch.arange(27) % 3 == 0, {"strategy": "random", "keep": 1 / 3})
BASE = "b" * 64
SPEC = {"model": "demo", "seed": 0, "tasks": [], "control": []}
HEADS = {"a": torch.ones(2, 3)}


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


def test_one_tensor_under_two_names_is_written_for_each(folder):
    head = torch.randn(3, 4)  # tasks of the same words have one head
    folder.begin({}, BASE, {}, {"a": head, "b": head, "c": head[1:]}, {key: ["x", "y", "z"] for key in "abc"})
    found, _ = folder.load_heads()
    assert torch.equal(found["a"], head) and torch.equal(found["b"], head) and torch.equal(found["c"], head[1:])


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


def test_what_is_told_of_a_delta_is_read_without_its_values(folder, tmp_path, monkeypatch):
    folder.save_delta(delta(1.0))
    folder.save_delta(delta(2.0))
    wanted = [folder.load_delta("t", delta(v).fingerprint).info for v in (1.0, 2.0)]
    monkeypatch.setattr(type(folder.store), "read", lambda self, name: pytest.fail(f"{name} was read"))
    assert [folder.delta_info("t", delta(v).fingerprint) for v in (1.0, 2.0)] == wanted
    assert folder.delta_info("t") == wanted[1]
    assert folder.delta_info("t", "0" * 64) is None and folder.delta_info("u") is None
    path = tmp_path / "run" / "deltas" / "t.safetensors"
    whole = path.read_bytes()
    assert folder.store.size("deltas/t.safetensors") == len(whole)
    for broken in (b"", whole[:7], whole[:60], whole[:-1], whole + b"x", b"\xff" * 100, b"\x02" + bytes(7) + b"{}"):
        path.write_bytes(broken)
        with pytest.raises(CorruptError, match="t.safetensors is not a whole talos_ray safetensors file"):
            folder.delta_info("t")


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
    folder.begin({}, BASE, {}, HEADS, {"a": ["x", "y"]})  # nothing is deleted in a folder that no run has marked
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


def test_a_run_asks_storage_again_that_refuses_a_read_and_a_terminal_does_not(folder, monkeypatch):
    store = folder.store
    store.write("a.json", b"{}")
    opened = Store._opened
    refusals = []

    def refusing(self, name):
        if refusals:
            raise refusals.pop()
        return opened(self, name)

    monkeypatch.setattr(Store, "_opened", refusing)
    monkeypatch.setattr(files, "PATIENCE", files.Patience())  # whatever this process has been patient for
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    refusals += [OSError(5, "Input/output error"), OSError(116, "Stale file handle")]
    with patient(30.0):
        assert store.read("a.json") == b"{}" and not refusals
        refusals += [OSError(5, "Input/output error")]
        assert store.sha256("a.json") == hashlib.sha256(b"{}").hexdigest()
        for final in (FileNotFoundError(2, "no such file"), PermissionError(13, "denied")):
            refusals += [OSError(5, "never reached"), final]
            with pytest.raises(type(final)):
                store.read("a.json")
            assert len(refusals) == 1 and refusals.pop()
    refusals += [OSError(5, "Input/output error")]
    with pytest.raises(OSError, match="Input/output"):
        store.read("a.json")
    refusals += [OSError(5, "Input/output error")] * 3
    with patient(0.0), pytest.raises(OSError, match="Input/output"):
        store.read("a.json")


def test_another_run_and_other_files_are_refused_and_left_alone(folder, tmp_path):
    folder.check_new()
    folder.begin(SPEC, BASE, {"base": BASE, "tasks": ["a"]}, HEADS, {"a": ["x", "y"]})
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
    for _ in range(n):
        folder.add_version("version", lambda n: (Version(model=str(n) * 64, coefficients={"t": float(n)}), {}))


def test_versions_head_and_history(folder):
    versioned(folder)
    folder.set_head(0, "rollback", was=2)
    assert folder.head == 0 and folder.versions() == [0, 1, 2] and folder.load_version(2).coefficients == {"t": 2.0}
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


def whole(folder):
    """A run with a file of every kind that lies beside the versions."""
    folder.begin(SPEC, BASE, {"base": BASE}, HEADS, {"a": ["x", "y"]})
    folder.save_mask(MASK, BASE)
    folder.record("calibrate", ["mask.safetensors"])
    for value in (1.0, 2.0):  # the first moves to the archive
        folder.save_delta(delta(value))
        folder.record("train", ["deltas/t.safetensors"])
    folder.save_trial("a" * 8, {"counts": {}}, {"t": torch.ones(3)})
    versioned(folder)
    folder.set_head(1, "rollback", {"report/index.html": b"page 1"})
    return sorted(p for p in Path(folder.store.root).rglob("*") if p.is_file())


def test_verify_finds_every_changed_byte_in_every_file(folder):
    generator = torch.Generator().manual_seed(0)
    files = whole(folder)
    assert history.verify(folder.store) == [] and len(files) >= 16
    for path in files:
        data, name = path.read_bytes(), str(path.relative_to(folder.store.root))
        places = torch.randint(len(data), (12,), generator=generator).tolist()
        for place in {0, len(data) - 1, *places}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            found = history.verify(folder.store)
            assert any(name in problem for problem in found), (name, place)
        path.write_bytes(data)
    assert history.verify(folder.store) == []


def test_verify_finds_what_was_removed_added_or_swapped(folder):
    files = whole(folder)
    for path in files:
        data, name = path.read_bytes(), str(path.relative_to(folder.store.root))
        path.unlink()
        found = " ".join(history.verify(folder.store))
        assert name in found or "history" in found, name  # a missing event is named by its neighbour
        path.write_bytes(data)
        strange = path.with_name(f"strange-{path.name}")
        strange.write_bytes(data)
        assert strange.name in " ".join(history.verify(folder.store))
        strange.unlink()
    for a, b in itertools.combinations(files, 2):
        x, y = a.read_bytes(), b.read_bytes()
        a.write_bytes(y)
        b.write_bytes(x)
        found = " ".join(history.verify(folder.store))
        assert (a.name in found and b.name in found) or x == y, (a, b)
        a.unlink()
        b.unlink()
        assert history.verify(folder.store), (a, b)
        a.write_bytes(x)
        b.write_bytes(y)
    assert history.verify(folder.store) == []


def test_of_two_writers_one_wins_and_nothing_is_lost(folder):
    """Eight processes' worth of threads add versions at once, some from a head that is not theirs any more."""
    versioned(folder, 1)
    told = []

    def add(i: int) -> None:
        try:
            RunFolder(folder.store.uri).add_version(
                "version", lambda n: (Version(model=str(i), coefficients={}), {f"report/{n:04d}.html": b"x"}), at=0
            )
        except ConflictError as error:
            told.append(str(error))

    threads = [threading.Thread(target=add, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found = list(history.events(folder.store))
    assert len(found) == 1 + (8 - len(told)) == 2 and folder.head == 1 and folder.versions() == [0, 1]
    assert all("nothing was changed" in t for t in told)
    assert history.verify(folder.store) == []


def test_a_writer_that_was_cut_off_leaves_a_run_that_goes_on(folder, monkeypatch):
    versioned(folder, 2)
    write = Store._write
    monkeypatch.setattr(
        Store, "_write", lambda self, name, data: None if "versions/" in name else write(self, name, data)
    )
    versioned(folder, 1)  # its event is there, its file is not
    monkeypatch.undo()
    assert history.verify(folder.store) == ["versions/0002.json is missing; restore it from a copy"]
    versioned(folder, 1)
    folder.set_head(1, "rollback")
    assert folder.head == 1 and folder.versions() == [0, 1, 3]


def test_two_hundred_random_operations_keep_every_version(folder):
    generator = torch.Generator().manual_seed(1)
    whole(folder)
    models = {n: folder.load_version(n).model for n in folder.versions()}
    for _ in range(200):
        if torch.rand((), generator=generator) < 0.3:
            n = folder.add_version("version", lambda n: (Version(model=f"{n}" * 8, coefficients={"t": 0.5}), {}))
            models[n] = folder.load_version(n).model
        else:
            n = int(torch.randint(len(models), (), generator=generator))
            folder.set_head(n, "rollback", {"report/index.html": f"page {n}".encode()}, reason="a test")
        assert folder.head == n
    assert {n: folder.load_version(n).model for n in folder.versions()} == models
    assert history.verify(folder.store) == []
    assert sum(p.stat().st_size for p in Path(folder.store.root).rglob("*") if p.is_file()) < 1_000_000
