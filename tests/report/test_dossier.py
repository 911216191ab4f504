"""The dossier on a version: every fact of the record on the page and in the JSON, and operations that are those of the
real work, counted here by another way."""

import html
import json
import re

import pytest
import torch
from recorded import made
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from typer.testing import CliRunner

from talos_ray import SpecError, TalosError, gate
from talos_ray.api import verify
from talos_ray.cli import app
from talos_ray.config import Gate
from talos_ray.core.fisher import SquaredGradients
from talos_ray.orchestrate.counted import _attempts, _Counter
from talos_ray.orchestrate.learning import Goal, LearningRun, MergePlan, MergeProblem, Point
from talos_ray.orchestrate.selection import calibration_split
from talos_ray.orchestrate.task_training import begin, tune
from talos_ray.orchestrate.worker import Arm
from talos_ray.report.dossier import dossier_page, power
from talos_ray.storage.run_folder import answers_file
from talos_ray.storage.version import Candidate, Version
from talos_ray.tasks import load_task
from talos_ray.trust import dossier
from talos_ray.trust.dossier import Operations, Stated, Trained

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *more, **named: sdpa_flop_count(
        q, k, v
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *more, **named: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def flops() -> FlopCounterMode:
    """Counts what runs as it is: also attention by the CPU's own kernel."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the demo model: its second version has scores, its gate keeps it aside, and somebody has approved it."""
    run = made(tmp_path_factory.mktemp("dossier"), "demo")
    base, now = run.folder.load_answers(0), run.folder.load_answers(1)
    asked = {"base": {t: base.right(t) for t in base.data}, "now": {t: now.right(t) for t in base.data}}
    version = run.folder.load_version(1)
    scores = {}
    for task in base.data:
        scores[task] = {"base": base.score(task).as_dict(), "merged": now.score(task).as_dict()}
    candidate = {"objective": 0.5, "coefficients": {}, "point": {"pressure": None}, "pressure": 54.0, "holds": True}
    version = Version.of(
        {
            **version.as_dict(),
            "scores": scores,
            "gate": gate.judge(Gate(), version.targets, version.controls, **asked).as_dict(),
            "search": {"candidates": [candidate], "evaluated": 1},
            "looks": {"sides": 2},
        }
    )
    run.folder.add_version(
        "version", lambda number: (version, dict([answers_file(number, now)])), in_force=version.passes
    )
    run.approve(2, by="J. Doe", reason="control is <i>outdated</i>")
    return run


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """Language -> page, by Python and by the command; and the JSON."""
    folder = tmp_path_factory.mktemp("written")
    facts = run.dossier(2, folder / "en", base_compute=1e14, licences={"sides": "cc0-1.0"})
    words = ["dossier", run.path, "2", "--language", "ja", "-o", str(folder / "ja")]
    done = CliRunner().invoke(app, [*words, "--base-compute", "1e14", "--licence", "sides=cc0-1.0"])
    assert done.exit_code == 0 and f"{facts['compute']['in_all']:.3g} FLOP" in done.output, done.output
    stored = {language: json.loads((folder / language / "dossier.json").read_text()) for language in ("en", "ja")}
    assert stored["en"] == json.loads(json.dumps(facts)) and stored["ja"] == {
        **stored["en"],
        "made": stored["ja"]["made"],
    }
    return {language: (folder / language / "dossier.html").read_text() for language in stored}, facts


@pytest.fixture(scope="module")
def counter(run):
    return _Counter(run.folder)


def test_page_and_json_hold_the_same_figures(written):
    pages, facts = written
    assert facts["format"] == 1 and facts["version"] == 2
    compute = facts["compute"]
    wanted = [facts["change"]["mask"]["weights"], facts["change"]["mask"]["eligible"], facts["model"]["parameters"]]
    shown = [f"{value:,}" for value in wanted]
    shown += [
        str(power(value)) for value in (*compute["stages"].values(), compute["in_all"], compute["third"]) if value
    ]
    for of_task in facts["results"]["tasks"].values():
        for score in (of_task["base"], of_task["merged"]):
            shown.append(f"{score['value']:.3f} <small>{score['low']:.3f}-{score['high']:.3f}</small>")
    shown += [facts["hashes"][name] for name in ("record", "base", "mask", "model")]
    shown += [*facts["hashes"]["deltas"].values(), *facts["hashes"]["files"].values()]
    shown += [mark for found in facts["data"].values() for mark in found["fingerprints"].values()]
    for page in pages.values():
        assert [figure for figure in shown if figure not in page] == []
    figures = [re.findall(r"\d+(?:[.,]\d+)+|[0-9a-f]{64}", page.split("<h1>")[1]) for page in pages.values()]
    assert sorted(figures[0]) == sorted(figures[1])


def test_the_page_says_what_its_reader_asks(written):
    english, facts = written[0]["en"], written[1]
    japanese = written[0]["ja"]
    text = html.unescape(re.sub("<[^>]+>", "", english))
    assert "Approved by J. Doe" in text and "control is <i>outdated</i>" in text and "<i>" not in english
    assert "Judged on test data that earlier versions were judged on too, so it may look too good: sides." in text
    assert "The licence of the data is not stated: again, held." in text and "cc0-1.0" in text
    assert "The approval is not signed." in text and "This version is in force." in text
    assert "for lawyers to say" in text and "18 July 2025" in text and "法律の専門家" in japanese
    assert facts["approval"]["by"] == "J. Doe" and facts["in_force"] and not facts["held"]
    assert [event["operation"] for event in facts["people"]] == [
        "start",
        "calibrate",
        "version",
        "version",
        "version",
        "approve",
    ]
    assert {found["state"] for found in facts["data"].values()} == {"as recorded"}
    assert facts["data"]["sides"]["inputs"] == {"train": 28, "validation": 4, "test": 8}
    for page in (english, japanese):
        assert not re.search('<script|<img|<link rel=stylesheet|src=|href="?http', page) and "size:A4" in page


def test_the_record_of_the_json_is_the_one_that_verify_knows(run, written):
    assert verify(run.path, expect=written[1]["hashes"]["record"]) == []


def test_names_of_others_do_nothing(run, written):
    facts = json.loads(json.dumps(written[1]).replace('"again"', '"<b>"'))
    version = Version.of(json.loads(json.dumps(run.folder.load_version(2).as_dict()).replace('"again"', '"<b>"')))
    for language in ("en", "ja"):
        page = dossier_page(facts, version, run.folder.approval(2), language).decode()
        body = page.split("<h1>")[1]
        assert body.count("&lt;b&gt;") > 8 and re.findall("<b>(?!\\d|modif|mean|変更|対象|<)[^<]*", body) == []


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(TalosError, match=r"version 7 does not exist in .*; it has: 0, 1, 2"):
        run.dossier(7, tmp_path / "new")
    with pytest.raises(SpecError, match=r"licence of 'sidse': the run has no such task \(did you mean 'sides'\?\)"):
        run.dossier(2, tmp_path / "new", licences={"sidse": "mit"})
    with pytest.raises(SpecError, match="base compute is -1; wanted the floating-point operations"):
        run.dossier(2, tmp_path / "new", base_compute=-1)
    done = CliRunner().invoke(app, ["dossier", run.path, "2", "--licence", "sides"])
    assert "--licence is 'sides'; wanted TASK=LICENCE" in str(done.exception)
    with pytest.raises(SpecError, match="language 'jp' is not known"):
        run.dossier(2, tmp_path / "new", language="jp")
    assert not (tmp_path / "new").exists()


def test_a_licence_that_a_card_beside_the_data_names_is_told(run, tmp_path):
    settings = talos_task(run, "held")
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: cc-by-4.0\n---\n")
    (tmp_path / "rows.csv").write_text("file,side\n")
    assert dossier._licence_of(settings) is None
    assert dossier._licence_of(settings.model_copy(update={"data": str(tmp_path / "rows.csv")})) == "cc-by-4.0"
    assert dossier._licence_of(settings.model_copy(update={"data": "owner/name"})) is None


def talos_task(run, name):
    return next(task for task in (*run.spec.tasks, *run.spec.control) if task.name == name)


OPERATIONS = Operations(
    parameters=10,
    calibration=1e12,
    trained={"sides": [Trained(steps=10, batch=4, step=1e11)]},
    merge=2e12,
    scoring=1e12,
)  # 5e12 in all


@pytest.mark.parametrize(("base", "over"), [(1e13, True), (1.6e13, False), (None, None)])
def test_a_third_of_what_is_stated_decides(run, base, over):
    version = run.folder.load_version(2)
    facts = dossier.facts_on(run.folder, version, Stated(base_compute=base), OPERATIONS)
    compute = facts["compute"]
    assert compute["in_all"] == 5e12 and compute["over"] is over
    assert compute["stand_ins"]["general_purpose"] == {"third": 1e23 / 3, "over": False}
    approved = run.folder.approval(2)
    page = dossier_page(facts, version, approved, "en").decode()
    assert ("<td>more than a third</td>" in page) is (over is True)
    assert ("Nobody stated the base" in page) is (base is None)
    japanese = dossier_page(facts, version, approved, "ja").decode()
    assert ("<td>3 分の 1 を超える</td>" in japanese) is (over is True)


def test_what_cannot_be_counted_is_said_without_folders_of_this_machine(run):
    version = run.folder.load_version(2)
    facts = dossier.facts_on(run.folder, version, Stated(base_compute=1e13), f"{run.path}: the model <has> moved")
    assert facts["compute"]["why_not"] == "run: the model <has> moved" and "/" not in str(facts["data"])
    compute = facts["compute"]
    assert compute["in_all"] is None and compute["over"] is None and compute["share"] is None
    assert (
        "Operations were not counted: run: the model &lt;has&gt; moved"
        in dossier_page(facts, version, None, "en").decode()
    )
    assert {"limit": "not_counted", "why": "run: the model <has> moved"} in facts["limits"]


# ---------------------------------------------------------------------------------- counted another way


def test_operations_of_training_are_those_of_the_real_loop(run, written, counter):
    """Two updates of the loop that workers run, as it is, against what the dossier says of an update."""
    bench, settings = counter.bench, counter._settings("sides", None)
    settings = settings.model_copy(update={"steps": 2, "warmup_steps": 0})
    bench.reset()
    _, optimizer, plan = begin(bench, counter.mask, "sides", settings)
    with flops() as counted:
        tune(bench, plan, settings, optimizer, bench.examples("sides", "train").batch)
    optimizer.close()
    bench.reset()
    (told,) = written[1]["compute"]["tasks"]["sides"]
    assert told["step"] == pytest.approx(counted.get_total_flops() / 2, rel=0.05)
    assert told["operations"] == told["steps"] * told["step"]


def test_a_forward_is_two_operations_a_weight_and_token(counter):
    """The demo's tower: 16 patches and a class token go through its blocks. Attention's own products come on top."""
    module = counter.bench.family.module.visual
    blocks = sum(p.numel() for n, p in module.named_parameters() if n.startswith("transformer.") and p.dim() == 2)
    patches = 16 * module.conv1.weight.numel() + module.proj.numel()
    attention = 4 * 2 * 17 * 17 * 192  # of 4 blocks the agreements and the mixing
    analytic = 2 * (17 * blocks + patches + attention)
    assert counter.forward("sides") == pytest.approx(analytic, rel=0.01)


@pytest.mark.slow
def test_operations_of_calibration_are_those_of_all_its_shards(counter):
    bench = counter.bench
    data = load_task(bench.shared.task("sides"), 0)
    examples = bench.examples("sides", "train")
    assert len(calibration_split(counter.spec, data)) == 28
    with flops() as counted:
        gradients = SquaredGradients(bench.family.module, bench.shared.layout)
        for rows in torch.arange(28).tensor_split(4):
            inputs, _ = examples.batch(rows)
            gradients.add(bench.logits("sides"), inputs, torch.Generator())
    told = counter._calibration({"rounds": 1, "samples": {"sides": 28}})
    assert told == pytest.approx(counted.get_total_flops(), rel=0.05)


def test_operations_of_a_merge_update_are_those_of_the_real_one(run, counter, tmp_path):
    bench, spec = counter.bench, counter.spec
    folder = run.folder.__class__(str(tmp_path))
    goals = []
    for task in ("sides", "again", "held"):
        pool = counter._pool(task)
        taught = torch.zeros(len(pool), 2).log_softmax(-1).half()
        folder.save_trial(task, {}, {"taught": taught, "right": torch.ones(len(pool.judged), dtype=torch.uint8)})
        goals.append(Goal(task=task, kind="hold" if task == "held" else "learn", before=1.0, look=task))
    deltas = {task: run.folder.load_delta(task) for task in ("sides", "again")}
    problem = MergeProblem(
        goals=tuple(goals),
        deltas={task: task for task in deltas},
        base=bench.shared.base,
        marks="",
        folder=str(tmp_path),
        search=spec.search,
        train=spec.train,
        seed=0,
    )
    point = Point(arm="sparse", merge="sparse", granularity="row", lr=0.01, pressure=1.0)
    learning = LearningRun(bench, Arm.of("sparse", counter.mask.bits, deltas), problem, point)
    learner = learning._learner(None)
    with flops() as counted:
        learning._backward(MergePlan(steps=1, lr=0.01, seed=0), 0, 1.0)
    learner.close()
    bench.reset()
    told = counter._update(["sides", "again"], ["held"])
    assert told == pytest.approx(counted.get_total_flops(), rel=0.05)


def test_the_base_took_nothing(run, counter):
    assert counter.up_to([run.folder.load_version(0)]).in_all == 0


@pytest.mark.parametrize(
    ("pressure", "found", "holds", "attempts"),
    [
        (None, 18.0, True, 1),
        (None, 54.0, True, 2),
        (None, 162.0, True, 3),
        (None, 18.0, False, 3),
        (7.0, 7.0, False, 1),
    ],
)
def test_a_candidate_was_learned_until_the_controls_held(pressure, found, holds, attempts):
    point = {"pressure": pressure}
    assert _attempts(Candidate(objective=0, coefficients={}, point=point, pressure=found, holds=holds)) == attempts


@pytest.mark.slow  # a browser
@pytest.mark.parametrize("language", ["en", "ja"])
def test_nothing_is_cut_on_a_page_of_paper(browser, written, tmp_path, language):
    page = tmp_path / "dossier.html"
    page.write_text(written[0][language])
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    width = 680  # of A4 within its margins, in pixels
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    right = "return Math.max(...[...document.querySelectorAll('body *')].map(e => e.getBoundingClientRect().right))"
    assert browser.execute_script(right) <= width + 1
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
