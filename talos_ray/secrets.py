"""No key is recorded or printed: a URI that holds one is refused, and what a command line holds is blotted out."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from talos_ray.errors import SpecError

BLOT = "***"
KEYWORDS = "access[_-]?key|secret|token|passw(?:or)?d|api[_-]?key|credential|(?<![a-z])sig(?:nature)?(?![a-z])"
# Every part has a length, so that no text makes them slow.
_IN_URI = re.compile(r"(?P<start>[A-Za-z][\w+.-]{0,30}://)[^/\s@'\"]*@")
_NAMED = re.compile(  # NAME=value, as in a URI or in front of a command, and --name value
    rf"(?P<name>--[\w-]{{0,40}}(?:{KEYWORDS})[\w-]{{0,40}}[\s=]+"
    rf"|[\w.-]{{0,40}}(?:{KEYWORDS})[\w.-]{{0,40}}[=:]\s*)"
    r"[^\s&;,'\"]+",
    re.IGNORECASE,
)
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|xox[abp]-[\w-]{10,})"
)
HOW = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile or role of the machine",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or use the machine's service account",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS, or use the machine's service account",
    "abfs": "set AZURE_STORAGE_KEY, or use the machine's managed identity",
    "abfss": "set AZURE_STORAGE_KEY, or use the machine's managed identity",
}


def refuse_secrets(uri: str, what: str) -> None:
    """Raises SpecError, without the secret, if there is one in a URI."""
    if "://" not in uri:
        return
    try:
        parts = urlsplit(uri)
        named = [name for name, _ in parse_qsl(parts.query) if re.search(KEYWORDS, name, re.IGNORECASE)]
    except ValueError:  # no URI: whoever opens it says so
        return
    # `abfs://container@account` names a place; only what has a password beside it is a key.
    has_key = ":" in parts.netloc.rpartition("@")[0] or ("@" in parts.netloc and parts.scheme in ("s3", "gs", "gcs"))
    if has_key or named:
        how = HOW.get(parts.scheme, "give it in the environment")
        raise SpecError(
            f"{what} {blotted(uri)!r} has a key in it, which would stay in the record for ever; wanted a URI without; "
            f"{how}"
        )


def blotted(text: str) -> str:
    """A text, like a command line, without the secrets that it holds."""
    text = _IN_URI.sub(rf"\g<start>{BLOT}@", text)
    text = _NAMED.sub(rf"\g<name>{BLOT}", text)
    return _KNOWN.sub(BLOT, text)
