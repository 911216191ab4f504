"""A run's folder in an S3 bucket: a server that a package provides, on this machine, ended with the test."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import torch
from records import PLAIN
from writers import at_once

from talos_ray import CorruptError, MismatchError, SpecError, StorageError
from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout, fingerprint
from talos_ray.core.mask import mask_from_flags
from talos_ray.storage import files, history
from talos_ray.storage.run_folder import RunFolder, mask_at
from talos_ray.storage.version import Version

LAYOUT = Layout(("a", "b"), ((4, 5), (7,)))
MASK = mask_from_flags(LAYOUT, torch.arange(27) % 3 == 0, {"strategy": "random", "keep": 1 / 3})
BASE = "b" * 64


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket's URI, as pyarrow.fs reads it, with its server's place in it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        place = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{place}/runs", method="PUT"), timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        keys = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "secret"}
        before = {k: os.environ.get(k) for k in keys}
        os.environ.update(keys)
        yield f"s3://runs/{{}}?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_a_run_folder_in_a_bucket(bucket):
    folder = RunFolder(bucket.format("team/first"))
    folder.begin({"model": "demo", "seed": 0, "tasks": [], "control": []}, BASE, {"base": BASE}, {"t": torch.ones(2, 3)}, {"t": ["x", "y"]})
    folder.save_mask(MASK, BASE)
    values = torch.randn(MASK.k).bfloat16()
    folder.save_delta(Delta("t", values, BASE, MASK.fingerprint, {"key": "k"}))
    folder.record("train", ["deltas/t.safetensors", "mask.safetensors"])
    number = folder.add_version("version", lambda n: (Version(coefficients={"t": 0.5}, model=BASE), {}))
    again = RunFolder(bucket.format("team/first"))
    assert again.info()["base"] == BASE and again.load_mask(BASE).fingerprint == MASK.fingerprint
    assert torch.equal(again.load_delta("t").values, values) and again.head == number
    assert [e["operation"] for e in history.events(again.store)] == ["start", "train", "version"]
    assert history.verify(again.store) == []
    again.store.delete("mask.safetensors")
    assert history.verify(again.store) == ["mask.safetensors is missing; restore it from a copy"]
    assert not RunFolder(bucket.format("team/second")).store.exists("run.json")


def test_a_mask_is_taken_from_a_bucket(bucket):
    layout = Layout(("w",), ((4, 3),))
    mask = mask_from_flags(layout, torch.arange(12) % 3 == 0)
    RunFolder(bucket.format("masks")).save_mask(mask, "b" * 64)
    where = bucket.format("masks/mask.safetensors")
    assert mask_at(where, "b" * 64).fingerprint == mask.fingerprint
    with pytest.raises(SpecError, match="masks/other.safetensors.* does not exist; wanted a mask.safetensors"):
        mask_at(bucket.format("masks/other.safetensors"), "b" * 64)
    with pytest.raises(MismatchError, match="belongs to base bbbb"):
        mask_at(where, "c" * 64)


def test_a_bucket_that_is_not_there_is_named(bucket):
    folder = RunFolder(bucket.format("x").replace("//runs/", "//missing/"))
    with pytest.raises(StorageError, match="missing/x/.* cannot be written"):
        folder.begin({}, BASE, {}, {}, {})


def test_the_base_is_fetched_once_a_node(bucket, tmp_path):
    folder, base = RunFolder(bucket.format("team/base")), {"a": torch.randn(300, 7), "b": torch.arange(5).bfloat16()}
    mark = fingerprint(base)
    name = folder.save_base(mark, base)
    for _ in range(2):
        found = folder.load_base(name, tmp_path)
        assert fingerprint(found) == mark
        files = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
        assert list(files) == [f"{mark}.safetensors"]
    assert files == {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    for broken in (folder.store.read(name)[:-9], folder.store.read(name)[:-1] + b"?"):
        folder.store.write(name, broken)
        with pytest.raises(CorruptError, match="does not hold the base"):
            folder.load_base(name, tmp_path / str(len(broken)))


def test_a_name_is_given_once(bucket):
    store = RunFolder(bucket.format("team/once")).store
    assert store._conditional is not None  # botocore is here: S3 itself refuses
    assert store.create("history/00000000.json", b"first", "pending/x/event.json")
    assert not store.create("history/00000000.json", b"second", "pending/x/event.json")
    assert store.read("history/00000000.json") == b"first"
    store.__dict__["_conditional"] = None  # where it is not, the queue keeps writers apart
    assert not store.create("history/00000000.json", b"third", "pending/x/event.json")
    assert store.create("history/00000001.json", b"fourth", "pending/x/event.json")


def test_writers_of_a_bucket_wait_for_each_other(bucket):
    place = bucket.format("team/queue")
    told = []

    def write(i: int) -> None:
        try:
            for n in range(2):
                RunFolder(place).record("note", writes={f"notes/{i}-{n}": b"x", "notes/last": b"%d-%d" % (i, n)})
        except Exception as error:
            told.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    store = RunFolder(place).store
    assert told == [] and len(list(history.events(store))) == 4 and history.verify(store) == []
    assert store.list("writing") == [] and store.folders("pending") == []


def test_what_a_writer_of_a_bucket_left_behind_is_made_whole(bucket, monkeypatch):
    folder = RunFolder(bucket.format("team/cut"))
    folder.record("note", writes={"notes/a": b"1"})
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    gone = f"{files.new_mark().split('-')[0]}-{child}-0123abcd"
    folder.store.write(f"writing/{gone}.json", b"{}")  # a ticket
    folder.store.write(f"pending/{gone}/{'0' * 64}", b"half")  # and what had no event yet
    folder.settle()
    assert history.verify(folder.store) == [] and folder.store.list("writing") == []
    monkeypatch.setattr(history, "_put_in_place", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        folder.record("note", writes={"notes/a": b"2"})
    monkeypatch.undo()
    assert history.verify(folder.store) != []
    again = RunFolder(bucket.format("team/cut"))
    again.settle()
    assert again.store.read("notes/a") == b"2" and history.verify(again.store) == []


def test_what_another_takes_away_at_the_same_time_costs_nothing(bucket, monkeypatch):
    folder = RunFolder(bucket.format("team/both"))
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    gone = f"{files.new_mark().split('-')[0]}-{child}-0123abcd.json"
    listing = type(folder.store).listing

    def stale(store, name):
        return [*listing(store, name), *([(gone, 2, time.time_ns())] if name == "writing" else [])]

    monkeypatch.setattr(type(folder.store), "listing", stale)
    exists = type(folder.store).exists  # a ticket that was there each time when it was looked for
    monkeypatch.setattr(type(folder.store), "exists", lambda store, name: gone in name or exists(store, name))
    folder.record("note", writes={"notes/a": b"1"})
    folder.store.delete_folder("pending/none")
    assert len(list(history.events(folder.store))) == 1 and history.verify(folder.store) == []


def test_a_long_history_of_a_bucket_is_read_by_few_requests(bucket, monkeypatch):
    monkeypatch.setattr(history, "SEGMENT", 4)
    place = bucket.format("team/long")
    for n in range(10):
        RunFolder(place).record("note", n=n)
    history._known.clear()
    store = RunFolder(place).store
    asked = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda name: asked.append(name) or read(name))
    assert [e["n"] for e in history.events(store)] == list(range(10))
    assert sorted(n.removeprefix("history/") for n in asked) == [
        "00000000-00000003.events.json", "00000004-00000007.events.json", "00000008.json", "00000009.json",
    ]  # fmt: skip
    assert history.verify(store) == []
    name = "history/00000004-00000007.events.json"
    changed = store.read_json(name)
    changed["events"][1]["n"] = 50
    store.write_json(name, changed)
    history._known.clear()
    assert len([p for p in history.verify(store) if name in p and "delete it" in p]) == 1
    assert [e["n"] for e in history.events(store)] == list(range(10))  # read one by one
    store.delete(name)
    history._known.clear()
    assert len(list(history.events(store))) == 10 and history.verify(store) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)  # some 600 operations of 32 requests each, against a server of one thread
@pytest.mark.parametrize("seed", range(3))
def test_four_processes_write_to_a_bucket_and_many_are_killed(bucket, tmp_path, seed):
    place = bucket.format(f"team/stress-{seed}")
    for _ in range(3):
        RunFolder(place).add_version("version", lambda n: (PLAIN, {}))
    at_once(place, tmp_path / "done", processes=4, count=100, kills=40, seed=seed, fork=False)
