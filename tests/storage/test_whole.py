"""Operations that are whole or have not happened: cut at every step, refused by the disk, and by four processes at once."""

import errno
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from records import PLAIN, killed_at, old_run, small_run
from writers import at_once

import talos_ray
from talos_ray import ConflictError, CorruptError, StorageError
from talos_ray.storage import history
from talos_ray.storage.files import Store, is_gone, new_mark
from talos_ray.storage.run_folder import RunFolder
from talos_ray.trust import versions
from talos_ray.trust.signatures import sign


def test_a_run_of_the_first_release_opens_verifies_and_goes_on(tmp_path):
    run = talos_ray.open_run(str(old_run(tmp_path)))
    assert (run.head, run.verify(), len(run.history()), run.held(2)) == (1, [], 9, True)
    for task in run.scores:  # it recorded no probabilities
        found = run.class_scores(task)
        right = sum(row[i] for i, row in enumerate(found.confusion))
        assert right == int(run.folder.load_answers(1).right(task).sum()) and found.calibration_error is None
    run.approve(2, by="J. Doe", reason="a try").rollback()
    assert run.head == 1 and run.verify() == []
    names = sorted(p.name for p in Path(run.path, "history").iterdir())
    assert [len(n) for n in names] == [78] * 9 + [13] * 2  # what is there stays as it is
    assert "Approved by J. Doe (a try)" in Path(run.path, "report/0002.html").read_text()


def rollback(path: Path) -> None:
    versions.rollback(RunFolder(str(path)), None, "cut")


def approval(path: Path) -> None:
    versions.approve(RunFolder(str(path)), 2, "J. Doe", "cut")


def note(path: Path) -> None:
    versions.add_robustness(RunFolder(str(path)), 1, {})


def signature(path: Path) -> None:
    sign(Store(str(path)), Ed25519PrivateKey.generate())


def pages(path: Path) -> None:
    versions.add_pages(RunFolder(str(path)), [1, 2], "pages")


def version(path: Path) -> None:
    RunFolder(str(path)).add_version("version", lambda n: (PLAIN, {"report/index.html": b"new"}))


def beginning(path: Path) -> None:
    RunFolder(str(path)).begin({"seed": 1}, "b" * 64, {}, {}, {})


def cut_everywhere(source: Path, work, tmp_path: Path, capfd, step: int = 1) -> int:
    """Kill `work` after each of its changes of the disk: the next command makes it whole. Returns how many there are."""
    before = len(list(history.events(Store(str(source)))))
    for call in range(1, 500, step):
        path = tmp_path / f"cut{call}"
        shutil.copytree(source, path)
        killed = killed_at(call, lambda path=path: work(path))
        capfd.readouterr()
        folder = RunFolder(str(path))
        folder.settle()
        said = capfd.readouterr().err.splitlines()
        assert len(said) <= 1 and history.verify(folder.store) == [], (call, said)
        took_effect = len(list(history.events(folder.store))) - before
        assert took_effect in (0, 1)
        if took_effect == 0:
            work(path)  # nothing has happened: the same command does it
        assert history.verify(folder.store) == [] and len(list(history.events(folder.store))) == before + 1
        shutil.rmtree(path)
        if not killed:
            return call
    raise AssertionError("the work has no end")


def test_a_version_that_is_cut_anywhere_is_there_or_not(tmp_path, capfd):
    source = tmp_path / "run"
    small_run(source)
    assert cut_everywhere(source, version, tmp_path, capfd) > 15


@pytest.mark.slow
@pytest.mark.parametrize("work", [rollback, approval, note, beginning, signature, pages])
def test_an_operation_that_is_cut_anywhere_is_whole_or_has_not_happened(work, tmp_path, capfd):
    assert cut_everywhere(old_run(tmp_path), work, tmp_path, capfd) > 10


def test_the_same_command_again_after_a_cut_changes_nothing(tmp_path, capfd):
    source = old_run(tmp_path)
    seen = set()
    for call in range(6, 60, 4):
        path = tmp_path / f"again{call}"
        shutil.copytree(source, path)
        killed_at(call, lambda path=path: rollback(path))
        if history._is_settled(Store(str(path))) and RunFolder(str(path)).head == 0:
            break  # the kill came when all was done
        rollback(path)  # from version 1 to 0, once, whether the first one took effect or not
        run = talos_ray.open_run(str(path))
        assert run.head == 0 and run.verify() == [] and len(run.history()) == 10
        seen.add("took effect before it was cut off" in capfd.readouterr().err)
    assert seen == {True, False}


def test_a_disk_that_is_full_at_any_write_leaves_nothing_half_in_force(tmp_path, monkeypatch, capfd):
    source = old_run(tmp_path)
    real = Store._write
    told = []
    for write in range(1, 40):
        path = tmp_path / f"full{write}"
        shutil.copytree(source, path)
        left = [write]

        def full(self, name, data, left=left):
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(self, name, data)

        monkeypatch.setattr(Store, "_write", full)
        try:
            rollback(path)
            break
        except StorageError as error:
            told.append(str(error))
        finally:
            monkeypatch.setattr(Store, "_write", real)
        folder = RunFolder(str(path))
        in_force = "took effect as event 9" in told[-1]
        assert "No space left on device" in told[-1] and folder.head == (0 if in_force else 1)
        rollback(path)
        assert folder.head == 0 and history.verify(folder.store) == []
        shutil.rmtree(path)
    assert any("took effect" in t for t in told) and any("took effect" not in t for t in told)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB of its own, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_real_disk_that_is_full_is_told_and_leaves_nothing_half_in_force(small_disk, tmp_path, capfd):
    """Filled up to so many pages: the work fails in every place that a page may be missing in, and once more it is whole."""
    source = old_run(tmp_path)
    refused = 0
    for pages in range(0, 200, 3):
        path = small_disk / "run"
        shutil.copytree(source, path)
        filler = small_disk / "filler"
        room = shutil.disk_usage(small_disk).free - pages * 4096
        filler.write_bytes(bytes(room))
        try:
            rollback(path)
        except StorageError as error:
            refused += 1
            assert "No space left on device" in str(error)
            filler.unlink()
            assert RunFolder(str(path)).head == (0 if "took effect as event 9" in str(error) else 1)
            rollback(path)
            assert RunFolder(str(path)).head == 0 and history.verify(Store(str(path))) == []
        else:
            assert RunFolder(str(path)).head == 0 and history.verify(Store(str(path))) == []
            assert refused >= 5
            return
        shutil.rmtree(path)
    raise AssertionError("the disk was never large enough")


def test_a_folder_that_can_only_be_read_is_read_as_it_is(tmp_path, monkeypatch, capfd):
    path = old_run(tmp_path)
    assert killed_at(22, lambda: rollback(path))

    def refused(self, name, data):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Store, "_write", refused)
    monkeypatch.setattr(Store, "delete_folder", lambda self, name: refused(self, name, b""))
    run = talos_ray.open_run(str(path))
    assert run.head in (0, 1) and run.versions and run.history()
    assert len(capfd.readouterr().err.splitlines()) <= 1
    with pytest.raises((StorageError, OSError), match="Read-only"):
        run.rollback(0)


def test_a_clock_that_was_set_back_changes_nothing_in_the_order_of_events(tmp_path, monkeypatch):
    folder = small_run(tmp_path / "run")
    old = type(
        "Old",
        (),
        {"now": staticmethod(lambda zone: history.UTC and __import__("datetime").datetime(2001, 1, 1, tzinfo=zone))},
    )
    monkeypatch.setattr(history, "datetime", old)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    folder.set_head(0, "rollback")
    assert (
        folder.head == 0
        and history.last(folder.store)["time"].startswith("2001")
        and history.verify(folder.store) == []
    )


def test_an_answer_that_was_lost_is_no_second_event(tmp_path, monkeypatch):
    folder = small_run(tmp_path / "run")
    real = Store.create

    def lost(self, name, data, staged):
        assert real(self, name, data, staged)
        raise StorageError("the connection broke")

    monkeypatch.setattr(Store, "create", lost)
    with pytest.raises(StorageError, match="connection broke"):
        folder.set_head(0, "rollback", {"report/index.html": b"x"})
    monkeypatch.undo()
    folder.settle()
    assert folder.head == 0 and len(list(history.events(folder.store))) == 4 and history.verify(folder.store) == []
    monkeypatch.setattr(
        Store, "create", lambda *args: not real(*args)
    )  # S3: "it exists", because the first try came through
    folder.set_head(1, "rollback")
    assert folder.head == 1 and len(list(history.events(folder.store))) == 5


def test_a_writer_says_who_holds_it_up(tmp_path):
    store = small_run(tmp_path / "run").store
    with Store(store.uri).alone(), pytest.raises(ConflictError, match="being written to by another process"):
        Path(store.path("pending")).mkdir(exist_ok=True)
        with store.alone(patience=0.05):
            pass
    with store.alone(patience=0.05):
        pass


def test_a_process_is_gone_when_it_is(tmp_path):
    assert not is_gone(new_mark(), 1e9)
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    mine = new_mark().split("-")
    assert is_gone(f"{mine[0]}-{child}-00000000", 0.0)
    assert not is_gone("elsewhere-1-00000000", 1.0) and is_gone("elsewhere-1-00000000", 1e6)


def test_what_is_left_of_a_file_that_was_being_written_is_named_and_swept(tmp_path):
    folder = small_run(tmp_path / "run")
    mine = new_mark().split("-")
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead, alive = (
        Path(folder.store.root, f"report/.x.html.{mine[0]}-{pid}-0123abcd.part") for pid in (child, os.getpid())
    )
    dead.write_text("half")
    alive.write_text("half")
    assert len([p for p in history.verify(folder.store) if ".part" in p]) == 2
    assert folder.store.sweep() == [str(dead.relative_to(folder.store.root))] and alive.exists()


def test_four_processes_write_to_one_run(tmp_path):
    small_run(tmp_path / "run")
    at_once(str(tmp_path / "run"), tmp_path / "done", processes=4, count=6, kills=4, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_four_processes_of_which_many_are_killed(tmp_path, seed, capfd):
    small_run(tmp_path / "run")
    at_once(str(tmp_path / "run"), tmp_path / "done", processes=4, count=100, kills=40, seed=seed)
    assert all("run '" in line for line in capfd.readouterr().err.splitlines())


def test_a_reader_between_an_event_and_its_files_waits_for_them(tmp_path, capfd):
    small_run(tmp_path / "run")
    for call in range(9, 30):
        shutil.copytree(tmp_path / "run", path := tmp_path / f"cut{call}")
        killed_at(call, lambda path=path: version(path))
        folder = RunFolder(str(path))
        if len(list(history.events(folder.store))) == 4:
            break
    assert folder.head == 3 and not folder.store.exists("versions/0003.json")
    assert folder.load_version(3).number == 3 and history.verify(folder.store) == []


@pytest.mark.parametrize("command", ["status", "rollback", "approve", "report", "diff", "export", "held", "model"])
def test_readers_refuse_a_version_that_was_edited(tmp_path, command):
    path = old_run(tmp_path)
    run = talos_ray.open_run(str(path))
    place = path / "versions/0002.json"
    edited = json.loads(place.read_text())
    assert edited["gate"]["result"] == "fail"
    edited["gate"]["result"] = "pass"
    place.write_text(json.dumps(edited, indent=1, sort_keys=True) + "\n")
    with pytest.raises(CorruptError, match=r"versions/0002\.json was changed since it was recorded"):
        {
            "status": lambda: run.held(),
            "rollback": lambda: run.rollback(2),
            "approve": lambda: run.approve(2, by="x", reason="y"),
            "report": lambda: run.report(tmp_path / "page.html", 2),
            "diff": lambda: run.diff(1, 2),
            "export": lambda: run.export(tmp_path / "out", 2),
            "held": lambda: run.held(2),
            "model": lambda: run.model(2),
        }[command]()
    assert run.head == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["run.json", "predictions/0001.safetensors", "report/0000.html", "mask.safetensors"])
def test_readers_refuse_other_files_that_were_edited(tmp_path, name):
    path = old_run(tmp_path)
    run = talos_ray.open_run(str(path))
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(CorruptError, match=name):
        {
            "run.json": lambda: talos_ray.open_run(str(path)),
            "predictions/0001.safetensors": lambda: run.diff(0, 1),
            "report/0000.html": lambda: run.rollback(0),
            "mask.safetensors": lambda: run.mask,
        }[name]()
