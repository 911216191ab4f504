"""A version with all that proves it, as a folder that goes to the Hugging Face Hub and is checked when it comes back.

Beside what an export has there are the version's own file and its report, as the run recorded them, the run's record
in one file, and `talos.json`, which names every file with its hash. `docs/formats.md` has the form.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from talos_ray.errors import CorruptError, SpecError, TalosError
from talos_ray.integrations import hub
from talos_ray.models import Family, base_tensors, hub_name, load_model
from talos_ray.storage import history
from talos_ray.storage.files import as_json
from talos_ray.storage.run_folder import RunFolder, version_name
from talos_ray.storage.version import Version
from talos_ray.trust import versions
from talos_ray.trust.export import check_model, export, exported_weights
from talos_ray.user_files import check_new_folder

MANIFEST = "talos.json"
RECORD = "record.json"
FORMAT = 1  # of the manifest
BESIDE = (
    f"`versions/` and `report/`: the version and its report, as the run recorded them; `{RECORD}`: all events of the "
    f"run, each with the hash of the one before; `{MANIFEST}`: the SHA-256 of every file here. "
    "`talos pull OWNER/NAME FOLDER` takes all of it and checks it."
)
TAKE_AGAIN = "take it again, or ask whoever pushed it"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """Where a version lies on the Hub.

    Args:
        commit: that holds exactly these files. private: whether only those who were let in may read it.
        model: fingerprint of the version's model.
    """

    repo: str
    commit: str
    address: str
    private: bool
    version: int
    model: str
    files: list[str]


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What came from the Hub, every file of it as it was pushed.

    Args:
        base, model: fingerprints of the base, and of what the files make of it.
        form: "delta", the changed weights alone, or "whole".
        record: hash of the newest event of the run when it was pushed.
    """

    repo: str
    commit: str
    folder: str
    form: str
    version: int
    base: str
    model: str
    record: str


# ------------------------------------------------------------------------------------------------ there


def chosen(folder: RunFolder, head: int, number: int | None) -> Version:
    """The version to push: the one that is named, or head.

    Raises:
        TalosError: no such version; or none is named, and the newest is kept aside.
    """
    if number is not None:
        return folder.load_version(number)
    newest = folder.load_version(folder.versions()[-1])
    if versions.is_held(folder, newest):
        standing = versions.standing(folder, versions.number_of(newest))
        raise TalosError(
            f"{standing}; wanted the number of the version to push; --version "
            f"{newest.number} pushes the one kept aside, and its card says so; --version {head} pushes head"
        )
    return folder.load_version(head)


def push(
    folder: RunFolder,
    version: Version,
    edited: Family,
    base: Mapping[str, torch.Tensor],
    repo: str,
    *,
    whole: bool,
    private: bool,
) -> Pushed:
    """Send a version to a repository of the Hub that is open for it, and put on record that it went there.

    Args:
        edited: the model at that version. base: its tensors before any edit.

    Raises:
        TalosError: the Hub refuses it, or cannot be reached; the run is as before.
        StorageError: it was pushed, and the run's folder cannot be written to.
    """
    number = versions.number_of(version)
    with TemporaryDirectory() as scratch:
        files = assemble(folder, version, edited, base, Path(scratch) / "files", whole=whole)
        commit = hub.upload(Path(scratch) / "files", repo, f"Version {number}, model {version.model[:12]}")
    # After it went there: a push that failed is none, and may be tried again.
    details = {"repo": repo, "commit": commit, "private": private, "form": "whole" if whole else "delta"}
    history.append(folder.store, "push", lambda before: ({}, {"version": number, **details}))
    return Pushed(
        repo=repo,
        commit=commit,
        address=hub.address(repo),
        private=private,
        version=number,
        model=version.model,
        files=files,
    )


def assemble(
    folder: RunFolder, version: Version, edited: Family, base: Mapping[str, torch.Tensor], to: Path, *, whole: bool
) -> list[str]:
    """Write what is pushed into a new folder. Returns the names of its files."""
    model = folder.info()["spec"]["model"]
    number = versions.number_of(version)
    on_hub = hub_name(model)
    licence = hub.licence_of(on_hub) if on_hub else None
    export(folder, version, edited, base, to, "whole" if whole else "delta", beside=BESIDE, licence=licence)
    recorded = history.recorded(folder.store)
    for name in (version_name(number), f"report/{number:04d}.html"):
        if name in recorded:  # releases before reports were recorded have none
            _write(to / name, folder.read(name))
    # The whole history goes along: each event holds the hash of the one before, so none can be left out unseen.
    events, newest = history.chain(folder.store)
    _write(to / RECORD, as_json({"events": events}))
    manifest = {
        "format": FORMAT,
        "form": "whole" if whole else "delta",
        "version": number,
        "kind": model.partition(":")[0],
        "base_name": model if on_hub or model == "demo" else None,
        "base": version.base,
        "model": version.model,
        "record": newest,
        "files": {name: _sha256(path) for name, path in _files(to).items()},
    }
    _write(to / MANIFEST, as_json({**manifest, "digest": _digest(manifest)}))
    return sorted(_files(to))


# ------------------------------------------------------------------------------------------------ and back


def pull(name: str, to: Path, *, deep: bool) -> Pulled:
    """Take a version that was pushed from the Hub into a new folder, which is there only if all of it is as pushed.

    Args:
        name: OWNER/NAME, or OWNER/NAME@REVISION.
        deep: also make the model and compare its fingerprint; loads the base, where only changes were pushed.

    Raises:
        SpecError: the name, or a folder that holds something. TalosError: the Hub has it not, or cannot be reached.
        CorruptError: names the first file that is not as it was pushed.
    """
    asked = hub.source(name)
    check_new_folder(to)
    # A branch may move while its files come, a commit may not.
    at = hub.looked_up(asked)
    # Beside the folder that it becomes, so that the last step is a rename and no copy.
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to.parent, prefix=".talos-pull-") as scratch:
        files = hub.download(at, Path(scratch) / "files")
        shutil.rmtree(files / ".cache", ignore_errors=True)  # the Hub's own notes on the download
        manifest = checked(files, f"hub:{at}")
        if deep:
            _check_deep(files, manifest, f"hub:{at}")
        os.replace(files, to)
    assert at.revision is not None  # the commit that was looked up
    return Pulled(
        repo=at.repo,
        commit=at.revision,
        folder=str(to),
        form=manifest["form"],
        version=manifest["version"],
        base=manifest["base"],
        model=manifest["model"],
        record=manifest["record"],
    )


def is_published(folder: Path) -> bool:
    """Whether a folder says that talos_ray pushed it."""
    return (folder / MANIFEST).is_file()


def checked(folder: Path, what: str) -> dict[str, Any]:
    """The manifest of what was pushed, after every file was held against it, and version and report against the
    record. Runs nobody's code.

    Args:
        what: the folder is called in an error.

    Raises:
        SpecError: nothing that talos_ray pushed. CorruptError: names the first file that is not as it was pushed.
    """
    if not is_published(folder):
        raise SpecError(
            f"{what} has no {MANIFEST}: talos_ray did not push it; wanted what `talos push` wrote; other models come "
            "in with `talos import RUN TASK hub:OWNER/NAME`, or as a spec's model"
        )
    manifest = _manifest(folder / MANIFEST, what)
    # In the order of their names, so that everybody is told of the same file first.
    files = _files(folder)
    for name in sorted({*manifest["files"], *files} - {MANIFEST}):
        if name not in files:
            raise CorruptError(f"{what}: {name} is missing; {TAKE_AGAIN}")
        if name not in manifest["files"]:
            raise CorruptError(f"{what}: {name} is there and was not pushed with the others; {TAKE_AGAIN}")
        if _sha256(files[name]) != manifest["files"][name]:
            raise CorruptError(f"{what}: {name} was changed since it was pushed; {TAKE_AGAIN}")
    _check_record(folder, manifest, files, what)
    return manifest


def _manifest(path: Path, what: str) -> dict[str, Any]:
    """What was written down of a push, as it was written."""
    data = path.read_bytes()
    manifest: dict[str, Any] = {}
    try:
        manifest = json.loads(data)
        rest = {key: value for key, value in manifest.items() if key != "digest"}
        as_written = manifest["digest"] == _digest(rest) and as_json(manifest) == data
        whole = as_written and isinstance(manifest["files"], dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CorruptError(f"{what}: {MANIFEST} was changed since it was pushed; {TAKE_AGAIN}")
    if manifest["format"] != FORMAT:
        raise CorruptError(
            f"{what}: {MANIFEST} has format {manifest['format']!r}; this talos_ray reads {FORMAT}; use what wrote it"
        )
    return manifest


def _check_record(folder: Path, manifest: Mapping[str, Any], files: Mapping[str, Path], what: str) -> None:
    """The version and its report are those of the run's events, and the model is the version's."""
    try:
        events = json.loads((folder / RECORD).read_bytes())["events"]
        name = version_name(manifest["version"])
        version = Version.read(f"{what}: {name}", json.loads((folder / name).read_bytes()), manifest["version"])
        newest = history.follow(events, f"{what}: {RECORD}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        number = manifest.get("version")
        raise CorruptError(f"{what} holds no record of version {number}: {error}; {TAKE_AGAIN}") from None
    recorded: dict[str, str] = {}
    for event in events:
        recorded |= event["files"]
    for name in files:
        if name.startswith(("versions/", "report/")) and manifest["files"][name] != recorded.get(name):
            raise CorruptError(f"{what}: {name} is not the file that its record names; {TAKE_AGAIN}")
    for key, wanted in {"record": newest, "base": version.base, "model": version.model}.items():
        if manifest[key] != wanted:
            raise CorruptError(
                f"{what}: {MANIFEST} says {key} {str(manifest[key])[:12]}, the record {wanted[:12]}; {TAKE_AGAIN}"
            )


def _check_deep(folder: Path, manifest: Mapping[str, Any], what: str) -> None:
    """Make the model and compare its fingerprint."""
    name = manifest["base_name"]
    if manifest["form"] == "whole":
        check_model(exported_weights(folder, manifest["kind"], None, what), manifest["model"], what)
    elif name is None:
        raise SpecError(
            f"{what} holds changes of a base that nobody else can load by its name; wanted one of the Hub; leave "
            f"--deep out, and import it into a run of that base ({manifest['base'][:12]})"
        )
    else:
        exported_weights(folder, name, base_tensors(load_model(name)), what)


def _files(folder: Path) -> dict[str, Path]:
    """Name -> path of every file in a folder and those below. The Hub's own does not count: it is in its library's
    cache where somebody else has downloaded the repository, too."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(hub.ATTRIBUTES, None)
    return files


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    """Of what a manifest says, in any order of its keys."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
