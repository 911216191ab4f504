"""Trackers get what was measured, and one that fails costs nothing."""

import importlib.util
import time
import urllib.request

import pytest

from talos_ray import SpecError
from talos_ray.orchestrate.watch import Tracker, Watch, check_tracker
from talos_ray.storage.version import Version

STATE = {
    "sparse/a": {"step": 3, "steps": 9, "loss": 0.5, "state": "training"},
    "sparse/b": {"step": 0, "steps": 9, "loss": None, "state": "waiting"},
}
SCORES = {kind: {"value": value, "n": 4, "low": 0.0, "high": 1.0} for kind, value in (("base", 0.25), ("merged", 0.75))}
VERSION = Version(
    model="m", coefficients={}, scores={"a": SCORES}, summary={"merged": 0.75, "control_kept": {}}
)  # as it is read


def told(tracker: Tracker) -> None:
    watch = Watch(tracker, "runs/x")
    watch.training(STATE, 1)
    watch.training(STATE, 1)
    watch.candidate("sparse", 1, 0.625, 0.625)
    watch.version(VERSION)
    tracker.close()


def test_mlflow_gets_the_metrics(tmp_path, monkeypatch):
    where = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its server needs more than the package that is tested
    said = []
    told(Tracker("mlflow", "runs/x", {"seed": 7}, said.append))
    from mlflow import MlflowClient

    client = MlflowClient(where)
    (run,) = client.search_runs(["0"])
    assert said == [] and run.info.run_name == "runs/x" and run.data.params == {"seed": "7"}
    assert run.data.metrics == {
        "sparse/a/loss": 0.5, "search/sparse/objective": 0.625, "test/a/base": 0.25, "test/a/merged": 0.75, "test/merged": 0.75,
    }  # fmt: skip
    history = client.get_metric_history(run.info.run_id, "sparse/a/loss")
    assert [m.step for m in history] == [3]  # what has not changed is told once


def test_wandb_gets_the_metrics(tmp_path, monkeypatch):
    for key, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    said = []
    told(Tracker("wandb", "runs/x", {"seed": 7}, said.append))
    (log,) = tmp_path.rglob("run-*.wandb")
    wanted = {b"sparse/a/loss", b"search/sparse/objective", b"test/a/merged"}
    deadline = time.monotonic() + 30  # wandb's own process writes the file, and may do so after `finish`
    while (missing := {word for word in wanted if word not in log.read_bytes()}) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert said == [] and not missing


def test_tensorboard_gets_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGDIR", str(tmp_path))
    said = []
    told(Tracker("tensorboard", "runs/x", {"seed": 7}, said.append))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "runs-x")).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert said == [] and found == {
        "sparse/a/loss": [(3, 0.5)], "search/sparse/objective": [(1, 0.625)],
        "test/a/base": [(0, 0.25)], "test/a/merged": [(0, 0.75)], "test/merged": [(0, 0.75)],
    }  # fmt: skip


def test_a_tracker_that_fails_is_left_alone(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:/x")
    said = []
    told(Tracker("mlflow", "runs/x", {}, said.append))
    assert len(said) == 1 and "the run goes on without it" in said[0]


def test_a_tracker_that_is_not_installed_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"tracker is 'wandb'.*pip install"):
        check_tracker("wandb")
    check_tracker(None)


def test_rays_own_metrics_have_the_gauges(ray_here):
    """Where Prometheus, and so Ray's dashboard, reads them."""
    with Watch(Tracker(None, "run", {}, print), "s3://bucket/run") as watch:
        watch.training(STATE, 1)
        watch.candidate("sparse", 1, 0.625, 0.625)
        wanted = {
            'talos_ray_tasks{state="training"}': 1, 'talos_ray_tasks{state="waiting"}': 1, 'talos_ray_tasks{state="done"}': 0,
            'talos_ray_step{task="sparse/a"}': 3, "talos_ray_steps{}": 3, "talos_ray_steps_wanted{}": 18, 'talos_ray_loss{task="sparse/a"}': 0.5, "talos_ray_restarts{}": 1,
            'talos_ray_objective{arm="sparse"}': 0.625,
        }  # fmt: skip
        url = f"http://127.0.0.1:{ray_here.nodes()[0]['MetricsExportPort']}/metrics"
        deadline, found = time.monotonic() + 60, {}
        while wanted.items() - found.items() and time.monotonic() < deadline:
            time.sleep(1)
            found = gauges(urllib.request.urlopen(url, timeout=10).read().decode())
    assert wanted.items() <= found.items()


def gauges(page: str) -> dict[str, float]:
    """Our own lines of a page of metrics of the run, by name and the label that is ours beside the run's."""
    found = {}
    for line in page.splitlines():
        if line.startswith("ray_talos_ray_") and 'run="s3://bucket/run"' in line:
            name, _, rest = line.removeprefix("ray_").partition("{")
            labels, _, value = rest.rpartition("} ")
            ours = [x for x in labels.split(",") if x.partition("=")[0] in ("state", "task", "arm")]
            found[f"{name}{{{''.join(ours)}}}"] = float(value)
    return found
