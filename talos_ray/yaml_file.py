"""A YAML file that somebody wrote, read with limits: whatever is in it ends, soon, in values or in a line that names
the place."""

from __future__ import annotations

import codecs
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from talos_ray.errors import SpecError
from talos_ray.shown import plain

MOST_BYTES = 1 << 20
DEEPEST = 40
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
OTHERWISE = re.compile(r"[-+]?0[0-7_]+\Z|.*:")  # 010 is 8 to YAML, and 1:30 is 90
MOST_ALIASES = 100
MOST_VALUES = 100_000  # with every alias written out


class _Loader(yaml.SafeLoader):
    """Plain values only; a key that stands there twice is a mistake, and so is a number or a date that is none."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable):
                if name in seen:
                    raise _Mistake(f"key {str(name)!r} stands there twice; wanted once", key.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if node.tag in NUMBERS and OTHERWISE.match(text):
            text = text[:40]
            fix = f'wanted "{text}" in quotation marks, if it is a text, and else digits alone, without a 0 before them'
            raise _Mistake(f"YAML reads {text} by eights or sixties, not by tens; {fix}", node.start_mark)
        return text

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            shown = str(node.value)
            raise _Mistake(f"{shown[:40]!r} cannot be read: {str(error)[:80]}", node.start_mark) from None


class _Mistake(yaml.YAMLError):
    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(problem)
        self.problem = problem
        self.problem_mark = mark


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        what: it is, for the messages.

    Raises:
        SpecError: no such file, not YAML, not keys and values, or beyond the limits; names file and line.
    """
    shown = f"{what} file {plain(path)!r}"
    try:
        there = path.is_file()
        other = path.exists() and not there
        size = path.stat().st_size if there else 0
        data = path.read_bytes() if there and size <= MOST_BYTES else b""
    except (OSError, ValueError) as error:
        raise SpecError(f"{shown} cannot be read: {error}; check the path") from None
    if other:
        raise SpecError(f"{shown} is a folder, a pipe or a device; wanted a file; check the path")
    if not there:
        raise SpecError(f"{shown} does not exist; wanted a YAML file; see examples/ for some")
    if size > MOST_BYTES:
        raise SpecError(f"{shown} has {size:,} bytes; wanted at most {MOST_BYTES:,}; is it data?")
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise SpecError(f"{shown} is UTF-16; wanted UTF-8; save it with that encoding")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(
            f"{shown}, line {line}: byte {data[error.start]:#04x} is not UTF-8; wanted UTF-8; save it with that "
            "encoding"
        ) from None
    try:
        _check(text)
        node = yaml.compose(text, Loader=_Loader)
        values = _values(text, node)
    except yaml.YAMLError as error:
        what_else = "" if isinstance(error, _Mistake) else " is not YAML"
        raise SpecError(f"{shown}{what_else}{_place(error)}: {_problem(error)}; mend that line") from None
    if not isinstance(values, dict):
        raise SpecError(f"{shown} holds {type(values).__name__}; wanted keys and values; see examples/ for some")
    return values


def _check(text: str) -> None:
    """Raises _Mistake if the text goes beyond the limits. Reads it as a stream, so that depth is no matter."""
    depth = 0
    aliases = 0
    open_anchors = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark
        assert isinstance(mark, yaml.Mark)  # the pure Python loader gives one to each
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            open_anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            open_anchors.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor in open_anchors:
                raise _Mistake(f"*{event.anchor} stands within what it stands for", mark)
        if depth > DEEPEST:
            raise _Mistake(f"values lie {depth} deep; wanted at most {DEEPEST}", mark)
        if aliases > MOST_ALIASES:
            raise _Mistake(f"there are more than {MOST_ALIASES} aliases", mark)


def _values(text: str, node: yaml.Node | None) -> Any:
    if node is None:
        return None
    if (size := _size(node, {})) > MOST_VALUES:
        raise _Mistake(
            f"with its aliases written out it has {size:,} values; wanted at most {MOST_VALUES:,}", node.start_mark
        )
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except RecursionError:
        raise _Mistake("values lie too deep", node.start_mark) from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values of a node, those of an alias counted wherever it stands."""
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inside = parts if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(_size(part, known) for part in inside)
    return known[id(node)]


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    return plain(f"{context}: {problem}" if context else problem).replace("\\n", " ")[:200]
