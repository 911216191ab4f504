"""`mask: auto`: what is tried in short runs, what is chosen, and that nothing but validation data decides."""

import copy
import json
from pathlib import Path

import pytest

import talos_ray
from talos_ray import SpecError, TalosError
from talos_ray.choice import Setting, first_round, second_round, share_of_each
from talos_ray.core.layout import Layout
from talos_ray.orchestrate.automatic import _best, _same, _with
from talos_ray.spec import make_spec


def spec(**changes):
    return make_spec({"model": "demo", "tasks": ["demo:counts"], "output": "x", "preset": "auto", **changes})


DEEP = Layout(("blocks.0.w", "blocks.1.w", "blocks.2.w", "blocks.3.w"), ((100,), (100,), (90,), (10,)))


def row(merged, held=True, work=0.7, error=0.0, **setting):
    return {
        "merged": merged,
        "held": held,
        "work": work,
        "error": error,
        "setting": {"strategy": "random", "granularity": "row", "keep": 0.1, "lr": 1.0, **setting},
    }


def test_only_what_is_open_is_tried():
    first = first_round(spec())
    assert len(first) == 6 and {s.keep for s in first} == {0.1} and {s.lr for s in first} == {1.0}
    second = {(s.keep, s.layers, s.lr) for s in second_round(spec(), first[0], DEEP)}
    assert second == {(0.05, 1, 1), (0.2, 1, 1), (0.1, 0.75, 1), (0.1, 0.75, 2), (0.1, 1, 0.5), (0.1, 1, 2)}
    tight = second_round(spec(auto={"layers": [0.5, 0.25, 0.99]}), first[0], DEEP)
    assert [s.layers for s in tight if s.layers < 1] == [0.5, 0.5]  # .25 has no room for a tenth, .99 closes nothing
    assert all(s.layers == 1.0 for s in second_round(spec(), first[0], Layout(("w",), ((4,),))))
    assert {s.layers for s in first_round(spec(mask={"layers": 0.5}))} == {0.5}
    assert share_of_each(spec(), DEEP) == 2 / 12 and share_of_each(spec(auto={"budget": 20}), DEEP) == 1.0
    given = spec(mask={"strategy": "random", "keep": 0.3}, auto={"lr_factors": []})
    assert [(s.strategy, s.granularity, s.keep) for s in first_round(given)] == [
        ("random", g, 0.3) for g in ("element", "row")
    ]
    assert [s.layers for s in second_round(given, first_round(given)[0], DEEP)] == [0.75]
    assert spec().mask.open and not make_spec({"model": "demo", "tasks": ["demo:counts"], "output": "x"}).mask.open
    with pytest.raises(SpecError, match=r"'mask.keep' is 'aut'; wanted a number in \(0, 1\], or 'auto'"):
        spec(mask={"keep": "aut"})


def test_the_best_that_holds_wins_and_of_equal_ones_the_smaller():
    assert _best([row(0.9, held=False), row(0.5, keep=0.2), row(0.6), row(0.6, keep=0.05)], 1.0).keep == 0.05
    with pytest.raises(TalosError, match="every short run diverged.*lower train.lr"):
        _best([row(0.0, held=False)], 1.0)


def test_the_chosen_factor_is_of_every_tasks_own_learning_rate():
    tasks = ["demo:counts", {"recipe": "demo:pointers", "train": {"lr": 0.5}}]
    found = _with(spec(tasks=tasks, train={"lr": 0.1}), Setting("random", "row", 0.05, 2.0))
    assert [found.train_for(t, 100).lr for t in found.tasks] == [0.2, 1.0] and found.mask.keep == 0.05


def test_within_the_noise_the_cheapest_wins():
    tried = [
        row(0.60, work=1.0, error=0.02, keep=0.2),
        row(0.57, keep=0.3),
        row(0.59, work=0.74, keep=0.4),
        row(0.585, work=0.7),
    ]
    assert _best(tried, 1.0).keep == 0.4  # .74 and .70 of a step cost the same within noise: the better of them
    assert _best(tried, 0.0).keep == 0.2 and _best(tried, 2.0).keep == 0.4
    assert _best([*tried, row(0.61, error=0.01, work=1.0, keep=0.5)], 0.5).keep == 0.5


def test_fewer_layers_win_where_they_are_as_good():
    tried = [row(0.60, work=0.7, error=0.02, keep=0.2), row(0.59, work=0.61, layers=0.75), row(0.57, work=0.5)]
    assert _best(tried, 1.0).layers == 0.75 and _best(tried, 0.4).keep == 0.2


def test_a_choice_outlives_settings_that_came_later():
    now = {"model": "demo", "seed": 0, "mask": {"keep": "auto", "layers": "auto"}, "auto": {"budget": 1.0}}
    assert _same(now, now) and _same({**now, "mask": {"keep": "auto"}}, now)
    assert not _same({**now, "mask": {"keep": 0.1}}, now) and not _same({**now, "seed": 1}, now)


@pytest.mark.slow
def test_the_best_short_run_is_trained_in_full(ray_here, small_spec, tmp_path, capsys):
    values = {
        **small_spec, "tasks": ["demo:pointers", small_spec["tasks"][-1]], "output": str(tmp_path / "run"), "preset": "auto",
        "auto": {"strategies": ["least_sensitive", "random"], "granularities": ["row"], "keeps": [0.1, 0.3], "layers": [0.5], "lr_factors": [1e9], "budget": 3.0},
        "baseline": {"enabled": False},
    }  # fmt: skip
    values.pop("mask", None)
    run = talos_ray.edit(**copy.deepcopy(values))
    choice = json.loads(Path(run.path, "choice.json").read_text())
    tried = choice["tried"]
    assert [(r["setting"]["strategy"], r["setting"]["keep"]) for r in tried[:2]] == [
        ("least_sensitive", 0.3),
        ("random", 0.3),
    ]
    assert len(tried) == 6 and all(r["share"] == 0.5 for r in tried)
    assert tried[5]["setting"]["lr"] == 1e9 and tried[5]["merged"] <= max(r["merged"] for r in tried)
    assert [r["setting"]["layers"] for r in tried] == [1.0, 1.0, 1.0, 0.5, 0.5, 1.0]
    assert tried[3]["work"] < min(r["work"] for r in tried[:2]) - 0.1
    top = max((r for r in tried if r["held"]), key=lambda r: r["merged"])
    best = next(r for r in tried if r["setting"] == choice["chosen"])
    assert (
        best["held"]
        and best["merged"] >= top["merged"] - 2 * top["error"]
        and run.version.as_dict()["choice"] == choice
    )
    assert all(1 / 3 < r["work"] < 0.8 for r in tried) and 0 < top["error"] < 0.2
    mask, lr = run.info["spec"]["mask"], run.info["spec"]["train"]["lr"]
    assert {k: mask[k] for k in ("strategy", "granularity", "keep", "layers")} == {
        k: best["setting"][k] for k in mask if k != "path"
    }
    assert lr == values["train"]["lr"] * best["setting"]["lr"]
    assert all(d.info["settings"]["lr"] == lr and d.info["settings"]["steps"] == 12 for d in run.deltas.values())
    assert not Path(run.path, "choice").exists() and run.verify() == []
    page = Path(run.path, "report/index.html").read_text()
    assert "How the mask was chosen" in page and f"{best['merged']:.3f}" in page
    capsys.readouterr()
    talos_ray.edit(**copy.deepcopy(values))
    assert "Nothing to do" in capsys.readouterr().out
    with pytest.raises(SpecError, match="holds another run: its mask is"):
        talos_ray.edit(**{**copy.deepcopy(values), "mask": {"strategy": "magnitude"}, "preset": None})
