"""Signatures over a history: who stands behind it, and what nobody has signed."""


import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from talos_ray.errors import TalosError
from talos_ray.storage import history
from talos_ray.storage.files import Store
from talos_ray.trust import signatures


def written(key, path, form=serialization.PrivateFormat.OpenSSH, password=None) -> str:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, hidden))
    return str(path)


def line(key) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@pytest.fixture
def store(tmp_path):
    found = Store(str(tmp_path / "run"))
    for operation in ("begin", "train", "version"):
        history.append(found, operation, lambda before: ({f"{before.get('number')}.txt": b"x"}, {"head": 0, "versions": 1}))
    return found


def told(store, key: str | None = None) -> list[str]:
    return signatures.problems(history.chain(store)[0], key)


@pytest.mark.parametrize("form", [serialization.PrivateFormat.OpenSSH, serialization.PrivateFormat.PKCS8])
def test_what_is_signed_is_proven_and_what_comes_later_is_named(store, tmp_path, form, monkeypatch):
    alice, bob = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    monkeypatch.setenv(signatures.PASSWORD, "secret")
    event = signatures.sign(store, signatures.private_key(written(alice, tmp_path / "alice", form, b"secret")))
    assert event["operation"] == "sign" and event["number"] == 3 and history.verify(store) == []
    assert told(store) == told(store, line(alice)) == []
    (nobody,) = told(store, line(bob))
    assert "no event is signed by" in nobody and line(alice) in nobody
    history.append(store, "rollback", lambda before: ({}, {"head": 0}))
    (later,) = told(store, line(alice))
    assert "events up to 2" in later and "events 4 to 4 (rollback" in later
    signatures.sign(store, bob)  # covers all of it; alice's still ends where it did
    assert told(store, line(bob)) == [] and len(told(store, line(alice))) == 1


def test_a_signature_of_somebody_else_or_of_another_history_is_none(store, tmp_path):
    alice, mallory = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    good = signatures.sign(store, alice)
    for change in (
        {"key": line(mallory)}, {"signature": good["signature"][::-1]}, {"signature": "no base64"}, {"signature": None}, {"key": 7},
        {"previous": "0" * 64},
    ):  # fmt: skip
        assert signatures.is_signed(good) and not signatures.is_signed({**good, **change})
    # Made anew from its first event on, with every hash right and the signature copied.
    other = Store(str(tmp_path / "other"))
    history.append(other, "begin", lambda before: ({}, {"head": 0, "versions": 1}))
    history.append(other, "sign", lambda before: ({}, {k: good[k] for k in ("key", "signature")}))
    assert history.verify(other) == []
    problems = told(other, line(alice))
    assert len(problems) == 2 and "no valid signature" in problems[0] and "nobody has signed it" in problems[1]


def test_what_is_no_key_is_told_in_a_line(tmp_path):
    rsa = generate_private_key(public_exponent=65537, key_size=2048)
    locked = written(Ed25519PrivateKey.generate(), tmp_path / "locked", password=b"x")
    (tmp_path / "text").write_text("hello")
    for path, wanted in (
        (written(rsa, tmp_path / "rsa"), "another kind"), (locked, signatures.PASSWORD), (tmp_path / "text", "cannot be read as"),
        (tmp_path / "absent", "cannot be read: No such file"), (tmp_path, "directory"),
    ):  # fmt: skip
        with pytest.raises(TalosError, match=wanted) as error:
            signatures.private_key(str(path))
        assert "\n" not in str(error.value)
    for given in ("ssh-ed25519 AAAA", str(tmp_path / "text"), str(tmp_path / "absent"), "\0", line(rsa)):
        with pytest.raises(TalosError):
            signatures.public_key(given)


def test_the_command_line_signs_and_checks(store, tmp_path):
    """An ssh key as people have it, and a public key with a comment."""
    key = Ed25519PrivateKey.generate()
    path = written(key, tmp_path / "id")
    (tmp_path / "id.pub").write_text(line(key) + " me@home\n")
    signatures.sign(store, signatures.private_key(path))
    assert signatures.public_key(str(tmp_path / "id.pub")) == signatures.public_key(line(key)) == line(key)
    assert told(store, signatures.public_key(str(tmp_path / "id.pub"))) == []


def test_nothing_is_signed_where_there_is_nothing(tmp_path):
    with pytest.raises(TalosError, match="has no event"):
        signatures.sign(Store(str(tmp_path / "empty")), Ed25519PrivateKey.generate())
