"""The pipeline on a real local Ray, with a smaller spec: every stage, run again, changed, killed."""

import copy
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

import talos_ray
from talos_ray import MismatchError, SpecError, TalosError
from talos_ray.config import Spec
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import mask_from_flags
from talos_ray.estimate import estimate
from talos_ray.inputs import Examples
from talos_ray.models import base_tensors, load_model
from talos_ray.models.heads import scorer
from talos_ray.orchestrate.plan import prepare
from talos_ray.orchestrate.session import Session
from talos_ray.progress import Progress
from talos_ray.report.page import probe_would_do
from talos_ray.spec import make_spec
from talos_ray.storage.run_folder import RunFolder
from talos_ray.tasks import load_task


def files(folder) -> dict[str, tuple[float, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in Path(folder).rglob("*")
        if p.is_file()
    }


def test_the_run_holds_what_the_design_lists(finished):
    run, _ = finished
    found = set(files(run.path))
    assert {
        "run.json",
        "head.json",
        "mask.safetensors",
        "versions/0000.json",
        "versions/0001.json",
        "report/index.html",
        "report/scores.csv",
    } <= found
    assert {f"deltas/{t}.safetensors" for t in ("pointers", "scanned_digits", "sides")} <= found
    assert not any(
        f.startswith("checkpoints/") or Path(f).name.startswith(".") or f.endswith((".pkl", ".pickle", ".pt"))
        for f in found
    )
    assert [e["operation"] for e in run.history()] == ["start", "calibrate", "train", "version", "version"]
    assert run.head == 1 and set(run.scores) == {"pointers", "scanned_digits", "sides", "held"}
    assert {"base", "probe", "single", "merged"} <= set(run.scores["sides"]) and run.scores["sides"]["merged"]["n"] == 24


def test_no_process_is_started_to_ask_for_nodes_where_none_can_come(finished):
    with pytest.raises(ValueError, match="AutoscalingCoordinator"):
        ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")


def test_report_and_version_show_the_same_numbers(finished):
    run, _ = finished
    page = (Path(run.path) / "report/index.html").read_text()
    for task, kinds in run.scores.items():
        assert task in page
        for s in (score for kind, score in kinds.items() if kind != "single_words"):  # the table has it, the page has not
            assert f"{s['value']:.3f} <small>{s['low']:.3f}-{s['high']:.3f}</small>" in page
    rows = (Path(run.path) / "report/scores.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(len(k) for k in run.scores.values())
    page = page.replace("http-equiv", "")
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_the_version_says_how_far_edits_disturb_each_other(finished):
    run, _ = finished
    found = run.folder.load_version(1).search
    xi = found.disentanglement
    assert xi.tasks == ["pointers", "scanned_digits", "sides"] and set(xi.together) == set(xi.tasks)
    assert all(0 <= v <= 1 for row in xi.pairs for v in row) and all(xi.pairs[i][i] == 0 for i in range(3))
    page = (Path(run.path) / "report/index.html").read_text()
    assert "Disentanglement error by pair of tasks" in page and "Mean coefficient by task and tensor" in page


def test_the_probe_stands_beside_the_merged_model(finished):
    run, _ = finished
    version = run.folder.load_version(1)
    targets = version.targets
    assert set(version.probe) == set(targets) and all(version.scores[t].probe for t in targets)
    assert version.summary.probe == pytest.approx(sum(version.scores[t].probe.value for t in targets) / 3)
    enough = probe_would_do(version)
    page = (Path(run.path) / "report/0001.html").read_text()
    assert ("would do for: " + ", ".join(enough) in page) == bool(enough)


def test_what_was_learned_is_summarised_in_the_version(finished):
    run, _ = finished
    version = run.folder.load_version(1)
    learned, (blend, heads) = version.learned, run.folder.load_learned(version)
    assert learned.granularity == "row" and sorted(heads) == learned.heads == sorted(run.heads(1))
    for task, a in blend.values.items():
        assert len(a) == learned.count and learned.range[task] == [float(a.min()), float(a.max())]
        assert version.coefficients[task] == pytest.approx(blend.means(run.mask)[task])
    assert set(version.search.by_tensor["sides"]) == set(run.mask.indices)


def test_scores_are_those_of_the_stored_deltas(finished):
    """Compose from storage alone, in this process, and count again."""
    run, values = finished
    family, version = run.model(), run.version
    spec = make_spec(values)
    for task in (*spec.tasks, *spec.control):
        data = load_task(task, spec.seed)
        examples = Examples(data.test, family.preprocess)
        inputs, labels = examples.batch(torch.arange(len(examples)))
        kind, head = run.folder.heads_of(version)[task.name]
        with torch.inference_mode():
            right = int((scorer(family, kind, head)(inputs).argmax(-1) == labels).sum())
        assert right / len(labels) == pytest.approx(
            version.scores[task.name].merged.value, abs=1.01 / len(labels)
        )


def test_outside_the_mask_every_version_is_bitwise_the_base(finished):
    run, _ = finished
    base, edited = base_tensors(load_model("demo")), base_tensors(run.model())
    flags = {n: f.view(edited[n].shape) for n, f in run.mask.layout.split(run.mask.flags).items()}
    assert 0.19 * run.mask.layout.total < run.mask.k <= 0.2 * run.mask.layout.total
    for n, t in base.items():
        outside = ~flags[n] if n in flags else torch.ones_like(t, dtype=torch.bool)
        assert torch.equal(t[outside], edited[n][outside]), n
    for delta in run.deltas.values():
        assert (
            delta.values.dtype == torch.bfloat16
            and delta.values.numel() == run.mask.k
            and float(delta.values.abs().max()) > 0
        )


def test_rollback_restores_the_bases_fingerprint_and_can_be_undone(finished):
    run, _ = finished
    before = fingerprint(base_tensors(run.model()))
    run.rollback(reason="a test")
    assert run.head == 0 and run.coefficients == {}
    assert fingerprint(base_tensors(run.model())) == run.info["base"] == fingerprint(base_tensors(load_model("demo")))
    assert run.history()[-1]["operation"] == "rollback" and run.history()[-1]["reason"] == "a test"
    with pytest.raises(TalosError, match="nothing before it"):
        run.rollback()
    run.rollback(1)
    assert fingerprint(base_tensors(run.model())) == before == run.version.model


def test_a_second_run_does_nothing_and_says_so(finished, capsys):
    run, values = finished
    before = files(run.path)
    talos_ray.edit(**copy.deepcopy(values))
    assert files(run.path) == before
    assert "Nothing to do" in capsys.readouterr().out


def test_only_a_changed_task_is_trained_again(finished, tmp_path):
    run, values = finished
    values = {**copy.deepcopy(values), "output": str(tmp_path / "run")}
    shutil.copytree(run.path, values["output"])
    values["tasks"][0] = {"recipe": "demo:pointers", "train": {"lr": 5e-4}}
    values["baseline"] = {"enabled": False}
    old, before = run.deltas, files(values["output"])
    again = talos_ray.edit(**values)
    after = files(values["output"])
    assert again.head == 2 and [e["operation"] for e in again.history()][5:][-3:] == ["resume", "train", "version"]
    assert (
        after["deltas/sides.safetensors"] == before["deltas/sides.safetensors"]
        and after["mask.safetensors"] == before["mask.safetensors"]
    )
    assert again.deltas["pointers"].fingerprint != old["pointers"].fingerprint
    again.rollback(1)  # the version made with the replaced delta still composes to its own bits
    assert again.deltas["pointers"].fingerprint == old["pointers"].fingerprint
    again.model()


def session(values) -> Session:
    prepared = prepare(make_spec(values), Progress())
    s = Session(prepared, RunFolder(prepared.spec.output), Progress(), None, "")
    s.share()
    return s


def test_the_mask_does_not_depend_on_who_scores_or_in_how_many_pieces(finished, tmp_path, monkeypatch):
    from talos_ray.orchestrate import calibrate as stage
    from talos_ray.orchestrate.calibrate import calibrate

    run, values = finished
    s = session({**copy.deepcopy(values), "output": str(tmp_path / "x")})
    data = [s.p.data[t] for t in s.p.targets]
    for workers, piece, room in ((1, stage.PIECE, stage.ROOM), (2, 300_000, stage.ROOM), (2, 300_000, 0)):
        monkeypatch.setattr(stage, "PIECE", piece)
        monkeypatch.setattr(stage, "ROOM", room)  # without it, one piece is looked at at once
        mask = calibrate(s.shared_ref, s.shared, s.spec.mask, data, workers, lambda done, total: None)
        assert mask.fingerprint == run.mask.fingerprint
    assert set(run.mask.info["overlap"]) == set(s.p.targets) and all(
        0 <= o <= 1 for o in run.mask.info["overlap"].values()
    )


def test_masks_share_what_the_first_round_scored(finished, tmp_path):
    from talos_ray.orchestrate.calibrate import calibrate, first_scores

    run, values = finished
    s = session({**copy.deepcopy(values), "output": str(tmp_path / "x")})
    data = [s.p.data[t] for t in s.p.targets]
    scores = first_scores(s, data)
    calibrate(
        s.shared_ref, s.shared, s.spec.mask.model_copy(update={"granularity": "element"}), data, 2, lambda *_: None, scores
    )
    assert {task for task, _ in scores} == set(s.p.targets)
    found = [
        calibrate(s.shared_ref, s.shared, s.spec.mask, data, 2, lambda *_: None, first).fingerprint
        for first in (scores, {key: [ray.put(0 * ray.get(ref)) for ref in refs] for key, refs in scores.items()})
    ]
    assert found[0] == run.mask.fingerprint != found[1]  # of other scores there would be another mask


def test_a_base_from_storage_gives_the_same_bits(finished, tmp_path):
    from talos_ray.orchestrate.calibrate import calibrate

    run, values = finished
    s = session({**copy.deepcopy(values), "output": str(tmp_path / "x"), "cluster": {"base": "storage"}})
    (file,) = (tmp_path / "x/base").iterdir()
    assert file.name == f"{s.p.base}.safetensors" and isinstance(s.shared.tensors, tuple)
    data = [s.p.data[t] for t in s.p.targets]
    assert (
        calibrate(s.shared_ref, s.shared, s.spec.mask, data, 2, lambda done, total: None).fingerprint
        == run.mask.fingerprint
    )
    written = file.stat().st_mtime_ns
    s.share()
    assert file.stat().st_mtime_ns == written  # what is there and whole is kept


def test_calibration_ends_when_the_mask_is_known_whoever_scores_it(finished, tmp_path):
    from talos_ray.orchestrate.calibrate import calibrate

    _, values = finished
    found = {}
    for stable, workers in ((None, 2), (0.3, 1), (0.3, 2)):
        settings = {"samples_per_task": 48, "shards_per_task": 6, "rounds": 1, "stable": stable}
        s = session({**copy.deepcopy(values), "output": str(tmp_path / "x"), "calibration": settings})
        data = [s.p.data[t] for t in s.p.targets]
        found[stable, workers] = calibrate(s.shared_ref, s.shared, s.spec.mask, data, workers, lambda done, total: None)
    full, early = found[None, 2].info["stability"], found[0.3, 1].info["stability"]
    assert [p["wave"] for p in full] == [2, 3, 4, 5, 6] and full[-1]["overlap"] > full[0]["overlap"]
    assert len(early) < 5 and early == full[: len(early)] and early[-1]["overlap"] >= 0.3
    assert found[0.3, 1].fingerprint == found[0.3, 2].fingerprint != found[None, 2].fingerprint


def jobs_of(s, folder, mask, **settings):
    from talos_ray.orchestrate.jobs import Job

    task = s.spec.tasks[0]
    train = s.spec.train_for(task, 100).model_copy(update=settings)
    return [Job(task=task, arm="sparse", settings=train, key="key", folder=str(folder), mask=mask.fingerprint)]


@pytest.mark.slow  # `test_faults` kills one in the middle of a whole run
def test_a_killed_worker_resumes_to_the_same_bits(finished, tmp_path):
    """SIGKILL the training process after a checkpoint; the task resumes in another."""
    from talos_ray.orchestrate.train import train
    from talos_ray.orchestrate.worker import Arm

    run, values = finished
    s = session({**copy.deepcopy(values), "output": str(tmp_path / "x")})
    arms, killed, losses = {"sparse": Arm("sparse", run.mask.bits)}, [], []
    settings = {"steps": 60, "checkpoint_every": 10}

    def kill_once(state, seen):
        now = state["sparse/pointers"]
        if not killed and now["step"] >= 20 and now.get("pid"):
            os.kill(now["pid"], signal.SIGKILL)
            killed.append(now["step"])

    for name, on_status in (("calm", lambda *_: None), ("killed", kill_once)):
        RunFolder(str(tmp_path / name)).begin({"seed": 0}, run.info["base"], {"base": run.info["base"]}, {}, {}, {})
        train(
            shared_ref=s.shared_ref,
            arms=arms,
            jobs=jobs_of(s, tmp_path / name, run.mask, **settings),
            settings=s.spec.cluster,
            teams=1,
            scratch=str(tmp_path / f"scratch-{name}"),
            on_status=on_status,
            on_loss=losses.append,
        )
    calm, resumed = (RunFolder(str(tmp_path / n)).load_delta("pointers") for n in ("calm", "killed"))
    assert killed and [(loss.task, loss.preempted) for loss in losses] == [("sparse/pointers", False)]
    assert resumed.info["resumed_at"] >= 10 and calm.info["resumed_at"] == 0
    assert resumed.fingerprint == calm.fingerprint
    assert not (tmp_path / "killed" / "checkpoints" / "pointers").exists()


def test_two_workers_of_a_team_make_the_same_delta_as_one(finished, tmp_path):
    from talos_ray.orchestrate.train import train
    from talos_ray.orchestrate.worker import Arm

    run, values = finished
    found = []
    for world in (1, 2):
        s = session(
            {**copy.deepcopy(values), "output": str(tmp_path / f"x{world}"), "cluster": {"workers_per_task": world}}
        )
        looks = {"validate_every": 2, "patience": 2, "class_weights": "balanced"}
        jobs = jobs_of(s, tmp_path / str(world), run.mask, steps=5, delta_dtype="float32", lr=1e-5, **looks)
        train(
            shared_ref=s.shared_ref,
            arms={"sparse": Arm("sparse", run.mask.bits)},
            jobs=jobs,
            settings=s.spec.cluster,
            teams=1,
            scratch=str(tmp_path / "scratch"),
        )
        delta = RunFolder(str(tmp_path / str(world))).load_delta("pointers")
        found.append(delta.values)
        looked = dict(delta.info["validation"])
        assert list(looked) == [2, 4, 5] and looked[delta.info["kept_at"]] == min(looked.values())
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.999  # and the tolerance is not what makes them equal


@pytest.mark.slow
def test_settings_that_diverge_keep_what_is_finished(finished, tmp_path):
    run, values = finished
    values = {
        **copy.deepcopy(values),
        "output": str(tmp_path / "run"),
        "baseline": {"enabled": False},
        "mask": {"path": str(Path(run.path) / "mask.safetensors")},
    }
    values["train"]["steps"] = 2
    values["tasks"][0] = {
        "recipe": "demo:pointers",
        "train": {"lr": 1e30, "steps": 6, "clip_norm": None, "warmup_steps": 0},
    }
    with pytest.raises(TalosError, match=r"not trained: sparse/pointers.*lower train\.lr"):
        talos_ray.edit(**values)
    assert sorted(p.name for p in (tmp_path / "run" / "deltas").iterdir()) == [
        "scanned_digits.safetensors",
        "sides.safetensors",
    ]


def test_a_mask_that_is_there_says_itself_how_many_weights_may_change(finished, tmp_path):
    run, values = finished
    mask = {"path": str(Path(run.path) / "mask.safetensors"), "keep": "auto", "layers": "auto", "strategy": "auto"}
    spec = make_spec({**copy.deepcopy(values), "output": str(tmp_path / "run"), "mask": mask})
    progress = Progress()
    prepare(spec, progress)
    held = RunFolder(str(run.path)).load_mask(run.newest.base).k
    assert f" {held:,} may change" in progress.stages["check"]["note"]
    assert estimate(spec)


def test_a_folder_of_another_run_is_refused_untouched(finished):
    run, values = finished
    before = files(run.path)
    for change, match in (
        ({"tasks": ["demo:counts"]}, "another run: its tasks is"),
        ({"seed": 1}, "another run: its seed is 0, this spec's is 1"),
        ({"mask": {"keep": 0.1}}, "another run: its mask is"),
    ):
        with pytest.raises(SpecError, match=match):
            talos_ray.edit(**{**copy.deepcopy(values), **change})
    assert files(run.path) == before


def test_a_mask_or_delta_of_another_base_is_refused_untouched(finished, tmp_path):
    run, values = finished
    for kind in ("mask", "delta"):
        values = {**copy.deepcopy(values), "output": str(tmp_path / kind)}
        shutil.copytree(run.path, values["output"])
        folder = RunFolder(values["output"])
        if kind == "mask":
            folder.save_mask(run.mask, "f" * 64)
        else:
            folder.save_delta(replace(run.deltas["sides"], base="f" * 64))
        before = files(values["output"])
        with pytest.raises(MismatchError, match=f"ffffffffffff.*{run.info['base'][:12]}"):
            talos_ray.edit(**values)
        assert files(values["output"]) == before


def test_the_cluster_is_asked_before_work(finished, tmp_path):
    _, values = finished
    started = time.monotonic()
    with pytest.raises(SpecError, match=r"needs 64 GPUs .*has \d+; lower cluster.gpus_per_worker"):
        talos_ray.edit(**{**copy.deepcopy(values), "output": str(tmp_path / "run"), "cluster": {"gpus_per_worker": 64}})
    assert time.monotonic() - started < 20 and not (tmp_path / "run").exists()


def test_spec_in_run_json_is_the_spec(finished):
    run, values = finished
    stored = json.loads((Path(run.path) / "run.json").read_text())
    assert Spec.model_validate(stored["spec"]) == make_spec(values)
    assert (
        stored["software"]["ray"]
        and mask_from_flags(run.mask.layout, run.mask.flags).fingerprint == run.version.mask
    )


def test_a_metric_of_a_task_changes_its_scores_and_no_training(finished, tmp_path):
    run, values = finished
    path = tmp_path / "run"
    shutil.copytree(run.path, path)
    before = files(path)
    changed = copy.deepcopy({**values, "output": str(path)})
    for task in changed["tasks"]:
        if isinstance(task, dict) and task["name"] == "sides":
            task["metric"] = "balanced_accuracy"
    edited = talos_ray.edit(**changed)
    deltas = [name for name in before if name.startswith("deltas/")]
    assert deltas and all(files(path)[name] == before[name] for name in deltas)
    version = edited.newest
    assert version.number == 2 and version.metrics == {"sides": "balanced_accuracy"}
    found = edited.class_scores("sides", version=2)
    assert version.scores["sides"].merged.value == pytest.approx(found.balanced_accuracy)
    plain = edited.folder.load_answers(2)
    assert version.scores["pointers"].merged.value == float(plain.right("pointers").double().mean())
    assert "Score of sides: balanced accuracy" in (path / "report/0002.html").read_text()
    assert edited.verify() == [] and talos_ray.edit(**changed).newest.number == 2
    # What it is compared by is the same: a comparison of the two versions counts classes alike.
    change = edited.compare(1, 2)[0]["tasks"]["sides"]
    assert change["after"] == pytest.approx(found.balanced_accuracy)
