"""How far a run is, for who looks at its folder from elsewhere."""

import io
import json
import time

from pyarrow import fs
from records import small_run
from rich.console import Console
from typer.testing import CliRunner

from talos_ray.cli import app
from talos_ray.orchestrate.session import _telling
from talos_ray.progress import Progress
from talos_ray.storage import history
from talos_ray.storage.files import patient


def test_a_process_tells_how_far_it_is_while_it_works_and_no_longer(tmp_path):
    folder = small_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    progress = Progress(Console(file=io.StringIO(), width=120))
    with _telling(folder, progress):
        progress.begin("train", "starting the workers")
        found = history.read_now(folder.store)
        assert found["stages"]["train"]["note"] == "starting the workers" and found["restarts"] == 0
        assert abs(found["time"] - time.time()) < 60
        shown = CliRunner().invoke(app, ["top", str(tmp_path / "run"), "--once"])
        assert shown.exit_code == 0 and "starting the workers" in shown.output and "0 restart(s)" in shown.output
        as_json = CliRunner().invoke(app, ["top", str(tmp_path / "run"), "--json"])
        assert json.loads(as_json.output)["stages"]["train"]["state"] == "running"
    assert history.read_now(folder.store) is None
    over = CliRunner().invoke(app, ["top", str(tmp_path / "run")])
    assert over.exit_code == 0 and "nobody works on" in over.output


class Refusing(fs.SubTreeFileSystem):
    """Storage that is not there for a while, and how often it was asked."""

    asked = 0

    def get_file_info(self, paths):
        self.asked += 1
        raise OSError("connection reset")


def test_storage_that_refuses_does_not_hold_up_what_is_told(tmp_path):
    folder = small_run(tmp_path / "run")
    folder.store.fs = Refusing(str(tmp_path), fs.LocalFileSystem())
    progress = Progress(Console(file=io.StringIO(), width=120))
    with patient(3600), _telling(folder, progress):
        progress.begin("train", "starting the workers")
    assert folder.store.fs.asked > 0  # and not for an hour


def test_verify_takes_nothing_else_for_it(tmp_path):
    store = small_run(tmp_path / "run").store
    whole = {"stages": {}, "tasks": {}, "lines": [], "time": 1.0}
    store.write_json(history.NOW, whole)
    assert history.verify(store) == []  # left by a process that was killed: the next one writes its own
    for other in ({**whole, "time": "soon"}, {**whole, "lines": 3}, {"mine": 1}):
        store.write_json(history.NOW, other)
        (problem,) = history.verify(store)
        assert "now.json does not hold what a run tells of itself" in problem
    store.write(history.NOW, b"\x00 not JSON")
    assert len(history.verify(store)) == 1
