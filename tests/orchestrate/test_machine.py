"""What a machine lacks is told in a line before any work, with what to do about it."""

import os
import shutil
import socket
from collections import namedtuple

import pytest
import ray

from talos_ray import SpecError
from talos_ray.config import Cluster
from talos_ray.demo.tasks import cache_folder
from talos_ray.orchestrate import cluster, machine
from talos_ray.orchestrate.cluster import check_output, check_start
from talos_ray.storage.run_folder import RunFolder


def refused(call, match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_a_long_temporary_folder_is_refused_at_the_length_that_sockets_have(tmp_path, monkeypatch):
    below = "/ray/session_2026-11-29_10-40-01_123456_1234567/sockets/plasma_store.0"  # as Ray calls them
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/".ljust(107 - len(below), "x"))
    machine.check_machine(None)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/".ljust(108 - len(below), "x"))
    refused(lambda: machine.check_machine(None), r"paths of 108 bytes, .*takes 107; set RAY_TMPDIR")


def test_temporary_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    if len(str(tmp_path)) < 30:
        refused(lambda: machine.check_machine(None), r"\(from TMPDIR\) cannot be written: .*is a file")
    monkeypatch.setenv("TMPDIR", "/tmp")
    machine.check_machine(None)
    monkeypatch.setenv("TMPDIR", "rel")
    refused(lambda: machine.check_machine(None), r"'rel' \(from TMPDIR\) is relative")
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    refused(lambda: machine.check_machine(None), r"'/proc' \(from RAY_TMPDIR\) cannot be written: .*in '/proc'")


def test_no_room_for_the_object_store(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage(1 << 40, 0, 10 << 20))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    refused(lambda: machine.check_machine(None), r"there are 10 MB in .*and its object store wants 200 MB")


def test_no_home_and_caches_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TALOS_CACHE", raising=False)

    def no_home(path) -> None:
        raise RuntimeError("Could not determine home directory.")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.expanduser", no_home)
        refused(machine.check_caches, "HOME is not set.*set HOME, or TALOS_CACHE and HF_HOME")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("TALOS_CACHE", str(tmp_path / "file" / "cache"))
    refused(machine.check_caches, r"cannot be written: '.*file' is a file; set TALOS_CACHE")
    monkeypatch.setenv("TALOS_CACHE", str(tmp_path / "new" / "cache"))
    machine.check_caches()
    assert not (tmp_path / "new").exists()  # looked at, and not made
    assert not list(tmp_path.glob("tmp*"))
    monkeypatch.setenv("TALOS_CACHE", "/proc/cache")
    refused(machine.check_caches, r"the cache '/proc/cache' cannot be written: .*in '/proc'.*; set TALOS_CACHE")
    monkeypatch.setenv("TALOS_CACHE", "~nobody-of-that-name/cache")
    refused(machine.check_caches, r"TALOS_CACHE is '~nobody-of-that-name/cache', and there is no such user")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TALOS_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache"


def test_a_dead_address_is_told_at_once_and_a_live_one_is_not(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        check_start(Cluster())
    refused(lambda: check_start(Cluster()), rf"no Ray cluster answers at '127.0.0.1:{port}'.*unset RAY_ADDRESS")
    refused(lambda: check_start(Cluster(address="ray://127.0.0.1:1")), "no Ray cluster answers")


@pytest.mark.parametrize("address", ["foo", "127.0.0.1", "http://127.0.0.1:8265", "ray://somewhere"])
def test_what_is_no_address_is_told(address, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    refused(lambda: check_start(Cluster()), f"'{address}' is no address of a Ray cluster; wanted HOST:PORT")
    refused(lambda: check_start(Cluster(address="auto")), "is no address of a Ray cluster")  # Ray prefers the variable


def test_auto_is_looked_for_on_this_machine(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(machine, "running_here", lambda: None)
    refused(lambda: check_start(Cluster()), "no Ray runs on this machine that the address 'auto' could mean")
    monkeypatch.setattr(machine, "running_here", lambda: "127.0.0.1:1")  # which has ended since
    refused(lambda: check_start(Cluster()), "no Ray cluster answers at '127.0.0.1:1'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(machine, "running_here", lambda: f"127.0.0.1:{server.getsockname()[1]}")
        check_start(Cluster())
    machine.check_machine("anyscale://cluster")  # what others plug into Ray is theirs to judge


def test_a_start_that_was_too_slow_is_tried_again_and_other_failures_are_told(monkeypatch):
    asked = []

    def slow(**how) -> None:
        asked.append(how)
        if len(asked) < 3:
            raise Exception("The current node timed out during startup. This could happen")

    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", slow)
    cluster._start(4, address="local")
    assert len(asked) == 3

    def broken(**how) -> None:
        asked.append(how)
        raise ValueError("the object store\nhas no room")

    monkeypatch.setattr(ray, "init", broken)
    refused(
        lambda: cluster._start(4, address="local"), "Ray did not start on this machine: the object store has no room"
    )
    assert len(asked) == 4  # asking again does not help


def test_an_output_that_is_somebody_elses(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "users" / "me"))
    work = tmp_path / "work"
    (work / "data" / "pets").mkdir(parents=True)
    data = [str(work / "data"), str(work / "rows.csv")]
    os.symlink(work / "data", work / "link")
    os.symlink(work / "one", work / "other")
    os.symlink(work / "other", work / "one")
    (work / "notes.txt").write_text("mine")
    other = RunFolder(str(work / "another"))
    other.begin({}, "b" * 64, {}, {}, {})
    for output, match in (
        ("s3:/bucket/run", "wanted two slashes, like 's3://bucket/run'"),
        ("/", "not for a run alone"),
        (str(tmp_path / "users"), "not for a run alone"),
        ("~", "not for a run alone"),
        ("/proc/run", "belongs to the system"),
        (str(work / "data"), "lies in the data"),
        (str(work / "data" / "pets" / "run"), "lies in the data"),
        (str(work / "link" / "run"), "lies in the data"),
        (str(work), "contains the data"),
        ("file:///", "not for a run alone"),
        ("file:///proc/run", "belongs to the system"),
        ("/etc/run", "belongs to the system"),
        (f"file://{work}/data/pets/run", "lies in the data"),
        (f"file://{work}/d%61ta/run", "lies in the data"),
        (str(work / "notes.txt"), "is a file, or lies in one"),
        (str(work / "notes.txt" / "run"), "is a file, or lies in one"),
        (str(work / "another" / "deltas" / "run"), "lies in the run"),
        (str(work / "one" / "run"), "is no place for a folder"),
        (str(work / ("x" * 300)), "is no place for a folder"),
        ("~nobody-at-all/run", "is no place for a folder"),
    ):
        refused(lambda output=output: check_output(output, data), match)
    check_output(str(work / "run"), data)
    check_output(str(work / "another"), data)  # a run goes on in its own folder
    check_output(f"file://{work}/run", data)
    check_output("~/run", data)
    check_output("s3://bucket/run", ["demo:counts"])
