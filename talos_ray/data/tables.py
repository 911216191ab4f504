"""Tables as they were written: CSV, TSV, JSON and JSON Lines, read strictly. A row that does not fit is refused, never
moved or dropped.

Readers that guess (what is missing, what is a number, where a quotation mark ends) are convenient until they guess
wrong, and then nobody is told. Here a cell is a text, an empty cell is missing, and every line belongs to a row.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from talos_ray.config import HALF
from talos_ray.errors import SpecError

KINDS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
ROWS = 10_000  # that become Arrow columns together: Python's lists of them would take ten times the memory
WHOLE = re.compile(r"-?(0|[1-9][0-9]*)\Z")  # 007 is a name
DIGITS = re.compile(r"-?[0-9]+\Z")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+\Z")
ENCODINGS = {  # by a file's first bytes; the longer ones first
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
OTHERS = {  # what files begin with that are no text, or none of rows, whatever they are called
    b"PK\x03\x04": ("a ZIP archive, as spreadsheets are", "export it as the kind that it is called"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it"),
    b"PAR1": ("Parquet", "call it .parquet"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    b"<!DOCTYPE html": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
}
UNMARKED = re.compile(rb"[^\0]\0[^\0]\0|\0[^\0]\0[^\0]", re.DOTALL)  # two characters of UTF-16
DIGITS_KEPT = 15  # characters of a number that nothing is lost of
BREAK = re.compile(r"\r\n|\r|\n")
UNNAMED = "Latin-1 or Windows-1252, as old editors write"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}  # whatever a table's name ends with
PREAMBLE = re.compile(r"sep=.?\Z")  # a line that Excel reads, and nobody else
Block = tuple[int, int, list[list[str]]]  # line in which it begins, lines that it takes, rows


@dataclass(frozen=True)
class Reading:
    """How a table is read, where a spec says more than its path."""

    label: str | None = None  # the column in which numbers are numbers, as far as all of them are
    columns: Collection[str] | None = None  # those that are needed; of the others only their names are kept
    quotes: str | None = None  # 'csv', 'none', or what the file's kind says
    missing_words: Collection[str] = ()  # cells that count as missing, besides empty ones
    delimiter: str | None = None  # between cells; what the file's kind says, if not given


def read_table(path: Path, how: Reading = Reading()) -> pa.Table:
    """The rows of a CSV, TSV, JSON or JSON Lines file.

    Raises:
        SpecError: anything in it that could be read in two ways, with its line.
    """
    check_is_table(path)
    return _read_json(path, how) if KINDS[path.suffix.lower()] == "json" else _read_csv(path, how)


def check_is_table(path: Path) -> None:
    """Raises SpecError where a table is by its first bytes something else than its name says."""
    with path.open("rb") as file:
        start = file.read(max(map(len, OTHERS))).removeprefix(codecs.BOM_UTF8)
    for mark, (what, fix) in OTHERS.items():
        if start.startswith(mark) and not (mark == b"PAR1" and path.suffix.lower() == ".parquet"):
            raise SpecError(f"{str(path)!r} is {what}; wanted a table as its name ends ({path.suffix}); {fix}")


def column_names(path: Path) -> list[str]:
    """The columns of a CSV, TSV, JSON or JSON Lines file, without reading more of it than its kind asks for.

    Raises:
        SpecError: as `read_table`, of what is read.
    """
    if KINDS[path.suffix.lower()] == "json":
        names: list[str] = read_table(path, Reading(columns=())).column_names
        return names
    nothing: Block = (1, 1, [[]])
    _, _, first = next(_csv_blocks(path, Reading()), nothing)
    return first[0]


def decoded(data: bytes, what: str) -> str:
    """UTF-8, with a byte order mark or without.

    Raises:
        SpecError: another encoding; `what` is said of the file.
    """
    for mark, name in ENCODINGS.items():
        if data.startswith(mark):
            raise SpecError(f"{what} is {name}; wanted UTF-8; save it as UTF-8")
    if UNMARKED.match(data):
        raise SpecError(f"{what} is UTF-16 without a mark; wanted UTF-8; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(_not_utf8(what, data[error.start], data.count(b"\n", 0, error.start) + 1)) from None


def _not_utf8(what: str, byte: int, line: int) -> str:
    return f"{what} is not UTF-8: byte 0x{byte:02x} in line {line} (perhaps {UNNAMED}); save it as UTF-8"


# ----------------------------------------------------------------------------------------- CSV and TSV


def _read_csv(path: Path, how: Reading) -> pa.Table:
    blocks = _csv_blocks(path, how)
    nothing: Block = (1, 1, [[]])
    _, lines, first = next(blocks, nothing)
    names = first[0]
    rest = first[1:]
    if not names:
        found = "a blank line where the names of its columns should stand" if any(rest) else "0 examples"
        raise SpecError(f"{str(path)!r} holds {found}; wanted a line of column names, and rows")
    _check_names(path, names, how)
    if twice := [n for n in names if names.count(n) > 1 and (how.columns is None or n in how.columns)]:
        raise SpecError(f"{str(path)!r} has two columns that are called {twice[0]!r}; wanted unique names; rename one")
    wanted = {n: i for i, n in enumerate(names) if how.columns is None or n in how.columns}
    parts: dict[str, list[pa.Array]] = {n: [] for n in wanted}
    marked = [f"\ufeff{names[0]}", *names[1:]]  # as they stand within files that were joined
    total = 0
    blank = 0  # lines of a table of one column, of which nobody knows yet whether anything follows
    swallowing: list[list[str]] = []
    for line, taken, block in itertools.chain([(1 + _lines_of(names), lines, rest)], blocks):
        if set(map(len, block)) - {0, len(names)}:
            raise SpecError(_uneven(path, line, block, names))
        if len(names) == 1:  # there a blank line is an empty cell, unless the file ends with it
            block = [*[[""]] * blank, *(row or [""] for row in block)]
            blank = len(block) - len(_until_last_cell(block))
            block = _until_last_cell(block)
        if len(names) > 1 and (again := next((row for row in (names, marked) if row in block), None)):
            raise SpecError(_names_again(path, line, block, again))
        rows = [row for row in block if row]  # blank lines are no rows
        if taken > len(rows) and how.label in names:
            swallowing += [row for row in rows if _lines_of(row) > 1]
        for name, i in wanted.items():
            parts[name].append(pa.array([row[i] for row in rows], pa.string()))
        total += len(rows)
    columns = {n: pa.chunked_array(part, pa.string()) for n, part in parts.items()}
    if swallowing and how.label is not None and how.quotes != "csv":  # somebody who says csv has looked
        _check_swallowed(path, names, swallowing, columns[how.label], how)
    words = pa.array(["", *how.missing_words])
    for name, column in columns.items():
        columns[name] = pc.if_else(pc.is_in(column, words), pa.scalar(None, pa.string()), column)
    if how.label in columns:
        columns[how.label] = as_numbers(columns[how.label])
    return pa.table({n: columns[n] if n in columns else pa.nulls(total) for n in dict.fromkeys(names)})


def _check_names(path: Path, names: Sequence[str], how: Reading) -> None:
    """Raises SpecError where the first line has no needed name because it is no line of names, or because something
    else stands between its cells."""
    if how.columns is None or set(names) & set(how.columns):
        return
    if PREAMBLE.match(names[0]) and not any(names[1:]):
        raise SpecError(
            f"{str(path)!r} begins with {names[0]!r}, which spreadsheets alone read; wanted a line of column names; "
            "take that line out"
        )
    if len(names) == 1 and (told := other_separator(path, names[0], how)):
        raise SpecError(told)


def other_separator(path: Path, line: str, how: Reading = Reading()) -> str | None:
    """What is told of a table whose line of names, read as its ending says, is one name that holds another
    separator."""
    own = _style(path, how)["delimiter"]
    found = max(SEPARATORS, key=line.count)
    if found == own or found not in line:
        return None
    wanted = SEPARATORS.get(own, repr(own))
    fix = f"save it with {wanted}" + (", or call it .tsv" if found == "\t" else "")
    return f"{str(path)!r} has {SEPARATORS[found]} between its columns ({line[:80]!r}); wanted {wanted}; {fix}"


def _names_again(path: Path, line: int, rows: Sequence[Sequence[str]], again: Sequence[str]) -> str:
    """What is told of a line of names among the rows, as files have that were joined as they stood."""
    line += sum(_lines_of(row) for row in rows[: rows.index(again)])
    return (
        f"{str(path)!r}, line {line}: the names of the columns stand there again ({', '.join(again[:8])}); wanted a "
        "row; take that line out"
    )


def _until_last_cell(block: list[list[str]]) -> list[list[str]]:
    """The rows without the blank ones at their end."""
    end = len(block)
    while end and not any(block[end - 1]):
        end -= 1
    return block[:end]


def _csv_blocks(path: Path, how: Reading) -> Iterator[Block]:
    """(line in which it begins, lines that it takes, rows) of some rows at a time, as they stand; a blank line is a
    row without cells."""
    with path.open("rb") as start:
        first = start.read(4)
    if first.startswith(tuple(ENCODINGS)) or UNMARKED.match(first):
        decoded(first, repr(str(path)))
    before = csv.field_size_limit(sys.maxsize)  # of the whole process, so it is put back
    line = 1
    within = path.suffix.lower() == ".tsv" and how.quotes is None
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, **_style(path, how))
            while rows := list(itertools.islice(reader, ROWS)):
                # In a TSV, quotation marks are as often a part of the text as they are not, and one that is never
                # closed would take all lines up to the next one for a single cell.
                lines = reader.line_num - line + 1
                if within and lines > len(rows):
                    raise SpecError(_ambiguous(path, line, rows))
                yield line, lines, rows
                line = reader.line_num + 1
    except csv.Error as error:
        fix = "double it, or set `quotes: none` if quotation marks belong to the texts"
        raise SpecError(
            f"{str(path)!r}, line {_line_of_error(path, how)}: a cell in quotation marks does not end where it should "
            f"({error}); {fix}"
        ) from None
    except UnicodeDecodeError:
        with path.open("rb") as data:
            for number, one in enumerate(data, 1):
                try:
                    one.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise SpecError(_not_utf8(repr(str(path)), one[error.start], number)) from None
        raise
    finally:
        csv.field_size_limit(before)


class _Style(TypedDict):
    """What Python's own reader of CSV takes."""

    delimiter: str
    strict: bool
    quoting: Literal[0, 3]  # csv.QUOTE_MINIMAL, which is its default, or csv.QUOTE_NONE


def _style(path: Path, how: Reading) -> _Style:
    """How Python's own reader is to split lines."""
    delimiter = how.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    quoting: Literal[0, 3] = csv.QUOTE_NONE if how.quotes == "none" else csv.QUOTE_MINIMAL
    return {"delimiter": delimiter, "strict": True, "quoting": quoting}


def _line_of_error(path: Path, how: Reading) -> int:
    """The line in which the row begins that cannot be read."""
    line = 1
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, **_style(path, how))
        try:
            for _ in reader:
                line = reader.line_num + 1
        except csv.Error:
            pass
    return line


def _lines_of(row: Sequence[str]) -> int:
    """Lines that a row takes in its file."""
    return 1 + sum(len(BREAK.findall(cell)) for cell in row if "\n" in cell or "\r" in cell)


def _ambiguous(path: Path, line: int, rows: Sequence[Sequence[str]]) -> str:
    for row in rows:
        if (lines := _lines_of(row)) > 1:
            return (
                f"{str(path)!r}, line {line}: a quotation mark opens a cell that ends in line {line + lines - 1}; set "
                "`quotes: none` if quotation "
                f"marks belong to the texts, or `quotes: csv` if a cell may hold several lines"
            )
        line += lines
    return f"{str(path)!r}: a cell holds several lines; set `quotes: csv` or `quotes: none`"


def _uneven(path: Path, line: int, rows: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    """What is told of the first row that is wider or narrower than the names."""
    found = 0
    for row in rows:
        found = len(row)
        if found not in (0, len(names)):
            break
        line += _lines_of(row)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    fix = "put cells that hold a comma into quotation marks, and take out commas that end a line"
    if path.suffix.lower() == ".tsv":
        fix = "take tabs out of its texts"
    return f"{str(path)!r}, line {line}: {found} cells; wanted {len(names)}, one a column ({shown}); {fix}"


def _check_swallowed(
    path: Path, names: Sequence[str], rows: list[list[str]], labels: pa.ChunkedArray, how: Reading
) -> None:
    """Raises SpecError where lines that a cell goes over look like rows themselves: a quotation mark has swallowed
    them."""
    place = names.index(how.label)
    delimiter = _style(path, how)["delimiter"]
    known = set(labels.unique().to_pylist()) - {None, ""}

    def is_row(line: str, before: Sequence[str] = (), after: Sequence[str] = ()) -> bool:
        ways = (line.split(delimiter), next(csv.reader([line], delimiter=delimiter), []))
        whole = [[*before, *cells, *after] for cells in ways]
        return any(len(cells) == len(names) and cells[place] in known for cells in whole)

    for row in rows:
        for column, cell in enumerate(row):
            first, *inner = BREAK.split(cell)
            if not inner:
                continue
            *middle, last = inner
            found = next((line for line in middle if is_row(line)), None)
            # One that is closed by the next row's own mark: both lines are rows, if the marks are taken for text.
            if found is None and is_row(first, before=row[:column]) and is_row(last, after=row[column + 1 :]):
                found = last
            if found is not None:
                raise SpecError(
                    f"{str(path)!r}: a quotation mark opens a cell that begins with {cell[:40]!r}, and the line "
                    f"{found[:60]!r} inside of it looks like a row; "
                    f"close the cell where it ends, or set `quotes: csv` if it is right so"
                )


def as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts as numbers, where all of them are numbers written as numbers are; else as it is. 007 is a
    name."""
    values = [v for v in column.unique().to_pylist() if v is not None]
    if not values or "-0" in values:
        return column
    if all(map(WHOLE.match, values)):
        return column if max(map(len, values)) > DIGITS_KEPT else column.cast(pa.int64())
    if not all(DECIMAL.match(v) or WHOLE.match(v) for v in values):
        return column
    # 1.1 and 1.10 are two versions, and one number; 1 and 1.0 are written so by one and the same spreadsheet.
    broken = [v for v in values if not float(v).is_integer()]
    return column if len(set(map(float, broken))) < len(broken) else column.cast(pa.float64())


# ------------------------------------------------------------------------------------------------ JSON


def _read_json(path: Path, how: Reading) -> pa.Table:
    """Objects, one a line or in a list; or one object of columns."""
    text = decoded(path.read_bytes(), repr(str(path)))
    records, places = _records(path, text)
    if not records:
        raise SpecError(f"{str(path)!r} holds 0 examples; wanted an object a line, or a list of them; check the file")
    names = list(dict.fromkeys(key for record in records for key in record))
    _check_rows_on_top(path, records, names, how)
    columns: dict[str, pa.Array] = {}
    for name in names:
        if how.columns is not None and name not in how.columns:
            columns[name] = pa.nulls(len(records))
            continue
        values = [record.get(name) for record in records]
        if how.missing_words:
            values = [None if isinstance(v, str) and v in how.missing_words else v for v in values]
        columns[name] = _json_column(path, name, values, places, how.columns is not None or name == how.label)
    return pa.table(columns)


def _records(path: Path, text: str) -> tuple[list[dict[str, Any]], Callable[[int], str]]:
    """A file's objects, and how to say where one stands."""
    start = text.lstrip()[:1]
    whole = start == "["
    if not whole:
        try:
            lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
            records = [_object(path, n, line) for n, line in lines]
            numbers = [n for n, _ in lines]
            if len(records) == 1 and (columns := _columns_of(records[0])) is not None:
                return columns, lambda i: f"row {i}"
            return records, lambda i: f"line {numbers[i]}"
        except SpecError:
            if start != "{" or "\n" not in text.strip():
                raise
            try:
                found = json.loads(text, object_pairs_hook=_unique)
            except ValueError:
                found = None
            if (columns := _columns_of(found)) is None:
                raise
            return columns, lambda i: f"row {i}"
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise SpecError(f"{str(path)!r} is no JSON: {error}; correct it") from None
    for i, record in enumerate(found):
        if not isinstance(record, dict):
            raise SpecError(f"{str(path)!r}, row {i}: holds {type(record).__name__}; wanted an object; correct the row")
    return found, lambda i: f"row {i}"


def _check_rows_on_top(path: Path, records: list[dict[str, Any]], names: Sequence[str], how: Reading) -> None:
    """Raises SpecError where a file's rows lie deeper in it than they are looked for."""
    fix = "wanted a list of objects, or an object a line; write the rows so"
    first = records[0]
    keys = {tuple(value) if isinstance(value, dict) else () for value in first.values()}
    if len(records) == 1 < len(names) and len(keys) == 1 and () not in keys and how.label in names:
        raise SpecError(
            f"{str(path)!r} is one object, in which every column is an object of a key a row; {fix} (in pandas, "
            "orient='records')"
        )
    if not how.columns or set(how.columns) & set(names):
        return
    within = [key for key, value in first.items() if isinstance(value, dict) and len(names) == 1]
    within += [key for key, value in first.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if within:
        raise SpecError(f"{str(path)!r}: its rows lie in {within[0]!r}; {fix}, as they stand there")


def _columns_of(found: object) -> list[dict[str, Any]] | None:
    """The rows of an object that holds a list for each column."""
    if not isinstance(found, dict) or not found or not all(isinstance(v, list) for v in found.values()):
        return None
    if len({len(v) for v in found.values()}) != 1:
        return None
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = DECODER.decode(line)
    except ValueError as error:
        raise SpecError(
            f"{str(path)!r}, line {number}: no JSON: {error}; wanted an object a line; correct it"
        ) from None
    if not isinstance(found, dict):
        raise SpecError(
            f"{str(path)!r}, line {number}: holds {type(found).__name__}; wanted an object a line; correct the line"
        )
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(n for n in names if names.count(n) > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # one for all lines: to make one takes as long as a line


def _json_column(path: Path, name: str, values: list[Any], place: Callable[[int], str], needed: bool) -> pa.Array:
    kinds = {type(v) for v in values} - {type(None)}
    if kinds <= {int, float}:  # not-a-number is how some write that there is none
        values = [None if isinstance(v, float) and v != v else v for v in values]
    try:
        if len(kinds - {int, float}) > 1 or (kinds & {int, float} and kinds - {int, float}):
            raise pa.ArrowInvalid("several kinds of values")
        return pa.array(values)
    except UnicodeEncodeError:
        half = next((i for i, v in enumerate(values) if HALF.search(str(v))), 0)
        raise SpecError(
            f"{str(path)!r}, {place(half)}: {ascii(values[half])[:60]} in column {name!r} holds half a character (a "
            "surrogate), which is no text; correct it"
        ) from None
    except (pa.ArrowException, OverflowError) as error:
        if not needed:
            return pa.nulls(len(values))
        counts = {kind: sum(type(v) is kind for v in values) for kind in kinds}
        usual = max(counts, key=counts.__getitem__)
        odd = next((i for i, v in enumerate(values) if v is not None and type(v) is not usual), None)
        if odd is None:
            raise SpecError(f"{str(path)!r}: column {name!r} cannot be read: {error}; correct it") from None
        raise SpecError(
            f"{str(path)!r}, {place(odd)}: {values[odd]!r} in column {name!r} is of another kind than the "
            f"{counts[usual]} "
            f"values around it, which are {WORDS.get(usual, usual.__name__)}; write all of them alike"
        ) from None


WORDS = {str: "texts", int: "numbers", float: "numbers", bool: "true or false", dict: "objects", list: "lists"}
