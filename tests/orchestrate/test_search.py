"""The merge search: what is tried does not depend on who finishes first, what is found not on how many run or die."""

import copy
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.tune.search import Searcher

import talos_ray
from jobs.faults import at_work
from talos_ray import TalosError
from talos_ray.config import Search
from talos_ray.core.paired import margin
from talos_ray.orchestrate.learning import DOUBT, FEW, Goal, LearningRun, Point, better, pool_of, rank
from talos_ray.orchestrate.search import Generations, _made, _space, points_of
from talos_ray.orchestrate.worker import Workbench
from talos_ray.spec import make_spec
from talos_ray.storage.run_folder import RunFolder, _search_today


def spec_of(**search):
    return make_spec(
        {"model": "demo", "tasks": ["demo:counts"], "control": ["demo:coloured_shapes"], "output": "x", "search": search}
    )


def way(name: str = "sparse"):
    return SimpleNamespace(name=name, plan=SimpleNamespace(name=name.split()[0]))


def test_the_points_are_all_that_the_spec_names():
    search = spec_of(granularity=["task", "row"], lr=[0.01, 0.1], pressure=["4", 8.0][1:]).search
    found = points_of(search, way(), held=True)
    assert [(p.granularity, p.lr, p.pressure) for p in found] == [
        ("task", 0.01, 8.0), ("task", 0.1, 8.0), ("row", 0.01, 8.0), ("row", 0.1, 8.0),
    ]  # fmt: skip
    assert [p.pressure for p in points_of(spec_of().search, way(), held=True)] == [None]  # raised until control holds
    assert [p.pressure for p in points_of(spec_of().search, way(), held=False)] == [0.0]  # nothing has to
    grid = points_of(spec_of(method="grid", shared_points=5).search, way(), held=True)
    assert [p.coefficient for p in grid] == [0.0, 0.25, 0.5, 0.75, 1.0]


def played(order, at_once: int) -> list[tuple]:
    """All points that are tried, where runs end in an order of our choice, so many at once."""
    search = spec_of(granularity=["task", "row"], trials=5, generation=2).search
    points = {name: points_of(search, way(name), held=True) for name in ("sparse", "dense")}
    searcher = Generations(points, 5, 2, _space(search), _made, seed=0)
    running: dict[str, dict] = {}
    told, number, over = [], 0, False
    while not over or running:
        while not over and len(running) < at_once:
            config = searcher.suggest(str(number))
            if config == Searcher.FINISHED:
                over = True
            if not isinstance(config, dict):
                break
            running[str(number)] = config
            told.append((config["merge"], tuple(config["point"].items()), config["bars"] and tuple(config["bars"])))
            number += 1
        if running:
            trial = order(sorted(running, key=int))
            point = running.pop(trial)["point"]
            value = 1 - abs(point["lr"] - 0.05) - 0.01 * len(point["granularity"])
            for share in (0.5, 0.8):
                searcher.on_trial_result(trial, {"done": False, "objective": share * value})
            searcher.on_trial_complete(trial, {"objective": value, "holds": True, "done": True})
    return told


def test_what_is_tried_does_not_depend_on_who_finishes_first_or_on_how_many_run_at_once():
    first = played(min, 1)
    assert len(first) == 2 * (2 + 5) and len(set(first)) == len(first)
    for order, at_once in ((max, 4), (min, 4), (max, 2)):
        assert sorted(played(order, at_once), key=repr) == sorted(first, key=repr)
    assert all(bars is None for _, _, bars in first[:4])  # only earlier generations stop a run
    assert all(bars is not None for _, _, bars in first[4:])


def test_a_lost_run_of_a_generation_does_not_hold_up_the_next():
    search = spec_of(trials=2, generation=2).search
    searcher = Generations({"sparse": points_of(search, way(), held=True)}, 2, 2, _space(search), _made, seed=0)
    assert searcher.suggest("0")["merge"] == "sparse" and searcher.suggest("1") is None
    searcher.on_trial_complete("0", None, error=True)
    assert isinstance(searcher.suggest("1"), dict) and isinstance(searcher.suggest("2"), dict)
    searcher.on_trial_complete("2", None, error=True)
    searcher.on_trial_complete("1", {"objective": 0.5, "done": True})
    assert searcher.suggest("3") == Searcher.FINISHED


def test_a_control_task_with_few_training_inputs_shows_validation_inputs_that_then_do_not_judge():
    spec = spec_of(inputs=300)
    pool = pool_of(spec, "coloured_shapes", FEW - 1, 500)
    assert len(pool.train) == FEW - 1 and len(pool.validation) == 300 - (FEW - 1)
    assert sorted([*pool.validation.tolist(), *pool.judged.tolist()]) == list(range(500))
    assert len(pool_of(spec, "coloured_shapes", 10, 100).judged) == 50  # at least half of them judge
    enough, target = pool_of(spec, "coloured_shapes", FEW, 500), pool_of(spec, "counts", 10, 500)
    assert len(enough.validation) == len(target.validation) == 0 and len(enough.judged) == len(target.judged) == 500


def test_one_that_holds_comes_before_one_that_is_worth_more():
    record = {"means": {"a": 0.5}, "key": "x"}
    holds, more = {**record, "holds": True, "objective": 0.8}, {**record, "holds": False, "objective": 0.9}
    assert better(holds, more) and not better(more, holds)
    smaller = {**holds, "means": {"a": 0.1}}
    assert min([holds, smaller], key=rank) is smaller


def tried(run: LearningRun, *outcomes: tuple[bool, float]) -> list[float]:
    """Pressures of a chain of attempts, of which each holds or not and leaves a task at some accuracy."""
    attempts, pressures = [], []
    while (pressure := run._pressure(attempts)) is not None:
        pressures.append(pressure)
        holds, accuracy = outcomes[min(len(attempts), len(outcomes) - 1)]
        attempts.append({"pressure": pressure, "holds": holds, "scores": {"t": accuracy}})
    return pressures


def test_pressure_rises_until_all_hold_and_falls_until_a_task_is_forgotten():
    run = LearningRun.__new__(LearningRun)
    run.point = Point(arm="sparse", merge="sparse")
    run.problem = SimpleNamespace(goals=[Goal(task="t", kind="learn", before=1.0, look="")])
    assert tried(run, (True, 1.0)) == [18.0] and tried(run, (False, 1.0)) == [18.0, 54.0, 162.0]
    assert tried(run, (False, 1.0), (True, 1.0)) == [18.0, 54.0]
    run.problem = SimpleNamespace(goals=[Goal(task="t", kind="forget", before=1.0, look="", aim=0.15)])
    assert tried(run, (True, 0.1)) == [1.0]
    assert tried(run, (True, 0.3), (True, 0.1)) == [1.0, 0.25]
    assert tried(run, (True, 0.3)) == [1.0, 0.25, 0.0625, 0.015625]
    # Lowered too far: what lies between is tried twice, and then what held is the best that there is.
    assert tried(run, (True, 0.3), (False, 0.1), (True, 0.1)) == [1.0, 0.25, 0.5]
    assert tried(run, (True, 0.3), (False, 0.1), (True, 0.3)) == [1.0, 0.25, 0.5]
    assert tried(run, (True, 0.3), (False, 0.1)) == pytest.approx([1.0, 0.25, 0.5, 0.5**0.5])
    assert tried(run, (True, 0.3), (False, 0.1), (False, 0.1), (True, 0.1)) == pytest.approx([1.0, 0.25, 0.5, 0.5**0.5])
    assert tried(run, (True, 0.3), (True, 0.3), (False, 0.1)) == pytest.approx([1.0, 0.25, 0.0625, 0.125, 0.25 * 0.5**0.5])
    assert tried(run, (False, 0.1), (True, 0.3)) == [1.0, 4.0]
    run.point = Point(arm="sparse", merge="sparse", pressure=7.0)
    assert tried(run, (False, 1.0)) == [7.0]


def test_a_task_that_is_forgotten_knows_nothing_and_its_own_class_least():
    run, labels = LearningRun.__new__(LearningRun), torch.tensor([0, 1, 2])
    goal = Goal(task="t", kind="forget", before=1.0, look="")
    logits = torch.zeros(3, 4, requires_grad=True)
    run._goal_loss(goal, logits, torch.arange(3), labels).backward()
    own = logits.grad[torch.arange(3), labels]
    assert bool((own > 0).all()) and bool((logits.grad.scatter(1, labels[:, None], -1.0).amax(1) < 0).all())
    wanted = torch.full((3, 4), (1 - DOUBT / 4) / 3).scatter(1, labels[:, None], DOUBT / 4)
    assert float(run._goal_loss(goal, wanted.log(), torch.arange(3), labels)) == pytest.approx(0.0, abs=1e-6)


# ---------------------------------------------------------------------------------- on real Ray


@pytest.fixture
def world(finished, tmp_path):
    """A session on the finished run's deltas with a folder of its own, its search, and the run's way to merge."""
    from talos_ray.orchestrate.plan import arms_of, prepare
    from talos_ray.orchestrate.scoring import single_look, ways_of
    from talos_ray.orchestrate.search import MergeSearch
    from talos_ray.orchestrate.session import Session
    from talos_ray.progress import Progress

    run, values = finished

    def made(name: str, **search):
        values_now = {**copy.deepcopy(values), "output": str(tmp_path / name), "baseline": {"enabled": False}}
        values_now["search"] = {**values_now["search"], **search}
        prepared = prepare(make_spec(values_now), Progress())
        watch = SimpleNamespace(candidate=lambda *_: None)
        scratch = tmp_path / f"scratch-{name}"
        scratch.mkdir()
        s = Session(prepared, RunFolder(prepared.spec.output), Progress(), watch, str(scratch))
        heads = {t: torch.from_numpy(h) for t, h in prepared.heads.items()}
        classes = {t: d.classes for t, d in prepared.data.items()}
        s.folder.begin(prepared.spec.model_dump(mode="json"), prepared.base, prepared.identity, heads, classes)
        s.share()
        s.slots_of("search", 1, prepared.spec.cluster.search_workers)
        mask = run.folder.load_mask(prepared.base)
        arms = arms_of(prepared, mask)[:1]
        version = run.folder.load_version(1)
        deltas = {"sparse": {t: run.folder.load_delta(t, f) for t, f in version.deltas.items()}}
        search_of = MergeSearch(s, prepared)
        return SimpleNamespace(session=s, search=search_of, arms=arms, deltas=deltas, ways=ways_of, look=single_look)

    return made


def best_of(w) -> tuple:
    chosen = w.search.choose(w.arms, w.deltas)["sparse"]
    heads = {t: h for t, h in sorted(chosen.heads.items())}
    return chosen.blend.values, heads, chosen.found


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_one_trial_at_once_and_two_find_the_same(world):
    asked = {"granularity": ["tensor", "row"], "trials": 1, "generation": 1, "steps": 4}
    values, heads, found = best_of(world("two", **asked))
    again = world("one", **asked)
    again.session.slots["search"] = 1
    values_one, heads_one, found_one = best_of(again)
    assert same(values, values_one) and same(heads, heads_one)
    assert found["evaluated"] == found_one["evaluated"] >= 2 and found["granularities"] == found_one["granularities"]


def kill(word: str, folder: Path, killed: list) -> None:
    """End the process that runs the trial once a checkpoint is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not killed:
        time.sleep(0.02)
        if list((folder / "checkpoints").glob("merge-*/step-*")):
            for _, process in at_work(word)[:1]:
                process.kill()
                killed.append(process.pid)


def test_a_trial_that_is_killed_goes_on_from_its_checkpoint_to_the_same_bits(world):
    calm = best_of(world("calm", steps=24))
    disturbed = world("killed", steps=24)
    killed: list[int] = []
    folder = Path(disturbed.session.folder.store.root)
    killer = threading.Thread(target=kill, args=("ResourceTrainable", folder, killed), daemon=True)
    killer.start()
    after = best_of(disturbed)
    killer.join()
    assert killed, "no trial was met at work"
    assert same(calm[0], after[0]) and same(calm[1], after[1])
    assert not list(folder.glob("checkpoints/merge-*"))


def here(w, pressure: float = 1.0, bench: Workbench | None = None) -> tuple[LearningRun, Workbench]:
    """A learning run in this process: one point, one attempt."""
    bench = bench or Workbench(w.session.shared)
    w.session.progress.begin("search", "a test")
    found = w.ways(w.arms, w.deltas, w.session.spec.search.merge.tried)["sparse"]
    controls = {c: w.search.looks.ask(c) for c in w.session.p.controls}
    singles = {t: w.look(w.search.looks, found, t, False) for t in w.session.p.targets}
    seen = w.search.looks.found()
    goals = [Goal(task=t, kind="learn", before=seen[k].accuracy, look=k) for t, k in singles.items()]
    goals += [Goal(task=c, kind="hold", before=seen[k].accuracy, look=k) for c, k in controls.items()]
    problem = w.search.problem(found, goals)
    point = Point(arm="sparse", merge="sparse", granularity="row", lr=0.03, pressure=pressure)
    return LearningRun(bench, ray.get(found.ref), problem, point), bench


def learned(run: LearningRun) -> dict[str, torch.Tensor]:
    """Coefficients and heads that were learned, before validation data chose."""
    (*_, last) = run.reports()
    _, tensors = run.folder.load_trial(last["key"])
    return {n: t for n, t in tensors.items() if n.startswith(("coefficient/", "learned head/"))}


def garble(bench: Workbench, run: LearningRun, split: str) -> None:
    """Every label of a split becomes class 0, for this workbench alone: what was loaded is shared by all tests of this process."""
    for task in run.pools:
        examples = bench.examples(task, split)
        examples.split = replace(examples.split, labels=torch.zeros_like(examples.split.labels))


def test_validation_labels_choose_and_teach_nothing(world):
    plain, bench = here(world("plain"))
    found = learned(plain)
    garble(bench, plain, "validation")
    garbled, _ = here(world("garbled"), bench=bench)
    assert same(found, learned(garbled))


def test_without_labels_training_labels_teach_nothing_either(world):
    plain, bench = here(world("plain", teacher="edits"))
    found = learned(plain)
    garble(bench, plain, "train")
    garbled, _ = here(world("garbled", teacher="edits"), bench=bench)
    assert same(found, learned(garbled))


def test_no_pressure_learns_as_if_there_were_no_control_task(world):
    run, _ = here(world("none"), pressure=0.0)
    assert all(bool(torch.isfinite(t).all()) for t in learned(run).values())


@pytest.mark.slow
def test_without_a_control_task_or_with_one_target_alone(finished, tmp_path):
    run, values = finished
    values = {**copy.deepcopy(values), "output": str(tmp_path / "run"), "control": [], "baseline": {"enabled": False}}
    values["tasks"] = values["tasks"][-1:]
    values["mask"] = {"path": str(Path(run.path) / "mask.safetensors")}
    values["gate"] = {"control_keep": None}
    values["search"] = {**values["search"], "granularity": "tensor"}
    alone = talos_ray.edit(**values)
    version = alone.version
    assert version.search.pressure == 0.0 and version.learned.granularity == "tensor"
    assert set(alone.coefficients) == {"sides"} and alone.verify(deep=True) == []


@pytest.mark.slow
def test_the_grid_of_the_paper_is_still_there_and_nothing_is_evaluated_twice(finished, tmp_path):
    run, values = finished
    values = {**copy.deepcopy(values), "output": str(tmp_path / "run"), "baseline": {"enabled": False}}
    shutil.copytree(run.path, values["output"])
    values["search"] = {"method": "grid", "shared_points": 3, "heads": "words", "merge": {"method": "ties"}}
    again = talos_ray.edit(**copy.deepcopy(values))
    candidates = again.version.search.candidates
    assert sorted(c.point["coefficient"] for c in candidates) == [0.0, 0.5, 1.0]
    assert again.version.how.method == "ties" and again.version.learned is None
    assert len(set(again.coefficients.values())) == 1 and again.heads() == {}
    again.model()  # composed anew from the stored deltas, it has the recorded bits
    trials = {p: p.stat().st_mtime_ns for p in Path(values["output"]).glob("trials/*")}
    coefficients, scores = again.coefficients, again.scores
    again.rollback(1)
    (Path(values["output"]) / "versions/0002.json").unlink()  # as if the run had been killed before it wrote its version
    once_more = talos_ray.edit(**copy.deepcopy(values))
    assert (once_more.coefficients, once_more.scores) == (coefficients, scores)
    assert {p: p.stat().st_mtime_ns for p in Path(values["output"]).glob("trials/*")} == trials


def test_inputs_that_are_not_finite_end_the_search_with_what_is_wrong(world, monkeypatch):
    run, bench = here(world("nan"))
    features = bench.family.features
    monkeypatch.setattr(bench.family, "features", lambda inputs: features(inputs) * float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        list(run.reports())


def test_a_margin_that_no_candidate_has_is_told(finished):
    run, _ = finished
    found = run.folder.load_version(1).search
    assert found.held_by_margin in (True, False) and found.candidates[0].kept > 0
    right = torch.ones(400, dtype=torch.bool)
    mean, error = margin([right], [right], 0.99)
    assert mean == pytest.approx(0.01) and error > 0


def test_a_search_of_an_earlier_release_is_read_as_settings_are_called_now():
    """Its run.json says that a surrogate proposed candidates."""
    before = {
        "low": 0.0, "high": 1.0, "method": "surrogate", "shared_points": 21, "trials": 24, "probe": 0.25, "probe_inputs": 80,
        "generation": 3, "parts": 4, "merge": {"method": "auto"}, "control_keep": 0.97,
    }  # fmt: skip
    now = Search.model_validate(_search_today(before))
    assert (now.method, now.trials, now.merge.method, now.control_keep) == ("learned", 0, "auto", 0.97)
    assert Search.model_validate(_search_today({**before, "method": "grid"})).method == "grid"
    assert _search_today(now.model_dump()) == now.model_dump()


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_says_why(finished, tmp_path):
    run, values = finished
    values = {**copy.deepcopy(values), "output": str(tmp_path / "run"), "baseline": {"enabled": False}}
    shutil.copytree(run.path, values["output"])
    values["search"] = {**values["search"], "lr": 1e30}
    values["cluster"] = {"max_failures": 0}
    with pytest.raises(TalosError, match=r"the merge search of sparse failed: .*loss is .*lower search\.lr.*\nwhat was finished is kept"):
        talos_ray.edit(**values)
