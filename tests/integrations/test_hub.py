"""Versions on the Hugging Face Hub and back, against a server on this machine that the Hub's own library speaks with."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import huggingface_hub
import pytest
import torch
from hub_server import Repository, logged_in
from huggingface_hub import ModelCard
from recorded import random_delta, recorded_run
from safetensors.torch import load_file, save_file
from texts import save_model, write_texts
from typer.testing import CliRunner

import talos_ray
from talos_ray import CorruptError, MismatchError, SpecError, TalosError
from talos_ray.cli import app
from talos_ray.config import Gate, Task
from talos_ray.core.layout import fingerprint
from talos_ray.core.metrics import accuracy
from talos_ray.gate import judge
from talos_ray.integrations.hub import licence_of
from talos_ray.models import base_tensors, hub_name, layout_of, load_model
from talos_ray.orchestrate.plan import weights_of, with_commits
from talos_ray.spec import make_spec
from talos_ray.storage.files import as_json
from talos_ray.storage.run_folder import answers_file
from talos_ray.storage.version import Version
from talos_ray.trust.export import exported_weights
from talos_ray.trust.published import MANIFEST, RECORD, checked

TOKEN = "hf_" + "thisIsNoRealTokenOfAnybody0000000"
OTHER = "hf_" + "anotherTokenThatMayNotWrite000000"


@pytest.fixture
def server(monkeypatch, tmp_path):
    with logged_in(monkeypatch, TOKEN, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> talos_ray.Run:
    """A run of a tiny BERT: version 2 is head and has scores and a report; version 3 is kept aside by its gate."""
    where = tmp_path_factory.mktemp("hub")
    first, second = ({**write_texts(where, name, 40), "kind": "text", "input": "text", "prompts": ["{}"]} for name in ("animals", "places"))
    model = save_model(where / "model", "bert")
    (where / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    made = recorded_run(where / "run", model, [first], [second], own=["animals"])
    for settings in ({"target_keep": None, "control_keep": None}, {"target_keep": None, "control_keep": None, "target_gain": 0.95}):
        add_scored(made, Gate(**settings))
    return talos_ray.open_run(made.path)


def add_scored(run: talos_ray.Run, gate: Gate) -> None:
    """Version 1 once more, with scores, what a gate says of them, and a report."""
    before, now = (run.folder.load_answers(number) for number in (0, 1))
    right = [{t: a.right(t) for t in a.labels} for a in (before, now)]
    judged = judge(gate, ["animals"], ["places"], *right)
    scores = {
        t: {k: accuracy(int(r[t].sum()), len(r[t])).as_dict() for k, r in zip(("base", "merged"), right, strict=True)}
        for t in now.labels
    }
    summary = {"zero_shot": 0.5, "merged": 0.5, "control_kept": {"places": 1.0}}
    version = run.folder.load_version(1).with_fields(scores=scores, gate=judged, summary=summary)

    def files(number: int) -> tuple[Version, dict[str, bytes]]:
        page = f"<!doctype html><title>version {number}</title>".encode()
        return version, dict([answers_file(number, now), (f"report/{number:04d}.html", page)])

    run.folder.add_version("version", files, in_force=judged.result == "pass")


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(kind: type[Exception], match: str, call) -> str:
    with pytest.raises(kind, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1 and TOKEN not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_pushed_comes_back_byte_by_byte_and_makes_the_same_model(run, server, tmp_path, whole):
    wanted = run.folder.load_version(2)
    pushed = run.push("me/mine", 2, whole=whole)
    assert (pushed.private, pushed.version, pushed.model) == (True, 2, wanted.model)
    assert server.bodies("/api/repos/create") == [{"name": "mine", "organization": "me", "visibility": "private"}]
    assert server.repositories["me/mine"].private and pushed.commit == server.repositories["me/mine"].commits[-1][0]
    pulled = talos_ray.pull("me/mine", tmp_path / "back", deep=whole)
    assert (pulled.commit, pulled.version, pulled.model) == (pushed.commit, 2, wanted.model)
    there = {n: d for n, d in server.repositories["me/mine"].commits[-1][1].items() if n != ".gitattributes"}
    back = files_of(tmp_path / "back")
    assert back == there and sorted(back) == pushed.files
    assert back["versions/0002.json"] == run.folder.read("versions/0002.json")
    assert back["report/0002.html"] == run.folder.read("report/0002.html")
    assert json.loads(back[RECORD])["events"] == run.history()[:-1]  # all but that it was pushed
    event = run.history()[-1]
    assert (event["operation"], event["repo"], event["commit"], event["version"]) == ("push", "me/mine", pushed.commit, 2)
    assert event["private"] is True and run.folder.head == 2 and run.verify() == []
    exported = tmp_path / "exported"
    run.export(exported, 2, delta_only=not whole)
    for name, data in files_of(exported).items():
        if name.endswith(".safetensors"):  # their headers have no order
            ours, theirs = load_file(exported / name), load_file(tmp_path / "back" / name)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], t) for n, t in theirs.items())
        elif name != "README.md":  # the card tells of more files
            assert back[name] == data
    if whole:
        assert fingerprint(base_tensors(load_model(f"hf:{tmp_path / 'back'}"))) == wanted.model
    else:
        tensors = dict(base_tensors(run.model(0)))
        delta = load_file(tmp_path / "back" / "delta.safetensors")
        for name in {n.rpartition("/")[0] for n in delta}:
            tensors[name] = tensors[name].clone()
            tensors[name].view(-1)[delta[f"{name}/index"]] = delta[f"{name}/value"]
        assert fingerprint(tensors) == wanted.model != wanted.base


def test_the_token_is_nowhere_but_in_the_requests(run, server, tmp_path, capfd):
    done = CliRunner().invoke(app, ["push", run.path, "me/mine", "--version", "2"])
    assert done.exit_code == 0, done.exception
    back = CliRunner().invoke(app, ["pull", "me/mine", str(tmp_path / "back")])
    assert back.exit_code == 0 and "every file is as it was pushed" in back.output
    for repository in server.repositories.values():
        assert all(TOKEN.encode() not in data for _, files in repository.commits for data in files.values())
    assert all(TOKEN.encode() not in body for *_, body in server.asked)
    assert {headers["authorization"] for _, path, headers, _ in server.asked if path.startswith("/api/")} == {f"Bearer {TOKEN}"}
    for folder in (Path(run.path), tmp_path):
        assert all(TOKEN.encode() not in data for data in files_of(folder).values())
    assert TOKEN not in "".join([done.output, back.output, *capfd.readouterr()])


def test_any_changed_missing_or_added_byte_is_refused_by_name(run, server, tmp_path):
    run.push("me/mine", 2)
    repository = server.repositories["me/mine"]
    whole = dict(repository.commits[-1][1])
    names = [n for n in whole if n != ".gitattributes"]
    assert {MANIFEST, RECORD, "README.md", "delta.safetensors", "heads.safetensors", "versions/0002.json"} < set(names)

    def taken(files: dict[str, bytes]) -> str:
        repository.commit(files)
        told = refused(CorruptError, "hub:me/mine@[0-9a-f]{40}", lambda: talos_ray.pull("me/mine", tmp_path / "back"))
        assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []
        return told

    for name in names:
        data = whole[name]
        changed = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        assert f"{name} was changed since it was pushed" in taken({**whole, name: changed})
    assert "README.md is missing" in taken({n: d for n, d in whole.items() if n != "README.md"})
    assert "more.json is there and was not pushed" in taken({**whole, "more.json": b"{}"})


def test_a_manifest_that_no_parser_goes_through_is_refused(run, server, tmp_path):
    run.push("me/mine", 2)
    repository = server.repositories["me/mine"]
    repository.commit({**repository.commits[-1][1], MANIFEST: b'{"a":' * 100_000})
    refused(CorruptError, "talos.json was changed since it was pushed", lambda: talos_ray.pull("me/mine", tmp_path / "back"))


def test_two_pushes_at_once_leave_no_mixture(run, server, tmp_path, monkeypatch):
    run.push("me/mine", 2)
    listed = huggingface_hub.HfApi.list_repo_files

    def then_another(api, repo, **how):
        files = listed(api, repo, **how)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
        run.push("me/mine", 2, whole=True)  # meanwhile
        return files

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", then_another)
    before = len(run.history())
    refused(TalosError, "somebody else has written there meanwhile .412: .*push again", lambda: run.push("me/mine", 2))
    assert len(run.history()) == before + 1  # the other's
    assert talos_ray.pull("me/mine", tmp_path / "back").form == "whole"


def test_what_was_made_anew_with_fitting_hashes_still_has_to_fit_the_record(run, server, tmp_path):
    run.push("me/mine", 2)
    talos_ray.pull("me/mine", tmp_path / "back")

    def remade(name: str, data: bytes, **told: object) -> None:
        """What somebody does who can write the repository and knows the format."""
        before = files_of(tmp_path / "back")
        manifest = {**json.loads(before[MANIFEST]), **told}
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
        rest = {k: v for k, v in manifest.items() if k != "digest"}
        manifest["digest"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        (tmp_path / "back" / name).write_bytes(data)
        (tmp_path / "back" / MANIFEST).write_bytes(as_json(manifest))

    back = files_of(tmp_path / "back")
    assert checked(tmp_path / "back", "x")["version"] == 2
    better = back["versions/0002.json"].replace(b'"kind": "addition"', b'"kind": "additioN"')
    remade("versions/0002.json", better)
    refused(CorruptError, "versions/0002.json is not the file that its record names", lambda: checked(tmp_path / "back", "x"))
    remade("versions/0002.json", back["versions/0002.json"], model="0" * 64)
    refused(CorruptError, "talos.json says model 000000000000, the record", lambda: checked(tmp_path / "back", "x"))
    remade("versions/0002.json", back["versions/0002.json"], model=run.version.model)
    events = json.loads(back[RECORD])["events"]
    del events[3]
    remade(RECORD, as_json({"events": events}))
    refused(CorruptError, "record.json: event 3 does not follow the one before it: its number is 4", lambda: checked(tmp_path / "back", "x"))


def test_a_version_that_is_kept_aside_is_pushed_only_by_its_number_and_its_card_says_so(run, server, tmp_path):
    refused(TalosError, "version 3 is kept aside.*--version 3 pushes the one kept aside.*--version 2 pushes head", lambda: run.push("me/mine"))
    assert server.asked == []
    run.push("me/mine", 3)
    talos_ray.pull("me/mine", tmp_path / "held")
    assert "**Kept aside: its gate does not let this version through, and nobody has approved it.**" in (tmp_path / "held/README.md").read_text()
    run.push("me/mine", 2)
    talos_ray.pull("me/mine", tmp_path / "head")
    assert "Kept aside" not in (tmp_path / "head/README.md").read_text()
    assert not (tmp_path / "head/versions/0003.json").exists()  # a push replaces what was there


def test_a_revision_is_pinned_to_its_commit(run, server, tmp_path):
    first = run.push("me/mine", 2)
    second = run.push("me/mine", 3)
    assert talos_ray.pull(f"me/mine@{first.commit}", tmp_path / "a").version == 2
    assert talos_ray.pull("me/mine@main", tmp_path / "b").commit == second.commit
    asked = run.spec.tasks[0].model_copy(update={"checkpoint": "hub:me/mine"})
    spec = with_commits(run.spec.model_copy(update={"tasks": (asked,)}))
    assert spec.tasks[0].checkpoint == f"hub:me/mine@{second.commit}"
    third = run.push("me/mine", 2)
    assert with_commits(spec) == spec and third.commit != second.commit
    refused(TalosError, "no revision 'v9'; wanted a branch, a tag or a commit", lambda: talos_ray.pull("me/mine@v9", tmp_path / "c"))


@pytest.mark.parametrize("form", ["delta", "whole", "local delta"])
def test_what_was_pushed_is_a_checkpoint_of_its_model(run, server, tmp_path, form):
    base = base_tensors(run.model(0))
    if form == "local delta":
        run.export(tmp_path / "out", 2, delta_only=True)
    place = str(tmp_path / "out") if form == "local delta" else f"hub:me/mine@{run.push('me/mine', 2, whole=form == 'whole').commit}"
    task, layout = Task(name="t", data="x", checkpoint=place), layout_of(run.model(0))
    found = weights_of(task, layout, run.info["spec"]["model"], base)
    assert fingerprint(found) == run.folder.load_version(2).model
    if form != "whole":
        other = {n: t + 1 for n, t in base.items()}
        refused(MismatchError, f"task 't' changes base {run.info['base'][:12]}, and this model is", lambda: weights_of(task, layout, run.info["spec"]["model"], other))


@pytest.mark.parametrize("whole", [False, True])
def test_what_others_have_downloaded_before_is_a_checkpoint_too(run, server, whole):
    """They share the library's cache, and take the Hub's own file along."""
    run.push("me/mine", 2, whole=whole)
    folder = Path(huggingface_hub.snapshot_download("me/mine"))
    assert (folder / ".gitattributes").is_file()
    family = run.model(0)
    found = weights_of(Task(name="t", data="x", checkpoint="hub:me/mine"), layout_of(family), run.info["spec"]["model"], base_tensors(family))
    assert fingerprint(found) == run.folder.load_version(2).model


def test_a_model_of_somebody_else_is_a_checkpoint_too_and_its_pickles_stay_there(run, server, tmp_path):
    base = base_tensors(run.model(0))
    save_file({n: t + 0.5 for n, t in base.items() if t.is_floating_point()}, tmp_path / "model.safetensors")
    theirs = server.repositories["they/theirs"] = Repository(private=False)
    theirs.commit({"model.safetensors": (tmp_path / "model.safetensors").read_bytes(), "optimizer.pt": b"pickled"})
    family = run.model(0)
    task = Task(name="t", data="x", checkpoint="hub:they/theirs")
    found = weights_of(task, layout_of(family), run.info["spec"]["model"], base)
    assert all(torch.equal(found[n], base[n] + 0.5) for n in found)
    assert not any("optimizer.pt" in path for _, path, *_ in server.asked)
    refused(SpecError, "has no talos.json: talos_ray did not push it", lambda: talos_ray.pull("they/theirs", tmp_path / "back"))


def test_each_error_is_one_line_with_its_fix(run, server, tmp_path, monkeypatch):
    for name in ("mine", "me/mine/more", "me/mi..ne", "me/mine@", "me/mine@a b", "hub:"):
        refused(SpecError, "is no repository of the Hub; wanted OWNER/NAME", lambda name=name: talos_ray.pull(name, tmp_path / "x"))
    refused(SpecError, "names a revision", lambda: run.push("me/mine@main", 2))
    refused(TalosError, "has no such repository, or it is private and the token that is set may not see it", lambda: talos_ray.pull("me/none", tmp_path / "x"))
    refused(TalosError, r"no permission for it \(403: You don't have the rights.*name a repository of your own", lambda: run.push("they/theirs", 2))
    run.push("me/mine", 2)
    monkeypatch.setenv("HF_TOKEN", OTHER)
    refused(TalosError, r"does not take the token that is set \(401\); wanted a token that is valid; `hf auth login`", lambda: run.push("me/mine", 2))
    monkeypatch.delenv("HF_TOKEN")
    refused(TalosError, "needs a token of the Hub, and none is set.*or set HF_TOKEN", lambda: run.push("me/mine", 2))
    refused(TalosError, r"nobody \(no token is set\) may not see it", lambda: talos_ray.pull("me/mine", tmp_path / "x"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.repositories["me/mine"].private = False
    refused(TalosError, "is there already and public; wanted a private one.*--public", lambda: run.push("me/mine", 2))
    assert run.push("me/mine", 2, public=True).private is False
    refused(SpecError, "nobody else can load by its name", lambda: talos_ray.pull("me/mine", tmp_path / "x", deep=True))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    refused(SpecError, "is not empty", lambda: talos_ray.pull("me/mine", tmp_path / "full"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(TalosError, "the Hub at http://127.0.0.1:9 cannot be reached.*HF_ENDPOINT and HF_HUB_OFFLINE", lambda: talos_ray.pull("me/mine", tmp_path / "x"))


def test_a_large_file_that_is_refused_is_told_in_a_line_and_leaves_no_event(run, server, monkeypatch):
    put = next(route for route in hub_server.ROUTES if route[0] == "PUT")
    others = tuple(route for route in hub_server.ROUTES if route is not put)
    expired = (*put[:2], lambda handler, body, oid: handler.fail(403, f"signature {TOKEN} expired"))
    monkeypatch.setattr(hub_server, "ROUTES", (*others, expired))
    before = len(run.history())
    refused(TalosError, "Error while uploading .*signature .* expired.*; nothing was committed; try again", lambda: run.push("me/mine", 2))
    assert len(run.history()) == before


def test_public_is_sent_only_when_it_is_asked_for(run, server):
    assert run.push("me/open", 2, public=True).private is False
    assert [b["visibility"] for b in server.bodies("/api/repos/create")] == ["public"]


def test_the_card_is_what_the_hub_reads(run, tmp_path):
    run.export(tmp_path / "out", 2)
    text = (tmp_path / "out/README.md").read_text()
    card = ModelCard(text)
    told = card.data.to_dict()
    assert told["tags"] == ["merge", "talos_ray", "task-arithmetic"] and told["metrics"] == ["accuracy"]
    assert (told["license"], told["library_name"], told["pipeline_tag"]) == ("apache-2.0", "transformers", "text-classification")
    assert "base_model" not in told and "datasets" not in told  # both lie on this machine alone
    assert str(tmp_path.parent) not in text.replace(run.path, "")
    scores = run.folder.load_version(2).scores
    results = {r.dataset_name: r for r in card.data.eval_results}
    assert {n: r.metric_value for n, r in results.items()} == {t: round(s.merged.value, 4) for t, s in scores.items()}
    assert results["animals"].metric_args == {"low": round(scores["animals"].merged.low, 4), "high": round(scores["animals"].merged.high, 4), "n": scores["animals"].merged.n}
    assert results["places"].dataset_type == "places" and results["places"].dataset_split == "test"
    run.export(tmp_path / "delta", 2, delta_only=True)
    assert ModelCard((tmp_path / "delta/README.md").read_text()).data.library_name == "talos_ray"


def test_a_base_is_taken_at_a_revision(server, tmp_path, monkeypatch):
    repository = server.repositories["me/bert"] = Repository(private=False)
    commits = []
    for shift in (0.0, 0.5):
        family = load_model(save_model(tmp_path / f"model-{shift}", "bert"))
        with torch.no_grad():
            next(family.module.parameters()).add_(shift)
        folder = tmp_path / f"pushed-{shift}"
        family.save(folder)
        commits.append((repository.commit(files_of(folder)), fingerprint(base_tensors(load_model(f"hf:{folder}")))))
    assert commits[0][1] != commits[1][1]
    for commit, mark in commits:
        assert fingerprint(base_tensors(load_model(f"hf:me/bert@{commit}"))) == mark
    assert fingerprint(base_tensors(load_model("hf:me/bert@main"))) == commits[1][1]
    assert hub_name(f"hf:me/bert@{commits[0][0]}") == "me/bert"
    refused(SpecError, "hf:me/bert@none' cannot be had from the Hub: .*wanted OWNER/NAME@REVISION", lambda: load_model("hf:me/bert@none"))


def test_a_licence_is_asked_of_the_hub(server):
    server.repositories["they/theirs"] = Repository(private=False, card={"license": "mit"})
    server.repositories["they/theirs"].commit({"README.md": b"---\nlicense: mit\n---\n"})
    server.repositories["they/silent"] = Repository(private=False)
    server.repositories["they/silent"].commit({})
    assert [licence_of(f"they/{name}") for name in ("theirs", "silent", "nowhere")] == ["mit", None, None]


def test_the_hub_knows_the_bases_of_both_libraries():
    assert hub_name("open_clip:ViT-B-32/laion2b_s34b_b79k") == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert hub_name("open_clip:ViT-B-32/openai") == "timm/vit_base_patch32_clip_224.openai"
    assert hub_name("open_clip:hf-hub:me/mine") == "me/mine" and hub_name("hf-bf16:me/mine") == "me/mine"
    for name in ("demo", "python:a:b", "open_clip:ViT-B-32/weights.pt", "open_clip:local-dir:x", "hf:/tmp"):
        assert hub_name(name) is None


@pytest.mark.slow
def test_the_commands_honour_the_hubs_own_settings(run, server, tmp_path):
    """In processes of their own, which read HF_ENDPOINT and HF_TOKEN as a user sets them."""
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}

    def talos(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "talos_ray.cli", *words], env=env, capture_output=True, text=True, timeout=300)

    done = talos("push", run.path, "me/mine", "--version", "2", "--json")
    assert done.returncode == 0, done.stderr
    commit = json.loads(done.stdout)["commit"]
    back = talos("pull", f"me/mine@{commit}", str(tmp_path / "back"), "--json")
    assert back.returncode == 0 and json.loads(back.stdout)["model"] == run.folder.load_version(2).model
    assert TOKEN not in done.stdout + done.stderr + back.stdout + back.stderr
    talos_ray.open_run(run.path)
    gone = talos("pull", "me/none", str(tmp_path / "none"))
    assert gone.returncode == 2 and gone.stderr.startswith("talos: hub:me/none: the Hub has no such repository") and "Traceback" not in gone.stderr


def test_an_edit_may_end_on_the_hub(server, tmp_path, monkeypatch, ray_here):
    monkeypatch.chdir(tmp_path)
    task = {**write_texts(tmp_path, "animals", 60), "kind": "text", "input": "text", "prompts": ["{}"]}
    values = {
        "model": save_model(tmp_path / "model", "bert"),
        "tasks": [task],
        "output": "hub:me/mine",
        "train": {"steps": 2, "batch_size": 4},
        "calibration": {"samples_per_task": 8, "shards_per_task": 2, "batch_size": 4},
        "search": {"steps": 2, "trials": 0, "inputs": 8, "batch_size": 2},
        "gate": {"target_keep": None, "control_keep": None},
    }
    run = talos_ray.edit(**values)
    assert (Path(run.path), run.head, run.info["spec"]["push"]) == (tmp_path / "runs/mine", 1, "me/mine")
    (commit, files), = server.repositories["me/mine"].commits[-1:]
    assert server.repositories["me/mine"].private and files["versions/0001.json"] == run.folder.read("versions/0001.json")
    assert run.history()[-1]["commit"] == commit
    talos_ray.edit(**values)  # is there already
    assert server.repositories["me/mine"].commits[-1][0] == commit and len(run.history()) == len(talos_ray.open_run("runs/mine").history())
    # What the gate keeps aside goes nowhere.
    held = talos_ray.edit(**{**values, "gate": {"target_keep": None, "control_keep": None, "target_gain": 0.95}})
    assert (held.newest.number, held.head) == (2, 1) and server.repositories["me/mine"].commits[-1][0] == commit


@pytest.mark.parametrize("output", ["hub:mine", "hub:me/mine@main", "hub:"])
def test_a_repository_to_end_in_is_named_without_a_revision(output):
    with pytest.raises(SpecError, match="wanted OWNER/NAME without a revision"):
        talos_ray.edit(["demo:counts"], output=output)


def test_without_a_token_nothing_is_begun(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(TalosError, match="needs a token of the Hub"):
        talos_ray.edit(["demo:counts"], output="hub:me/mine")
    with pytest.raises(TalosError, match="needs a token of the Hub"):
        talos_ray.check({"tasks": ["demo:counts"], "model": "demo", "output": "hub:me/mine"})
    assert not (tmp_path / "runs").exists()


def test_an_edit_of_a_base_with_negative_zeros_goes_out_and_comes_back_bit_by_bit(tmp_path, monkeypatch):
    """As pruning leaves them: a delta's 0.0 makes 0.0 of them, which is another number to a fingerprint."""

    def with_zeros(*given):
        delta = random_delta(*given)
        delta.values[::2] = 0.0
        return delta

    monkeypatch.setattr("recorded.random_delta", with_zeros)
    model = save_model(tmp_path / "model", "bert")
    weights = tmp_path / "model" / "model.safetensors"
    save_file({n: torch.where(t.abs() < 0.01, -0.0, t) for n, t in load_file(weights).items()}, weights, {"format": "pt"})
    task = {**write_texts(tmp_path, "animals", 40), "kind": "text", "input": "text", "prompts": ["{}"]}
    pruned = recorded_run(tmp_path / "run", model, [task])
    pruned.export(tmp_path / "out", 1, delta_only=True)
    base = base_tensors(load_model(model))
    assert fingerprint(exported_weights(tmp_path / "out", model, base, "out")) == pruned.folder.load_version(1).model


def test_a_base_is_named_as_a_checkpoint_is_and_what_is_no_model_says_what_it_is(run, server):
    run.push("me/mine", 2)
    run.push("me/whole", 2, whole=True)
    spec = make_spec({"model": "hub:me/whole@main", "tasks": ["demo:counts"], "output": "x"})
    assert spec.model == "hf:me/whole@main"
    assert fingerprint(base_tensors(load_model(spec.model))) == run.folder.load_version(2).model
    with pytest.raises(SpecError, match=r"'hf:me/mine' cannot be loaded: it holds the weights that a version .* --whole"):
        load_model("hf:me/mine")
