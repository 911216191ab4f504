"""The Hugging Face Hub, through its own library: where a repository is made, filled and read, and what its errors mean.

Tokens are the library's business (`hf auth login`, or HF_TOKEN), and so is the server (HF_ENDPOINT): neither is an
argument here, and no token is part of what is told or kept. Whatever is read is read at a commit, which never changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talos_ray.config import ON_HUB, OTHER_WEIGHTS
from talos_ray.errors import SpecError, TalosError
from talos_ray.secrets import BLOT, blotted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT = re.compile("[0-9a-f]{40}")
LOGIN = "`hf auth login`, or set HF_TOKEN"
ATTRIBUTES = ".gitattributes"  # the Hub's own, in every repository
# Never downloaded: pickles, which may hold code, and weights of libraries that are not read here.
NOT_READ = (*OTHER_WEIGHTS, ATTRIBUTES)


@dataclass(frozen=True)
class Source:
    """A repository of models, and where in its history: a branch, tag or commit; its main branch, where none is named.
    As text: `OWNER/NAME@REVISION`."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which can be no other tomorrow."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None


def is_hub(checkpoint: str | None) -> bool:
    """Whether a checkpoint is named as one of the Hub."""
    return checkpoint is not None and checkpoint.startswith(ON_HUB)


def source(name: str) -> Source:
    """What `OWNER/NAME` or `OWNER/NAME@REVISION` names, with `hub:` in front or without.

    Raises:
        SpecError: it is no such name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not marked so

    repo, at, revision = name.removeprefix(ON_HUB).partition("@")
    try:
        validate_repo_id(repo)
        # The library's own rule takes a name without an owner, too, as the Hub's oldest models have it.
        wrong = repo.count("/") != 1 or (at and not re.fullmatch(r"[\w./-]+", revision))
    except HFValidationError:
        wrong = True
    if wrong:
        raise SpecError(
            f"{blotted(name)[:200]!r} is no repository of the Hub; wanted OWNER/NAME, or OWNER/NAME@REVISION with a "
            "branch, tag or commit; correct it"
        )
    return Source(repo, revision or None)


def pinned(asked: Source) -> Source:
    """The same at the commit that its revision is now. A commit is taken as it is, without asking the Hub: what was
    downloaded once is there without a connection.

    Raises:
        TalosError: as `looked_up`.
    """
    return asked if asked.pinned else looked_up(asked)


def looked_up(asked: Source) -> Source:
    """The same at the commit that the Hub says it is.

    Raises:
        TalosError: no such repository or revision, or the Hub cannot be reached; one line with the fix.
    """
    with _explained(f"hub:{asked}", asked.revision):
        return Source(asked.repo, _api().repo_info(asked.repo, revision=asked.revision).sha)


def download(at: Source, to: Path | None = None) -> Path:
    """The files of a repository at a commit, in a folder: the library's cache, or `to`. Pickles are left out.

    Raises:
        TalosError: as `looked_up`.
    """
    with _explained(f"hub:{at}", at.revision):
        folder = _api().snapshot_download(at.repo, revision=at.revision, local_dir=to, ignore_patterns=list(NOT_READ))
    return Path(folder)


def check_token(repo: str) -> None:
    """Without asking the Hub. Raises TalosError: there is no token to push with."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise TalosError(
            f"push to {repo!r} needs a token of the Hub, and none is set; wanted one that may write; {LOGIN}"
        )


def open_repository(repo: str, *, public: bool) -> bool:
    """Have a repository to push to, made if need be. Returns whether it is private.

    Raises:
        TalosError: no token, or one that may not write here; the repository is public and nobody said that it may be.
    """
    what = f"push to {repo!r}"
    check_token(repo)
    # Asked after it is made: one that was there already may be public, whatever was wanted here.
    with _explained(what):
        _api().create_repo(repo, private=not public, exist_ok=True)
        private = bool(_api().repo_info(repo).private)
    if not private and not public:
        raise TalosError(
            f"{what}: the repository is there already and public; wanted a private one; choose another name, make it "
            "private on the Hub, or add --public (public=True) if everybody may read it"
        )
    return private


def upload(folder: Path, repo: str, message: str) -> str:
    """Make a folder's files all that a repository holds, in a single commit. Returns the commit.

    Raises:
        TalosError: the Hub refuses it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with _explained(f"push to {repo!r}"):
        # What an earlier push left would be taken for a part of this one, so it goes in the same commit, which follows
        # on what was listed and on nothing else: two pushes at once would otherwise leave a mixture of both.
        at = _api().repo_info(repo).sha
        before = _api().list_repo_files(repo, revision=at)
        removed = [name for name in before if name not in files and name != ATTRIBUTES]
        changes: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in removed]
        changes += [CommitOperationAdd(name, path) for name, path in files.items()]
        return _api().create_commit(repo, changes, commit_message=message, parent_commit=at).oid


def licence_of(repo: str) -> str | None:
    """What the Hub says of a model's licence; None where it does not, or cannot be asked."""
    try:
        with _explained(repo):
            card = _api().model_info(repo).card_data
    except TalosError:
        return None
    licence = card.get("license") if card else None
    return licence if isinstance(licence, str) else None


def address(repo: str) -> str:
    """Where people look at a repository."""
    return f"{blotted(_api().endpoint)}/{repo}"


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="talos_ray")


@contextmanager
def _explained(what: str, revision: str | None = None) -> Iterator[None]:
    """Turns the library's errors into one line: what was wanted, what the Hub says, and what mends it."""
    from huggingface_hub import errors

    # From the special to the general: a repository that is not there is an HTTP error, too.
    try:
        yield
    except errors.GatedRepoError:
        raise TalosError(
            f"{what}: its owner lets in only whom they know; wanted a token of somebody who was let in; ask for access "
            f"on its page, then {LOGIN}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise TalosError(
            f"{what}: the Hub has no such repository, or it is private and {_who()} may not see it; check OWNER/NAME, "
            f"or {LOGIN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise TalosError(
            f"{what}: the repository has no revision {revision!r}; wanted a branch, a tag or a commit; look at its "
            "history on the Hub, or leave @REVISION out"
        ) from None
    except errors.HfHubHTTPError as error:
        raise TalosError(f"{what}: {_refusal(error.response.status_code, _first(error))}") from None
    except (
        errors.HTTPError,  # type: ignore[attr-defined]  # of whichever library the Hub's own speaks HTTP with
        errors.LocalEntryNotFoundError,
        errors.FileMetadataError,
        ConnectionError,
    ) as error:
        # No connection, HF_HUB_OFFLINE, or something at HF_ENDPOINT that is no Hub. A full disk is none of these.
        why = _first(error.__cause__ or error)
        raise TalosError(
            f"{what}: the Hub at {blotted(_api().endpoint)} cannot be reached ({why}); check the connection, "
            "HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from None
    except RuntimeError as error:  # large files go in threads of their own, whose errors the library wraps
        if not isinstance(cause := error.__cause__, errors.HfHubHTTPError | errors.HTTPError):  # type: ignore[attr-defined]
            raise
        raise TalosError(f"{what}: {_first(error)} ({_first(cause)}); nothing was committed; try again") from None
    except ValueError as error:  # a card, or an answer, that the library does not take
        raise TalosError(f"{what}: the Hub does not take it: {_first(error)}; mend what it names") from None


def _refusal(status: int, said: str) -> str:
    if status == 401:
        return f"the Hub does not take {_who()} (401); wanted a token that is valid; {LOGIN}"
    if status == 403:
        return (
            f"{_who()} has no permission for it (403: {said}); wanted a token that may write there; make one under "
            "Settings, Access Tokens, or name a repository of your own"
        )
    if status == 412:
        return f"somebody else has written there meanwhile (412: {said}); wanted nobody to; push again"
    return f"the Hub answered {status}: {said}; try again, or look at its status page"


def _who() -> str:
    from huggingface_hub import get_token

    return "nobody (no token is set)" if get_token() is None else "the token that is set"


def _first(error: BaseException) -> str:
    """What an error says, as one line without any token."""
    from huggingface_hub import get_token

    words = str(getattr(error, "server_message", None) or error)
    if token := get_token():  # a server may send back the header that it was sent
        words = words.replace(token, BLOT)
    return blotted(" ".join(words.split()))[:300] or type(error).__name__
