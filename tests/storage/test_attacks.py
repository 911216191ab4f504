"""A run that somebody else made: trees that do not end, files that are no files, hashes made anew, keys, code and markup."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from records import old_run, rehash
from typer.testing import CliRunner

import talos_ray
from talos_ray import CorruptError, SpecError, TalosError
from talos_ray.cli import app
from talos_ray.report import page
from talos_ray.report.words import Words
from talos_ray.secrets import blotted, refuse_secrets
from talos_ray.shown import cell, markdown, plain
from talos_ray.storage import history
from talos_ray.storage.files import Store, as_json, as_tensors
from talos_ray.storage.version import Version

STRAYS = {
    "a folder called history": lambda d: write(d / "report/history/x.html"),
    "a folder called checkpoints": lambda d: write(d / "deltas/checkpoints/x.safetensors"),
    "a folder in the history": lambda d: write(d / "history/more/00000000.json"),
    "a file beside the events": lambda d: write(d / "history/notes.txt"),
    "a copy of an editor": lambda d: write(d / "versions/0001.json~"),
    "a hidden file": lambda d: write(d / "report/.x.html"),
    "a hidden file beside the events": lambda d: write(d / "history/.x.json"),
    "a checkpoint that is none": lambda d: write(d / "checkpoints/t/step-00000001.safetensors"),
    "a pipe": lambda d: os.mkfifo(d / "report/pipe"),
    "a pipe in a version's place": lambda d: ((d / "versions/0001.json").unlink(), os.mkfifo(d / "versions/0001.json")),
    "a link to nothing": lambda d: (d / "report/x").symlink_to("/nowhere"),
    "a link to a file outside": lambda d: (d / "report/x").symlink_to("/etc/hostname"),
    "links that go round": lambda d: [(d / f"report/{n}").symlink_to(".") for n in "ab"],
    "an empty folder": lambda d: (d / "deltas2").mkdir(),
    "a folder moved away": lambda d: (shutil.move(d / "report", d.parent / "out"), (d / "report").symlink_to(d.parent / "out")),
    "a name in bytes": lambda d: Path(os.fsdecode(os.fsencode(d / "report") + b"/\xff.html")).write_text("x"),
    "a name of two lines": lambda d: write(d / "report/a\nb.html"),
    "something waiting that nobody wrote": lambda d: write(d / "pending/notes/x"),
}  # fmt: skip


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


@pytest.fixture
def path(tmp_path):
    return old_run(tmp_path)


@pytest.mark.parametrize("stray", STRAYS)
def test_verify_names_whatever_lies_below_the_folder(path, stray):
    STRAYS[stray](path)
    run = None
    assert history.verify(Store(str(path)))
    result = CliRunner().invoke(app, ["verify", str(path)])
    assert result.exit_code == 1 and "Traceback" not in result.output and result.exception.__class__ is SystemExit
    assert len(result.stdout.splitlines()) <= 24 and "\x1b" not in result.stdout
    if "version" not in stray and "moved" not in stray:
        run = talos_ray.open_run(str(path))
        assert (run.head, len(run.versions), run.held(), run.folder.last_event()[0]) == (1, 3, True, 9)


def test_a_very_deep_tree_ends(path):
    deep = "/".join(["d" * 200] * 4)
    here = os.getcwd()
    try:
        os.chdir(path)
        for _ in range(6):  # longer than a path may be
            os.makedirs(deep)
            os.chdir(deep)
    finally:
        os.chdir(here)
    assert history.verify(Store(str(path)))
    subprocess.run(["rm", "-rf", str(path)], check=True)


def test_a_writer_does_not_follow_a_link_out_of_the_run(path, tmp_path):
    shutil.move(path / "report", tmp_path / "out")
    (path / "report").symlink_to(tmp_path / "out")
    before = (tmp_path / "out/index.html").read_bytes()
    with pytest.raises(TalosError, match="is a link"):
        talos_ray.open_run(str(path)).rollback(0)
    assert (tmp_path / "out/index.html").read_bytes() == before


WRONG = {
    ("versions/0001.json", "coefficients", lambda v: {"t": float("nan")}),
    ("versions/0001.json", "scores", lambda v: {"t": {"base": 3}}),
    ("versions/0001.json", "version", lambda v: "1"),
    ("versions/0001.json", "gate", lambda v: {"result": "yes", "checks": [], "settings": {}}),
    ("versions/0001.json", "targets", lambda v: "t"),
    ("run.json", "spec", lambda v: []),
    ("run.json", "base", lambda v: 7),
}


@pytest.mark.parametrize(("name", "field", "wrong"), sorted(WRONG, key=str))
def test_a_file_that_does_not_fit_its_format_is_named_with_its_field(path, name, field, wrong):
    found = json.loads((path / name).read_text())
    found[field] = wrong(found[field])
    (path / name).write_bytes(as_json(found))
    rehash(path)
    with pytest.raises(CorruptError, match=rf"{name}: field '{field}"):
        talos_ray.open_run(str(path)).rollback(1)


def score_above_one(path: Path) -> str:
    file = path / "versions/0001.json"
    found = json.loads(file.read_text())
    next(iter(found["scores"].values()))["merged"]["value"] = 1.5
    file.write_bytes(as_json(found))
    return r"versions/0001.json: field 'scores.*merged.value' is 1.5"


def changed_tensors(path: Path, name: str, change) -> None:
    store = Store(str(path))
    tensors, info = store.read_tensors(name)
    change(tensors, info)
    (path / name).write_bytes(as_tensors(tensors, info))


def a_delta(path: Path) -> str:
    return f"deltas/{min(p.name for p in (path / 'deltas').glob('*.safetensors'))}"


def delta_not_a_number(path: Path) -> str:
    changed_tensors(path, a_delta(path), lambda tensors, info: tensors["values"].view(-1)[3:4].fill_(float("nan")))
    return r"deltas/.*: value 3 of tensor 'values' is nan; wanted finite values"


def delta_without_a_mask(path: Path) -> str:
    changed_tensors(path, a_delta(path), lambda tensors, info: info.pop("mask"))
    return r"deltas/.*: field 'mask'"


def delta_of_whole_numbers(path: Path) -> str:
    changed_tensors(path, a_delta(path), lambda tensors, info: tensors.update(values=torch.zeros(3, dtype=torch.int64)))
    return r"tensor 'values' is torch.int64 \[3\]; wanted floats \[k\]"


def mask_of_negative_shape(path: Path) -> str:
    changed_tensors(path, "mask.safetensors", lambda tensors, info: info["shapes"].update({key: [-1] for key in info["shapes"]}))
    return r"mask.safetensors: field 'shapes"


MISFITS = (score_above_one, delta_not_a_number, delta_without_a_mask, delta_of_whole_numbers, mask_of_negative_shape)


@pytest.mark.parametrize("misfit", MISFITS)
def test_verify_names_what_does_not_fit_its_format_though_all_hashes_do(path, misfit):
    wanted = misfit(path)
    rehash(path)
    (problem,) = talos_ray.api.verify(str(path))
    assert re.search(wanted, problem) and "\n" not in problem


def test_a_run_of_a_newer_release_is_called_that(path):
    found = json.loads((path / "run.json").read_text())
    (path / "run.json").write_bytes(as_json({**found, "format": 99}))
    rehash(path)
    with pytest.raises(CorruptError, match="format 99, of a newer talos_ray"):
        talos_ray.open_run(str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../outside": "0" * 64}}, {"files": {"/etc/passwd": "0" * 64}}, {"files": []}, {"files": {"a": 3}}, {"head": "1"},
        {"operation": 7}, {"number": True}, {"id": ".."}, {"time": None},
    ],
)  # fmt: skip
def test_events_of_another_kind_are_no_events(path, change):
    names = sorted(os.listdir(path / "history"))
    last = path / "history" / names[-1]
    event = {**json.loads(last.read_text()), **change}
    last.unlink()
    (path / "history/00000008.json").write_bytes(as_json(event))
    with pytest.raises(CorruptError, match=r"history/00000008\.json is no event"):
        talos_ray.open_run(str(path)).history()
    assert any("00000008" in p for p in history.verify(Store(str(path))))


def test_json_without_end_is_no_traceback(path):
    (path / "head.json").write_text("[" * 100_000)
    (path / "history/00000009.json").write_text('{"a":' * 100_000)
    assert any("is not JSON" in p for p in history.verify(Store(str(path))))


def test_a_hash_that_was_kept_finds_a_history_that_was_made_anew(path):
    run = talos_ray.open_run(str(path))
    _, kept = run.folder.last_event()
    assert talos_ray.api.verify(str(path), expect=kept[:20]) == []
    run.rollback(0)
    assert talos_ray.api.verify(str(path), expect=kept) == []  # a later event does not matter
    first = path / "versions/0002.json"
    edited = json.loads(first.read_text())
    edited["gate"]["result"] = "pass"
    first.write_bytes(as_json(edited))
    rehash(path)
    assert history.verify(Store(str(path))) == []  # nothing in the folder can tell
    assert any(kept[:16] in p for p in talos_ray.api.verify(str(path), expect=kept))
    result = CliRunner().invoke(app, ["verify", str(path), "--expect", kept, "--json"])
    assert result.exit_code == 1 and kept[:16] in json.loads(result.stdout)["problems"][0]
    with pytest.raises(SpecError, match="is none"):
        talos_ray.api.verify(str(path), expect="abc")
    assert kept not in CliRunner().invoke(app, ["log", str(path)]).output


# ---------------------------------------------------------------------------------- code


@pytest.fixture
def evil(path, tmp_path, monkeypatch):
    """A run whose chain is valid and whose model is somebody's module, which lies in the working folder."""
    mark = tmp_path / "RAN"
    (tmp_path / "evil_module.py").write_text(
        f"open({str(mark)!r}, 'a').write('x')\ndef Mine():\n    raise SystemExit('no')\n"
    )
    found = json.loads((path / "run.json").read_text())
    found["spec"]["model"] = "python:evil_module:Mine"
    (path / "run.json").write_bytes(as_json(found))
    rehash(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("TALOS_ALLOW_CODE", raising=False)
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    return path, mark


def test_a_run_of_somebody_else_runs_no_code(evil):
    path, mark = evil
    run = talos_ray.open_run(str(path))
    assert run.verify() == [] and "runs none" in run.verify(deep=True)[0]
    for call in (run.model, lambda: run.export(path.parent / "out"), lambda: run.compare(0, 1, "t", "x.csv")):
        with pytest.raises(TalosError):
            call()
    with pytest.raises(SpecError, match="which you have not allowed; .*--allow-code evil_module"):
        run.model()
    spec = path.parent / "spec.yaml"
    spec.write_text("model: python:evil_module:Mine\ntasks: [demo:pointers]\noutput: new\n")
    for words in (
        ["check", str(spec)],
        ["plan", str(spec)],
        ["verify", str(path), "--deep"],
        ["rollback", str(path), "0"],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code in (1, 2), words
    assert not mark.exists()


def test_code_that_was_allowed_once_is_remembered_until_it_changes(evil):
    _, mark = evil
    from talos_ray.models import python

    python.allow("evil_module")
    del os.environ["TALOS_ALLOW_CODE"]
    assert python.is_allowed("evil_module") and not python.is_allowed("json") and not mark.exists()
    python.check("evil_module:Mine")
    assert mark.exists()
    source = Path("evil_module.py")
    source.write_text(source.read_text() + "# another\n")
    assert not python.is_allowed("evil_module")
    os.environ["TALOS_ALLOW_CODE"] = "other,evil_module"
    assert python.is_allowed("evil_module")


# ---------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAAAAAAAAAAAAAAAAA:topsecret@bucket/run", "s3://key@bucket/run", "gs://x:topsecret@bucket/run",
        "abfs://c@account/run?sas_token=topsecret", "https://host/x?signature=topsecret", "hdfs://me:topsecret@host/run",
    ],
)  # fmt: skip
def test_a_uri_with_a_key_is_refused_without_telling_it(uri):
    with pytest.raises(SpecError, match="has a key in it") as told:
        Store(uri)
    assert "topsecret" not in str(told.value) and "AKIA" not in str(told.value)
    spec = {"model": "demo", "tasks": ["demo:pointers"], "output": uri}
    with pytest.raises(SpecError) as told:
        talos_ray.spec.make_spec(spec)
    assert "topsecret" not in str(told.value) and len(str(told.value).splitlines()) == 1


def test_what_has_no_key_passes():
    for uri in (
        "s3://bucket/design=3/run?region=eu&scheme=https",
        "hdfs://me@host:9000/run",
        "abfs://c@account/run",
        "runs/demo",
    ):
        refuse_secrets(uri, "output")


def test_no_key_of_a_command_line_is_recorded(tmp_path, monkeypatch):
    given = [
        "talos",
        "edit",
        "s3://A:topsecret@b/r",
        "--api-key",
        "topsecret",
        "HF_TOKEN=topsecret",
        "hf_abcdefghijklmnopqrst",
        "--reason",
        "sign it",
    ]
    monkeypatch.setattr(sys, "argv", given)
    event = history.append(Store(str(tmp_path / "run")), "note")
    assert "topsecret" not in event["command"] and "hf_abc" not in event["command"]
    assert "sign it" in event["command"] and "s3://***@b/r" in event["command"]
    assert blotted("talos edit design=4 signal: 3") == "talos edit design=4 signal: 3"


# ---------------------------------------------------------------------------------- markup

NASTY = "<img src=x onerror=alert(1)>"


def test_pages_escape_whatever_is_filled_in(path):
    run = talos_ray.open_run(str(path))
    version = run.folder.load_version(1).as_dict()
    version["coefficients"] = {f"t@{NASTY}": 0.5}
    version["scores"][NASTY] = version["scores"]["t"]
    version["targets"].append(NASTY)
    version["gate"]["checks"][0]["task"] = NASTY
    version["created"] = NASTY
    info = {**run.info, "software": {NASTY: NASTY}}
    shown = Version.model_validate(version)
    html = page.render(run.folder, info, shown, {"by": NASTY, "reason": NASTY})["html"].decode()
    assert "<img" not in html and "&lt;img src=x" in html
    assert "Content-Security-Policy" in html and "default-src 'none'" in html and "<script" not in html


def test_every_kind_of_page_has_its_own_escape():
    assert plain("a\x1b[31mb\nc\u202e\udcff") == r"a\x1b[31mb\nc\u202e\udcff"
    assert [cell(v) for v in ("=1+1", "+x", "-x", "@x", " =x", "\t=x", "＝x", "plain", 3.5, None)] == [
        "'=1+1", "'+x", "'-x", "'@x", "' =x", "'\t=x", "'＝x", "plain", 3.5, None,
    ]  # fmt: skip
    assert markdown("a|b <x> `c` [d](e)\nf") == r"a\|b \<x\> \`c\` \[d\](e)\\nf"
    words = Words({"key": "<b>{x}</b> {y:.1f}"})
    assert words("key", x="<i>\x1b", y=1.25) == r"<b>&lt;i&gt;\x1b</b> 1.2"


def test_a_terminal_shows_names_as_they_are(path):
    found = json.loads((path / "run.json").read_text())
    (path / "run.json").write_bytes(as_json(found))
    event = history.append(Store(str(path)), "[red]watch\x1b[31m", version=1)
    out = CliRunner().invoke(app, ["log", str(path)]).output
    assert "\x1b" not in out and "[red]" in out and event["number"] == 9
