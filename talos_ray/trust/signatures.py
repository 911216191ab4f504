"""Who stands behind a history: Ed25519 signatures (RFC 8032) over the hash of its newest event, each an event of its
own.

The hash of an event covers every event before it and every file that they name, so one signature says: this is the run
as I saw it. Whoever can write the folder can make events, but none that this key has signed.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from talos_ray.errors import TalosError
from talos_ray.storage import history
from talos_ray.storage.files import Store

PASSWORD = "TALOS_KEY_PASSWORD"  # environment variable with the password of a private key
DOMAIN = b"talos_ray history 1\n"  # what is signed begins with it, so that no signature made for anything else fits
MAKE = "make one with `ssh-keygen -t ed25519 -f FILE`"


def private_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """The Ed25519 key in a file as OpenSSH or PEM writes it; TALOS_KEY_PASSWORD opens one with a password.

    Raises:
        TalosError: there is none.
    """
    data = _read(path)
    load = serialization.load_ssh_private_key if b"OPENSSH" in data else serialization.load_pem_private_key
    try:
        try:
            key = load(data, password=None)
        except TypeError:  # it has a password
            key = load(data, password=os.environ.get(PASSWORD, "").encode() or None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TalosError(
            f"{str(path)!r} cannot be read as a private key: {str(error).splitlines()[0]}; wanted an Ed25519 key "
            f"({MAKE}); one with a password needs {PASSWORD}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise TalosError(f"{str(path)!r} holds a key of another kind; wanted an Ed25519 key; {MAKE}")
    return key


def public_key(given: str) -> str:
    """A public key as OpenSSH writes it, without its comment; from such a line, or from a file that holds one or a PEM.

    Raises:
        TalosError: there is none.
    """
    data = given.encode() if given.startswith("ssh-ed25519 ") else _read(given)
    load = serialization.load_pem_public_key if data.startswith(b"-----BEGIN") else serialization.load_ssh_public_key
    try:
        key = load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TalosError(
            f"{given[:80]!r} is no public key: {str(error).splitlines()[0]}; wanted a line like 'ssh-ed25519 AAAA…', "
            "or a file that holds one"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise TalosError(f"{given[:80]!r} is a key of another kind; wanted an Ed25519 key; {MAKE}")
    return _line(key)


def sign(store: Store, key: Ed25519PrivateKey) -> dict[str, Any]:
    """Add an event that signs all events before it. Returns it.

    Raises:
        TalosError: there is nothing to sign, or the history is not whole.
    """

    def signed(before: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, Any]]:
        if not before:
            raise TalosError(f"run {store.uri!r} has no event; wanted one to sign; finish the run first")
        signature = base64.b64encode(key.sign(_message(history.digest_of(before)))).decode()
        return {}, {"signature": signature, "key": _line(key.public_key())}

    return history.append(store, "sign", signed)


def is_signed(event: Mapping[str, Any]) -> bool:
    """Whether a `sign` event holds the signature of the key that it names, over all events before it."""
    try:
        key = serialization.load_ssh_public_key(event["key"].encode())
        if not isinstance(key, Ed25519PublicKey):
            return False
        key.verify(base64.b64decode(event["signature"], validate=True), _message(event["previous"]))
    except (KeyError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm, InvalidSignature):
        # Whoever can write the folder can write any event; one that is no signature proves nothing, and no more.
        return False
    return True


def problems(events: list[dict[str, Any]], wanted: str | None = None) -> list[str]:
    """What is wrong with the signatures of a history.

    Args:
        wanted: public key, as `public_key` gives it, that has to have signed all of it.
    """
    valid = []
    mistakes = []
    for event in events:
        if event["operation"] != "sign":
            continue
        if is_signed(event):
            valid.append(event)
        else:
            mistakes.append(
                f"history/{event['number']:08d}.json holds no valid signature of the key that it names; it was not "
                "made by `talos sign`; restore the history from a copy"
            )
    if wanted is None:
        return mistakes
    by_key = [event["number"] for event in valid if event["key"] == wanted]
    if not by_key:
        others = sorted({event["key"] for event in valid})
        who = f"it is signed by {', '.join(others)}" if others else "nobody has signed it"
        return [*mistakes, f"no event is signed by {wanted}; {who}; ask the key's owner for `talos sign`"]
    # A signature holds for all events before it, so the newest one counts; other signatures may follow it.
    newest = by_key[-1]
    later = [event for event in events if event["number"] > newest and event["operation"] != "sign"]
    if later:
        first = later[0]
        last = later[-1]
        mistakes.append(
            f"{wanted} has signed the events up to {newest - 1}; events {first['number']} to {last['number']} "
            f"({first['operation']} …) came later and are not signed; look at `talos log`, and ask for `talos sign`"
        )
    return mistakes


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TalosError(
            f"key {str(path)[:80]!r} cannot be read: {reason}; wanted a file with an Ed25519 key; {MAKE}"
        ) from None


def _line(key: Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _message(digest: str) -> bytes:
    return DOMAIN + digest.encode()
