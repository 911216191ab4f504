"""The same over HTTP, without Ray: paths, headers, statuses, and what the page of the interface says."""

import base64
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from recorded import made, test_inputs
from served import add_version, alike, as_base64, held, single

from talos_ray.serving.http import api
from talos_ray.serving.record import Canary, Refused
from talos_ray.serving.server import Server


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    run = made(tmp_path_factory.mktemp("demo"), "demo")
    add_version(run, {"sides": 0.5})
    add_version(run, {"again": 0.5}, gate=held())
    return run


@pytest.fixture(scope="module")
def client(demo):
    return TestClient(api(Server(demo.path, canary=Canary(version=2, share=0.5), follow=0)))


def test_versions_and_edits_are_chosen_by_path_or_header(demo, client):
    images, _ = test_inputs(demo, "sides")
    body = {"inputs": [as_base64(image) for image in images], "top_k": 2}
    for version in (0, 1, 2):
        answer = client.post("/v1/tasks/sides:predict", json=body, headers={"X-Talos-Version": str(version)})
        wanted = demo.predict(images, "sides", version, top_k=2)
        assert answer.status_code == 200 and answer.json() == {**wanted.as_dict(), "edit": "merged"}
        assert answer.headers["x-talos-version"] == str(version)
    alone = single(demo, "sides", images, 2)
    named = {"X-Talos-Version": "1"}
    by_path = client.post("/v1/edits/sides:predict", json=body, headers=named)
    by_header = client.post("/v1/tasks/sides:predict", json=body, headers={**named, "X-Talos-Edit": "single"})
    assert by_path.json() == by_header.json() and by_path.json()["edit"] == "single"
    assert by_path.json()["predictions"] == alone.rows()
    plain = client.post("/v1/tasks/sides:predict", json={"inputs": body["inputs"][:1]}, headers=named).json()
    assert plain["predictions"] == demo.predict(images[:1], "sides", 1).rows()  # no `top`, where one is asked for


def test_a_request_that_names_no_version_is_drawn_by_its_id_which_is_told(demo, client):
    body = {"inputs": [as_base64(test_inputs(demo, "held")[0][0])]}

    def version(headers: dict) -> tuple[int, str]:
        answer = client.post("/v1/tasks/held:predict", json=body, headers=headers)
        assert answer.json()["version"] == int(answer.headers["x-talos-version"])
        return answer.json()["version"], headers.get("X-Request-Id") or answer.headers["x-request-id"]

    seen = [version({}) for _ in range(20)]
    assert {number for number, _ in seen} == {1, 2}  # of twenty tosses all alike: two in a million
    assert [version({"X-Request-Id": name}) for _, name in seen[:6]] == seen[:6]
    assert version({"X-Request-Id": seen[0][1], "X-Talos-Version": "0"})[0] == 0


@pytest.mark.parametrize(
    "path, headers, body, status, said",
    (
        ("/v1/tasks/side:predict", {}, {}, 404, "did you mean 'sides'"),
        ("/v1/tasks/sides:predict", {"X-Talos-Version": "9"}, {}, 404, "version 9 does not exist"),
        ("/v1/edits/held:predict", {}, {}, 404, "holds no edit of task 'held'"),
        ("/v1/tasks/sides:predict", {"X-Talos-Version": "3"}, {}, 409, "version 3 is kept aside by its gate: share"),
        ("/v1/tasks/sides:predict", {"X-Talos-Version": "new"}, {}, 422, "header.X-Talos-Version: Input should be"),
        ("/v1/tasks/sides:predict", {"X-Talos-Edit": "both"}, {}, 422, "header.X-Talos-Edit: Input should be 'merged'"),
        ("/v1/tasks/sides:predict", {}, {"inputs": "x"}, 422, "body.inputs: Input should be a valid list"),
        ("/v1/tasks/sides:predict", {}, {"topk": 2}, 422, "body.topk: Extra inputs are not permitted"),
        ("/v1/tasks/sides:predict", {}, {"top_k": 3}, 422, "top_k is 3; wanted 1 to 2"),
        ("/v1/tasks/sides:predict", {}, {"inputs": ["/etc/hostname"]}, 422, "input 0 is no base64"),
    ),
)
def test_what_is_refused_has_a_status_and_a_reason(client, path, headers, body, status, said):
    headers = {"X-Talos-Version": "1", **headers}
    answer = client.post(path, headers=headers, json={"inputs": ["aaaa"], **body})
    assert answer.status_code == status and list(answer.json()) == ["error"] and said in answer.json()["error"]


@pytest.mark.parametrize(
    "method, path, status, said",
    (
        ("POST", "/v1/tasks/sides", 404, "'POST /v1/tasks/sides': Not Found; wanted POST /v1/tasks/TASK:predict"),
        ("GET", "/v1/tasks/sides:predict", 405, "Method Not Allowed; wanted POST"),
        ("POST", "/v1/tasks/sides:predict", 400, "error parsing the body"),
    ),
)
def test_what_no_function_answers_is_refused_in_the_same_form(client, method, path, status, said):
    deep = "[" * 100_000  # more than a parser of JSON goes down
    answer = client.request(method, path, content=deep, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and list(answer.json()) == ["error"] and said in answer.json()["error"]


def test_an_error_that_nobody_thought_of_has_the_same_form(demo, monkeypatch):
    server = Server(demo.path)
    monkeypatch.setattr(Server, "_target", lambda *_: Path("/nowhere/at all").read_bytes())
    answer = TestClient(api(server), raise_server_exceptions=False).post("/v1/tasks/x:predict", json={"inputs": []})
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("the server failed (FileNotFoundError: [Errno 2] No such file")


def test_health_numbers_and_the_interface_are_told(demo, client):
    answer = client.post(
        "/v1/tasks/again:predict",
        json={"inputs": [as_base64(test_inputs(demo, "again")[0][0])]},
        headers={"X-Talos-Version": "2"},
    )
    health = client.get("/healthz").json()
    assert answer.status_code == 200 and health["seen"] >= 0
    assert {k: health[k] for k in ("status", "head", "answers", "holds")} == {
        "status": "ok", "head": 1, "answers": 1, "holds": "version 2",
    }  # fmt: skip
    told = client.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    (line,) = [x for x in told.text.splitlines() if x.startswith("talos_ray_serve_requests_total") and "again" in x]
    assert 'edit="merged"' in line and 'status="200",task="again",version="2"} 1.0' in line
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/tasks/{task}:predict", "/v1/edits/{task}:predict", "/healthz", "/metrics"}
    asked = paths["/v1/tasks/{task}:predict"]["post"]
    assert set(asked["responses"]) == {"200", "404", "409", "422", "500"}
    assert [p["name"] for p in asked["parameters"]] == ["task", "X-Talos-Version", "X-Talos-Edit", "X-Request-Id"]
    demo.folder.set_head(0, "rollback")
    assert client.get("/healthz").json()["head"] == 0
    demo.folder.set_head(1, "rollback")


def test_images_come_in_base64_and_never_from_a_path(demo, tmp_path):
    server = Server(demo.path)
    image = test_inputs(demo, "sides")[0][0].resize((24, 16))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.save(tmp_path / "plain.png")
    files = [tmp_path / "turned.jpg", tmp_path / "plain.png"]
    sent = [base64.b64encode(f.read_bytes()).decode() for f in files]
    wanted = demo.predict(files, "sides", top_k=2)
    assert alike(server.predict(sent, "sides", top_k=2), wanted)
    assert alike(server.predict([sent[0], f"data:image/png;base64,{sent[1]}"], "sides", top_k=2), wanted)
    for bad, said in (
        (str(files[1]), "input 1 is no base64"),
        (base64.b64encode(b"no image").decode(), "input 1: it cannot be decoded"),
        (sent[1][:80], "input 1: it cannot be decoded"),
        (7, "input 1 is int; wanted an image file in base64"),
    ):
        with pytest.raises(Refused, match=said) as error:
            server.predict([sent[0], bad], "sides")
        assert error.value.status == 422
