"""What earlier releases left behind is put in order: nothing without `--yes`, nothing thrown away, and never what decides a score."""

import json
import shutil
from pathlib import Path

import pytest
from records import killed_at, old_run
from typer.testing import CliRunner

from talos_ray import TalosError
from talos_ray.cli import app
from talos_ray.storage import history
from talos_ray.storage.files import as_json
from talos_ray.storage.run_folder import RunFolder
from talos_ray.trust import versions
from talos_ray.trust.repair import repair


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def named(event: dict) -> str:
    """A file's name as release 0.1 gave it."""
    return f"{event['number']:08d}-{history.digest_of(event)}.json"


def add_event(run: Path, **changes) -> Path:
    """An event as release 0.1 wrote it: after the last one, or with a number that there is already."""
    last = json.loads(max((run / "history").iterdir()).read_text())
    event = {**last, "number": last["number"] + 1, "previous": history.digest_of(last), "files": {}, **changes}
    path = run / "history" / named(event)
    path.write_bytes(as_json(event))
    return path


@pytest.fixture
def run(tmp_path) -> Path:
    return old_run(tmp_path)


def mended(run: Path, kept: Path) -> list[str]:
    """What was done; without --yes it is said, and nothing changes."""
    before = contents(run)
    would, _ = repair(RunFolder(str(run)), kept, yes=False)
    assert would and contents(run) == before and not kept.exists()
    done, left = repair(RunFolder(str(run)), kept, yes=True)
    assert left == [] and history.verify(RunFolder(str(run)).store) == []
    assert repair(RunFolder(str(run)), kept.with_name("again"), yes=True) == ([], [])
    return done


@pytest.mark.parametrize("number", [3, 8])  # in the middle; the last one, of which head.json tells which counts
def test_the_event_of_a_loser_who_was_killed_is_taken_out(run, tmp_path, number):
    before = contents(run)
    old = json.loads(next((run / "history").glob(f"{number:08d}-*")).read_text())
    loser = run / "history" / named({**old, "user": "loser"})
    loser.write_bytes(as_json({**old, "user": "loser"}))
    done = mended(run, tmp_path / "kept")
    assert len(done) == 1 and loser.name in done[0]
    assert contents(run) == before and (tmp_path / "kept/history" / loser.name).is_file()


def test_where_nothing_tells_which_of_two_events_counts_nobody_guesses(run, tmp_path):
    last = json.loads(max((run / "history").iterdir()).read_text())
    other = run / "history" / named({**last, "user": "loser"})
    other.write_bytes(as_json({**last, "user": "loser"}))
    (run / "head.json").unlink()
    before = contents(run)
    with pytest.raises(TalosError, match="neither the next event nor head.json says which one counts"):
        repair(RunFolder(str(run)), tmp_path / "kept", yes=True)
    assert contents(run) == before


def test_an_event_that_was_cut_off_before_head_followed_it_is_no_dead_end(run):
    add_event(run, operation="rollback", version=0, head=0)
    versions.rollback(RunFolder(str(run)), 1, "as it was")
    assert RunFolder(str(run)).head == 1 and history.verify(RunFolder(str(run)).store) == []


@pytest.mark.slow
def test_a_repair_that_is_cut_anywhere_is_ended_by_the_next_one(run, tmp_path):
    pages = {f"report/{name}": "0" * 64 for name in ("0002.html", "index.html", "scores.csv")}
    add_event(run, operation="approve", version=2, head=2, by="J. Doe", reason="a try", files=pages)
    (run / "history" / "notes.txt").write_text("mine")
    for call in range(1, 200):
        path, kept = tmp_path / f"cut{call}", tmp_path / f"kept{call}"
        shutil.copytree(run, path)
        killed = killed_at(call, lambda path=path, kept=kept: repair(RunFolder(str(path)), kept, yes=True))
        folder = RunFolder(str(path))
        folder.settle()  # as every command does first
        repair(folder, kept.with_name(f"again{call}"), yes=True)
        assert history.verify(RunFolder(str(path)).store) == [], call
        mine = [*kept.rglob("notes.txt"), *kept.with_name(f"again{call}").rglob("notes.txt")]
        assert any(p.read_text() == "mine" for p in mine), call
        if not killed:
            return
    raise AssertionError("the repair has no end")


def test_an_approval_that_was_cut_off_before_its_pages_gets_them(run, tmp_path):
    pages = {f"report/{name}": "0" * 64 for name in ("0002.html", "index.html", "scores.csv")}
    path = add_event(run, operation="approve", version=2, head=2, by="J. Doe", reason="a try", files=pages)
    event = json.loads(path.read_text())
    (run / "head.json").write_bytes(as_json({"version": 2, "event": event["number"], "hash": history.digest_of(event)}))
    done = mended(run, tmp_path / "kept")
    assert len(done) == 1 and "report/0002.html" in done[0]
    assert "Approved by J. Doe (a try)" in (run / "report/index.html").read_text()
    assert (run / "report/index.html").read_bytes() == (run / "report/0002.html").read_bytes()


def test_strays_and_a_head_that_points_nowhere(run, tmp_path):
    (run / "versions/0001.json~").write_text("{}")
    (run / "history/notes.txt").write_text("hm")
    (run / "head.json").write_text('{"version": 1, "event": 2, "hash": "abc"}\n')
    done = mended(run, tmp_path / "kept")
    assert len(done) == 3
    assert (tmp_path / "kept/versions/0001.json~").is_file() and (tmp_path / "kept/history/notes.txt").is_file()


def test_what_decides_a_model_or_a_score_comes_from_a_copy_alone(run, tmp_path):
    delta = next((run / "deltas").glob("*.safetensors"))
    delta.write_bytes(delta.read_bytes()[:-1] + b"\x01")
    version = run / "versions/0001.json"
    version.write_text(version.read_text().replace("0.", "1.", 1))
    before = contents(run)
    done, left = repair(RunFolder(str(run)), tmp_path / "kept", yes=True)
    assert done == [] and len(left) == 2 and contents(run) == before


def test_the_command_says_first_and_does_then(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "stray").write_text("x")
    tell = CliRunner().invoke(app, ["repair", str(run)])
    assert tell.exit_code == 1 and "add --yes" in tell.output and (run / "stray").exists()
    do = CliRunner().invoke(app, ["repair", str(run), "--yes"])
    assert do.exit_code == 0 and not (run / "stray").exists() and (tmp_path / "talos-repair/stray").read_text() == "x"
    assert CliRunner().invoke(app, ["repair", str(run)]).exit_code == 0
