"""What was written by others, on its way to a reader: one place for every kind of page.

A file's name, a task of somebody's spec or the metadata of a mask may hold anything. It is shown as what it is, and
does nothing.
"""

from __future__ import annotations

import re
import unicodedata

# Controls (with the escape that begins a terminal's commands), and marks that turn the direction of reading.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE = re.compile("[\t\n]")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#!~])")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how a cell begins that a spreadsheet would compute


def plain(text: object) -> str:
    """For a terminal: nothing in it moves the cursor, changes a colour or begins a new line."""
    return _LINE.sub(_code, plain_lines(text))


def plain_lines(text: object) -> str:
    """As `plain`, for a text that has lines of its own."""
    return _CONTROL.sub(_code, str(text))


def _code(found: re.Match[str]) -> str:
    character: str = found[0]
    return character.encode("unicode_escape", "surrogatepass").decode()


def cell(value: object) -> object:
    """For CSV and spreadsheets: a text that would be computed gets an apostrophe in front, as spreadsheets themselves
    write it."""
    if not isinstance(value, str):
        return value
    value = plain_lines(value)
    first = unicodedata.normalize("NFKC", value.lstrip(" ")[:1])  # a full-width '＝' is one to some
    return f"'{value}" if value.startswith(FORMULA) or first in FORMULA else value


def markdown(text: object) -> str:
    """For a page in Markdown: letters, in one line, also within a table."""
    return _MARKDOWN.sub(r"\\\1", plain(text))
