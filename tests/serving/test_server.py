"""One model in which versions and edits take turns: every answer is that of `run.predict`, to the bit, whoever else
asks; and what may not be served is not."""

import itertools
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from recorded import made, test_inputs
from served import add_version, alike, held, single, wire

import talos_ray
from talos_ray import SpecError, TalosError
from talos_ray.core.layout import fingerprint
from talos_ray.models import base_tensors
from talos_ray.serving import switch
from talos_ray.serving.record import Canary, Refused
from talos_ray.serving.server import MERGED, SINGLE, Server
from talos_ray.trust.predict import Predictions
from talos_ray.trust.recompose import Edit

MORE = ("t5", "demo", "siglip", "gpt2", "llama", "classifier bfloat16", "t5 bfloat16")


def weights(server: Server) -> str:
    return fingerprint(base_tensors(server.family))


@pytest.mark.parametrize("kind", ("bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)))
def test_every_version_and_edit_answers_as_predict_does(kind, tmp_path):
    run = made(tmp_path, kind)
    server = Server(run.path)
    for task in run._tasks:
        inputs, _ = test_inputs(run, task)
        for version in (1, 0, None):
            found = server.predict(wire(inputs), task, version=version, top_k=2)
            wanted = run.predict(inputs, task, version, top_k=2)
            assert alike(found, wanted) and found.notes == wanted.notes
            assert weights(server) == run.folder.load_version(wanted.version).model
        if task in run.version.deltas:
            found = server.predict(wire(inputs), task, edit=SINGLE, top_k=2)
            wanted = single(run, task, inputs, 2)
            assert torch.equal(found.best, wanted.best) and torch.equal(found.scores, wanted.scores)
            assert not torch.equal(found.scores, run.predict(inputs, task, 0, top_k=2).scores)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Versions 0 (base), 1 (all edits, in force), 2 (one edit), 3 (kept aside), 4 (has forgotten a task), 5 (not what
    it was recorded as), 6 (whose weights are no numbers)."""
    run = made(tmp_path_factory.mktemp("bert"), "bert")
    add_version(run, {"animals": 0.5})
    add_version(run, {"places": 0.5}, gate=held())
    add_version(run, {"animals": 1.0, "places": -0.3}, forgotten=["places"])
    add_version(run, {"animals": 0.25}, model="0" * 64)
    add_version(run, {"animals": 3e38})
    return run


@pytest.fixture
def copied(bert, tmp_path):
    """The same run in a folder of its own."""
    shutil.copytree(bert.path, tmp_path / "run")
    return talos_ray.open_run(str(tmp_path / "run"))


@dataclass(frozen=True)
class Ask:
    task: str
    version: int
    edit: str
    inputs: tuple[str, ...]


def all_asks(run: talos_ray.Run) -> dict[Ask, Predictions]:
    """Requests of all kinds, and what `run.predict` answers."""
    draw = random.Random(0)
    answers = {}
    for task, version in itertools.product(("animals", "places", "held"), (0, 1, 2)):
        inputs, _ = test_inputs(run, task)
        some = tuple(draw.sample(inputs, draw.choice((1, 3))))
        answers[Ask(task, version, MERGED, some)] = run.predict(list(some), task, version)
    for task in ("animals", "places"):
        some = tuple(draw.sample(test_inputs(run, task)[0], 2))
        answers[Ask(task, 1, SINGLE, some)] = single(run, task, list(some))
    return answers


def switches(server: Server) -> int:
    labels = {"replica": server.metrics.replica}
    return int(server.metrics.registry.get_sample_value("talos_ray_serve_switch_seconds_count", labels) or 0)


@pytest.mark.parametrize("least", (50, pytest.param(1000, marks=pytest.mark.slow)))
def test_eight_threads_and_a_thousand_switches_give_no_wrong_answer(bert, least):
    server = Server(bert.path)
    wanted = all_asks(bert)

    def ask_on(seed: int) -> tuple[int, list[Ask]]:
        draw, asked, wrong = random.Random(seed), 0, []
        while switches(server) < least:
            ask = draw.choice(list(wanted))
            found = server.predict(list(ask.inputs), ask.task, version=ask.version, edit=ask.edit)
            asked += 1
            if not torch.equal(found.scores, wanted[ask].scores) or not torch.equal(found.best, wanted[ask].best):
                wrong.append(ask)
        return asked, wrong

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask_on, range(8)))
    assert [wrong for _, wrong in results] == [[]] * 8 and switches(server) >= least
    assert sum(asked for asked, _ in results) >= least
    server.switch.to(switch.BASE, None)
    assert weights(server) == bert.info["base"]


def test_a_rollback_shows_without_a_restart(copied):
    server, fixed = Server(copied.path, follow=0), Server(copied.path, version=1, follow=0)
    texts = ["the old horse was seen", "a hammer"]
    for number in (1, 0, 2):
        if number != 1:
            talos_ray.open_run(copied.path).folder.set_head(number, "rollback")
        found, wanted = server.predict(texts, "animals"), copied.predict(texts, "animals", number)
        assert alike(found, wanted) and found.notes == wanted.notes and server.health()["head"] == number
        assert fixed.predict(texts, "animals").version == 1 == fixed.health()["answers"]
    new = add_version(copied, {"places": 0.7}, in_force=True)
    assert alike(server.predict(texts, "places"), copied.predict(texts, "places", new))


def test_a_look_is_taken_once_in_a_while(copied):
    server = Server(copied.path, follow=0.4)
    copied.folder.set_head(0, "rollback")
    before = server.predict(["a"], "animals").version
    time.sleep(0.5)
    assert (before, server.predict(["a"], "animals").version) in ((1, 0), (0, 0))
    history = copied.folder.store.path("history")
    shutil.move(history, f"{history}-away")  # a storage that does not answer
    Path(history).touch()
    time.sleep(0.5)
    assert server.predict(["a"], "animals").version == 0 and server.health()["seen"] >= 0.5


def test_a_version_that_is_kept_aside_is_refused_until_it_is_approved(copied):
    server = Server(copied.path, follow=0)
    for edit in (MERGED, SINGLE):
        with pytest.raises(Refused, match="version 3 is kept aside by its gate: share of its base score") as error:
            server.predict(["a"], "places", version=3, edit=edit)
        assert error.value.status == 409
    for how in ({"version": 3}, {"canary": Canary(version=3, share=0.5)}):
        with pytest.raises(Refused, match="kept aside"):
            Server(copied.path, **how)
    copied.folder.set_head(3, "approve", by="J. Doe", reason="known", was=1, gate="fail")
    assert alike(server.predict(["a"], "places", version=3), copied.predict(["a"], "places", 3))
    assert server.predict(["a"], "places").version == 3


@pytest.mark.parametrize(
    "how, status, said",
    (
        ({"task": "animal"}, 404, "task 'animal' is none of this run .did you mean 'animals'..; it has: animals"),
        ({"version": 17}, 404, "version 17 does not exist in this run; it has: 0, 1, 2, 3, 4, 5, 6"),
        ({"task": "held", "edit": SINGLE}, 404, "version 1 holds no edit of task 'held'"),
        ({"task": "places", "version": 2, "edit": SINGLE}, 404, "it holds those of: animals"),
        ({"task": "places", "version": 4, "edit": SINGLE}, 404, "version 4 holds no edit of task 'places'"),
        ({"edit": "double"}, 422, "edit is 'double'; wanted 'merged' or 'single'"),
        ({"top_k": 3}, 422, "top_k is 3; wanted 1 to 2"),
        ({"inputs": []}, 422, "inputs: 0; wanted a list of 1 to 1024"),
        ({"inputs": "a text"}, 422, "inputs: str; wanted a list"),
        ({"inputs": ["a"] * 1025}, 422, "inputs: 1025; wanted"),
        ({"inputs": ["a", 7]}, 422, "input 1 is int; wanted a text"),
        ({"inputs": ["a", " "]}, 422, "row 1 of the list of inputs has no text"),
    ),
)
def test_what_cannot_be_answered_is_refused_with_its_status(bert, shared, how, status, said):
    with pytest.raises(Refused, match=said) as error:
        shared.predict(**{"inputs": ["a"], "task": "animals", **how})
    assert error.value.status == status and len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def shared(bert):
    return Server(bert.path)


class Breaks(Edit):
    """Composes, and fails when all is written."""

    def put(self, family, base):
        super().put(family, base)
        raise MemoryError("no room")


def test_after_an_error_the_model_is_whole(bert, shared, monkeypatch):
    texts = ["the old horse was seen"]
    wanted = {n: bert.predict(texts, "animals", n) for n in (0, 1)}
    edit = Breaks(
        mask=bert.mask, rows=bert.deltas, blend=talos_ray.core.segments.Blend(dict.fromkeys(bert.deltas, 1.0))
    )
    for before in (0, 1):
        assert alike(shared.predict(texts, "animals", version=before), wanted[before])
        with pytest.raises(TalosError, match=r"version 5 composes to \w+, but was recorded as 000000000000"):
            shared.predict(texts, "animals", version=5)
        assert weights(shared) == bert.info["base"] and shared.switch.holds == switch.BASE
        assert alike(shared.predict(texts, "animals", version=before), wanted[before])
        with pytest.raises(MemoryError):
            shared.switch.to("broken", lambda: edit)
        assert weights(shared) == bert.info["base"]
        assert alike(shared.predict(texts, "animals", version=1), wanted[1])
        with pytest.raises(
            TalosError, match="version 6 answers input 'the old horse was seen' with values that are no"
        ):
            shared.predict(texts, "animals", version=6)
        assert alike(shared.predict(texts, "animals", version=before), wanted[before])
    with monkeypatch.context() as patch:
        patch.setattr(switch, "KEPT_BYTES", 0)  # each is composed anew
        for number in (0, 1, 2, 0, 2, 1):
            assert alike(shared.predict(texts, "animals", version=number), bert.predict(texts, "animals", number))
        assert len(shared.switch._kept) == 1


def test_a_delta_that_was_changed_is_not_served(copied):
    server = Server(copied.path)
    path = copied.folder.store.path("deltas/places.safetensors")
    with open(path, "r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x01\x3f")
    with pytest.raises(TalosError, match=r"places.safetensors .*its digest does not fit"):
        server.predict(["a"], "places", edit=SINGLE)
    assert server.predict(["a"], "places", version=0).version == 0 and weights(server) == copied.info["base"]


def asked_at_once(server: Server, asks: list[tuple[str, int, list[str]]]) -> list[Predictions]:
    """Answers to requests that all wait, in this order, before the first gets the model."""
    with ThreadPoolExecutor(len(asks)) as pool:
        with server._model:
            futures = []
            for i, (task, version, inputs) in enumerate(asks):
                futures.append(pool.submit(server.predict, inputs, task, version=version))
                while sum(map(len, server._waiting.values())) <= i:
                    time.sleep(0.001)
        return [f.result() for f in futures]


@pytest.mark.parametrize("join", (False, True))
def test_who_waits_for_the_same_is_answered_together(bert, join):
    server = Server(bert.path, join=join)
    passes = []
    server.family.module.register_forward_hook(lambda *_: passes.append(server.switch.holds))
    inputs, _ = test_inputs(bert, "animals")
    asks = [("animals", i % 2 + 1, inputs[i : i + 1 + i % 3]) for i in range(8)]
    found = asked_at_once(server, asks)
    assert switches(server) == 2 and len(passes) == (2 if join else 8)
    assert passes == sorted(passes) or passes == sorted(passes, reverse=True)
    for (task, version, some), answer in zip(asks, found, strict=True):
        wanted = bert.predict(some, task, version)
        assert answer.inputs == wanted.inputs and answer.labels == wanted.labels
        assert torch.allclose(answer.scores, wanted.scores, atol=1e-5) and (join or alike(answer, wanted))


def test_one_bad_request_of_many_spoils_no_other(bert):
    server = Server(bert.path, join=True)
    errors = []

    def ask(version: int) -> int | None:
        try:
            return server.predict(["the old horse"], "animals", version=version).version
        except TalosError as error:
            errors.append(str(error))

    with ThreadPoolExecutor(9) as pool:
        assert sorted(pool.map(ask, [6, 1, 2] * 3), key=str) == [1] * 3 + [2] * 3 + [None] * 3
    assert len(errors) == 3 and threading.active_count() < 50


def test_the_canary_takes_its_share_by_the_requests_id(bert):
    canary = Canary.of("2=0.1")
    server = Server(bert.path, canary=canary)
    ids = [f"request {i}" for i in range(4000)]
    taken = [canary.takes(i) for i in ids]
    assert abs(sum(taken) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5 and taken == [canary.takes(i) for i in ids]
    other = [Canary.of("1=0.1").takes(i) for i in ids]
    assert sum(a and b for a, b in zip(taken, other, strict=True)) < 100  # not the same ones for each canary
    for i in (ids[taken.index(True)], ids[taken.index(False)]):
        assert server.predict(["a"], "animals", request=i).version == (2 if canary.takes(i) else 1)
        assert server.predict(["a"], "animals", request=i, version=0).version == 0
    for bad in ("2", "2=", "x=0.1", "2=1", "2=0", "2=nan"):
        with pytest.raises(SpecError, match="wanted VERSION=SHARE"):
            Canary.of(bad)


def test_requests_and_switches_are_counted(bert):
    server = Server(bert.path)
    for version in (1, 1, 2):
        server.predict(["a", "b"], "animals", version=version)
    server.predict(["a"], "animals", edit=SINGLE)
    for how in ({"task": "x"}, {"version": 3}, {"inputs": [7]}):
        with pytest.raises(Refused):
            server.predict(**{"inputs": ["a"], "task": "animals", **how})

    def count(task, version, edit, status) -> float | None:
        labels = {"task": task, "version": version, "edit": edit, "status": status}
        labels["replica"] = server.metrics.replica
        return server.metrics.registry.get_sample_value("talos_ray_serve_requests_total", labels)

    counted = [count("animals", "1", MERGED, "200"), count("animals", "2", MERGED, "200")]
    assert [*counted, count("animals", "1", SINGLE, "200")] == [2, 1, 1] and switches(server) == 3
    assert [count("", "", "", "404"), count("", "", "", "409"), count("animals", "1", MERGED, "422")] == [1, 1, 1]
    assert f'talos_ray_serve_inputs_total{{replica="{server.metrics.replica}"}} 7.0' in server.metrics.text().decode()
