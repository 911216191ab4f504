"""Tables of `talos reproduce`: what stands in them, in every form."""

import csv
import json
import math
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from talos_ray import SpecError
from talos_ray.cli import app
from talos_ray.reproduce import protocol
from talos_ray.reproduce.protocol import NEGATION, RESULTS, Result, as_published
from talos_ray.reproduce.tables import published, sources, tables, write
from talos_ray.spec import PRESETS, load_spec, make_spec

VALUES = {"model": "demo", "tasks": ["demo:counts", "demo:pointers"], "control": ["demo:coloured_shapes"], "output": "x"}
SPEC = make_spec({**VALUES, "baseline": {"lr": 3e-4}, "train": {"lr": 1e-3, "steps": 7}})


def result(method: str, counts: float, pointers: float, **more) -> Result:
    accuracy = {"counts": counts, "pointers": pointers}
    return Result(table="addition", method=method, accuracy=accuracy, inputs={"counts": 400, "pointers": 100}, **more)


def forgetting(method: str, counts: float, pointers: float) -> Result:
    chance = {"counts": 0.2, "pointers": 0.25}
    return Result(
        table=NEGATION, method=method, accuracy={"counts": counts, "pointers": pointers}, chance=chance,
        inputs={"counts": 400, "pointers": 100}, before={"counts": 0.5, "pointers": 0.6}, control=0.9, control_before=0.92, kept=0.96,
    )  # fmt: skip


SINGLE = {"counts": 0.8, "pointers": 0.9}
FOUND = {
    0: [result("zero-shot", 0.3, 0.5), result("TaLoS", 0.6, 0.72, single=SINGLE, kept=0.97, seconds=10.0, bytes=2_500_000), forgetting("TaLoS", 0.2, 0.31)],
    1: [result("zero-shot", 0.3, 0.5), result("TaLoS", 0.64, 0.76, single=SINGLE, kept=0.98, seconds=14.0, bytes=2_500_000), forgetting("TaLoS", 0.24, 0.29)],
}  # fmt: skip


def test_a_row_holds_means_intervals_and_costs():
    made = tables(SPEC, FOUND)
    zero, talos = made["addition"].fillna("").to_dict("records")
    assert (zero["method"], zero["accuracy"], zero["± seeds"], zero["normalized"]) == ("zero-shot", "0.400", "0.000", "")
    assert talos["accuracy"] == f"{(0.66 + 0.70) / 2:.3f}"
    # Student's t with one degree of freedom, over two seeds; and the error of a mean of two shares.
    assert talos["± seeds"] == f"{12.706 * statistics.stdev([0.66, 0.70]) / math.sqrt(2):.3f}"
    error = math.sqrt(0.6 * 0.4 / 400 + 0.72 * 0.28 / 100) / 2
    assert talos["± inputs"] == f"{1.96 * error:.3f}"
    assert talos["normalized"] == f"{((0.6 / 0.8 + 0.72 / 0.9) + (0.64 / 0.8 + 0.76 / 0.9)) / 4:.3f}"
    assert talos["control kept"] == "0.970"
    (costs,) = made["costs"].to_dict("records")  # the base costs nothing
    assert (costs["training, s"], costs["deltas, MB"], costs["optimizer, MB"]) == ("12", "2.5", "")
    by_task = made["tasks"].to_dict("records")
    assert by_task[1] == {"method": "TaLoS", "counts": "0.620", "pointers": "0.740"}
    (negation,) = made["negation"].to_dict("records")
    assert (negation["target, base"], negation["target"], negation["near chance"]) == ("0.550", "0.260", "1.5 of 2")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_takes_the_tables_and_their_names(tmp_path):
    names = ["a_task", "50 %"]
    found = {}
    for seed, results in FOUND.items():
        found[seed] = [replace(one, accuracy=dict(zip(names, one.accuracy.values(), strict=True)), inputs=dict.fromkeys(names, 100), single={}, before=dict.fromkeys(names, 0.5), chance=dict.fromkeys(names, 0.2)) for one in results]  # fmt: skip
    files = [file for file in write(tables(SPEC, found), ["5 % of A&B"], tmp_path) if file.suffix == ".tex"]
    inputs = "\\par\n".join(rf"\input{{{file.stem}}}" for file in files)
    (tmp_path / "all.tex").write_text(rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}")
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, check=True)
    assert len(files) == 4 and (tmp_path / "all.pdf").exists()


def test_of_one_seed_there_is_no_interval_over_seeds():
    (_, talos) = tables(SPEC, {0: FOUND[0]})["addition"].fillna("").to_dict("records")
    assert talos["± seeds"] == "" and talos["accuracy"] == "0.660"


def test_every_form_says_the_same(tmp_path):
    made = tables(SPEC, FOUND)
    files = write(made, ["published: 5 % of A&B"], tmp_path)
    assert {file.name for file in files} == {f"{n}.{f}" for n in ("addition", "tasks", "costs", "negation") for f in ("md", "csv", "tex")}
    rows = list(csv.DictReader((tmp_path / "addition.csv").open()))
    lines = (tmp_path / "addition.md").read_text().splitlines()
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == list(rows[1].values())
    assert "5 % of A&B" in lines[-1]
    latex = (tmp_path / "addition.tex").read_text()
    assert latex.count(r"\\") == 1 + len(rows) and r"\toprule" in latex and r"$\pm$ seeds" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    every_line = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in every_line} == {len(rows[0]) - 1}


def test_figures_of_others_stand_beside_ours_with_their_source():
    spec = load_spec(Path(__file__).parents[1] / "examples/clip_vit_b32_eight_tasks.yaml")
    figures = published(spec)
    assert figures["zero-shot"]["svhn"] == pytest.approx(0.316)
    assert statistics.mean(figures["dense task arithmetic"].values()) == pytest.approx(0.680, abs=5e-4)  # as printed there
    (source,) = sources(spec)
    assert "arXiv 2406.03280" in source
    assert published(SPEC) == {} and sources(SPEC) == []
    fewer = spec.model_copy(update={"tasks": spec.tasks[1:]})
    assert published(fewer) == {}  # a mean over other tasks is none of these


def test_the_protocol_is_the_papers_and_keeps_the_suites_own_training(tmp_path):
    sparse = as_published(SPEC, tmp_path)
    paper = PRESETS["paper"]
    assert sparse.mask.model_dump() | paper["mask"] == sparse.mask.model_dump()
    assert sparse.search.method == "grid" and sparse.search.control_keep == 0.0 and sparse.train == SPEC.train
    dense = as_published(SPEC, tmp_path, "ties", dense=True)
    assert (dense.mask.strategy, dense.train.lr, dense.train.steps, dense.search.merge.method) == ("all", 3e-4, 7, "ties")


def test_what_is_finished_is_not_done_again_and_another_spec_is_refused(tmp_path, monkeypatch):
    done = []

    def part(spec, at):
        done.append(spec.seed)
        if len(done) == 2:
            raise KeyboardInterrupt  # as a kill in the middle
        return FOUND[spec.seed]

    monkeypatch.setattr(protocol, "PARTS", {"published": part})
    monkeypatch.setattr(protocol, "connect", lambda settings, verbose: None)
    with pytest.raises(KeyboardInterrupt):
        protocol.reproduce(SPEC, tmp_path / "out", 2, lambda text: None)
    found = protocol.reproduce(SPEC, tmp_path / "out", 2, lambda text: None)
    assert done == [0, 1, 1] and found == FOUND
    stored = (tmp_path / "out/seed-0/published.json").read_bytes()
    assert RESULTS.validate_json(stored) == FOUND[0]
    with pytest.raises(SpecError, match="holds results of another spec.*give another"):
        protocol.reproduce(make_spec({**VALUES, "train": {"steps": 9}}), tmp_path / "out", 1, lambda text: None)


def test_the_command_prints_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "PARTS", {"published": lambda spec, at: FOUND[spec.seed]})
    monkeypatch.setattr(protocol, "connect", lambda settings, verbose: None)
    told = CliRunner().invoke(app, ["reproduce", "demo", "--seeds", "2", "-o", str(tmp_path / "out")])
    assert told.exit_code == 0 and "negation" in told.output and "0.680" in told.output
    again = CliRunner().invoke(app, ["reproduce", "demo", "--seeds", "2", "-o", str(tmp_path / "out"), "--json"])
    assert json.loads(again.stdout)["addition"][1]["accuracy"] == "0.680"
    assert (tmp_path / "out/negation.tex").exists()
