"""As much of the Hugging Face Hub as its own library speaks with when a model is pushed, looked up and downloaded, and as
`datasets` does when it lists a data set's files, downloads them, or reads a part of one as a stream.

Repositories live in memory, each a list of commits. What was asked is kept, so that a test sees what a server sees.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from urllib.parse import parse_qsl, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet", ".tar")  # goes by LFS, as the Hub's own .gitattributes has it


@dataclass
class Repository:
    private: bool
    card: dict = field(default_factory=dict)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)  # oldest first: commit, files by name

    def commit(self, files: dict[str, bytes]) -> str:
        names = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        told = json.dumps([len(self.commits), names], sort_keys=True)
        self.commits.append((hashlib.sha1(told.encode()).hexdigest(), files))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((c for c in self.commits if c[0] == revision), None)


@dataclass
class Hub:
    """The server's state. `writers`: token -> owner who may write; `readers`: tokens that see private repositories."""

    url: str = ""
    writers: dict[str, str] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)  # method, path, headers, body

    def bodies(self, path: str) -> list[dict]:
        """What was sent to a path, as JSON."""
        return [json.loads(body) for _, asked, _, body in self.asked if asked == path]


@contextmanager
def served() -> Iterator[Hub]:
    """A server on a port of this machine, for as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def logged_in(monkeypatch, token: str, cache: Path) -> Iterator[Hub]:
    """A server at which this process, whose library has read its environment by now, is logged in as `me`."""
    from huggingface_hub import constants

    with served() as hub:
        hub.writers[token] = "me"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a store of the Hub's own; without it, LFS
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
        monkeypatch.setenv("HF_TOKEN", token)
        yield hub


@contextmanager
def data_served(monkeypatch, folder: Path, token: str | None = None) -> Iterator[Hub]:
    """A server that `datasets` takes for the Hub in this process, with caches of its own in `folder`."""
    import datasets
    from huggingface_hub import HfFileSystem, constants

    folder.mkdir(parents=True, exist_ok=True)
    with served() as hub:
        files = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + files)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "datasets"))
        # After every stream of Parquet it waits for threads of an older Arrow to end.
        monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        monkeypatch.setenv("TALOS_CACHE", str(folder / "talos"))
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        HfFileSystem.clear_instance_cache()  # which knows addresses by heart
        try:
            yield hub
        finally:
            HfFileSystem.clear_instance_cache()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Tests have an output of their own."""

    def handle_all(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append((self.command, path, headers, body))
        for method, pattern, answer in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, path)):
                return answer(self, body, **found.groupdict())
        self.fail(404, "no such address")

    do_GET = do_HEAD = do_POST = do_PUT = handle_all

    # ------------------------------------------------------------------------------ answers

    def send(self, data: bytes, kind: str = "application/json", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def tell(self, value: object, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status=status)

    def fail(self, status: int, why: str, code: str = "") -> None:
        headers = {"X_Error_Message": why, **({"X_Error_Code": code} if code else {})}
        self.send(json.dumps({"error": why}).encode(), status=status, **headers)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self, owner: str) -> bool:
        if self.token not in self.hub.writers:
            self.fail(401, "Invalid username or password.")
            return False
        if self.hub.writers[self.token] != owner:
            self.fail(403, f"You don't have the rights to create a model under the namespace {owner!r}")
            return False
        return True

    def found(self, repo: str, revision: str) -> tuple[Repository, str, dict[str, bytes]] | None:
        """A repository at a revision that the asker may see; where there is none, the answer is sent."""
        repository = self.hub.repositories.get(repo)
        known = self.token in self.hub.writers or self.token in self.hub.readers
        if repository is None or (repository.private and not known):
            self.fail(404 if known else 401, "Repository not found", "RepoNotFound")
            return None
        at = repository.at(revision)
        if at is None:
            self.fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repository, *at

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if not self.may_write(asked["organization"]):
            return
        if repo in self.hub.repositories:
            return self.tell({"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"}, 409)
        made = self.hub.repositories[repo] = Repository(private=asked.get("visibility") == "private")
        made.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.tell({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        if (at := self.found(repo, revision or "main")) is None:
            return
        repository, commit, files = at
        names = [{"rfilename": name} for name in sorted(files)]
        told = {"id": repo, "modelId": repo, "sha": commit, "private": repository.private, "siblings": names}
        self.tell({**told, "cardData": repository.card, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, body: bytes, repo: str, revision: str, folder: str = "") -> None:
        if (at := self.found(repo, revision)) is None:
            return
        below = [path for path in listed(at[2]) if path["path"].startswith(folder and f"{folder}/")]
        if not below:
            return self.fail(404, "No such folder", "EntryNotFound")
        if dict(parse_qsl(urlsplit(self.path).query)).get("recursive", "false").lower() != "true":
            depth = folder.count("/") + 1 if folder else 0
            below = [path for path in below if path["path"].count("/") == depth]
        self.tell(below)

    def paths_info(self, body: bytes, repo: str, revision: str) -> None:
        if (at := self.found(repo, revision)) is None:
            return
        asked = [value for key, value in parse_qsl(body.decode()) if key == "paths"]
        if body.startswith(b"{"):
            asked = json.loads(body)["paths"]
        self.tell([path for path in listed(at[2]) if path["path"] in asked])

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self.tell({"files": modes})

    def batch(self, body: bytes, repo: str) -> None:
        to_send = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self.tell({"transfer": "basic", "objects": to_send})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.fail(400, "not the object that was announced")
        self.hub.large[oid] = body
        self.tell({})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if not self.may_write(repo.partition("/")[0]):
            return
        repository = self.hub.repositories[repo]
        newest, before = repository.at(revision)
        files = dict(before)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", newest) != newest:
                return self.fail(412, "A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        self.tell({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        if (at := self.found(repo, revision)) is None:
            return
        _, commit, files = at
        if name not in files:
            return self.fail(404, "Entry not found", "EntryNotFound")
        data = files[name]
        told = {"X_Repo_Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.send(data, "application/octet-stream", **told)
        # Who reads a stream reads a file's end first, and then what it names.
        start = int(asked[1])
        part = data[start : int(asked[2]) + 1 if asked[2] else None]
        told["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        self.send(part, "application/octet-stream", 206, **told)

    def nothing(self, body: bytes, **_: str) -> None:
        self.tell({})


def entry(name: str, data: bytes) -> dict:
    """A file of a tree, as the Hub lists it."""
    told = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return {**told, "lfs": large} if name.endswith(LARGE) else told


def listed(files: dict[str, bytes]) -> list[dict]:
    """All files and folders of a tree, as the Hub lists them."""
    parents = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    folders = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(parents - {"."})]
    return folders + [entry(name, data) for name, data in sorted(files.items())]


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
# A data set's name begins with its kind here, as in addresses of its files.
DATASET = r"/api/(?P<repo>datasets/[\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.nothing),
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET", f"/api/models/{REPO}/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)", Handler.tree),
    ("POST", f"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.put),
    ("GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.resolve),
    ("GET", DATASET, Handler.info),
    ("GET", f"{DATASET}/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", f"{DATASET}/tree/(?P<revision>[^/]+)", Handler.tree),
    ("GET", f"{DATASET}/tree/(?P<revision>[^/]+)/(?P<folder>.+)", Handler.tree),
    ("POST", f"{DATASET}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    ("GET", r"/(?P<repo>datasets/[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.resolve),
)
