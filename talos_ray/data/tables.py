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
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
    parquet = path.suffix.lower() == ".parquet"
    for mark, (what, fix) in OTHERS.items():
        if start.startswith(mark) and not (mark == b"PAR1" and parquet):
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
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(_not_utf8(what, data[error.start], line)) from None


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
        content = "a blank line where the names of its columns should stand" if any(rest) else "0 examples"
        raise SpecError(f"{str(path)!r} holds {content}; wanted a line of column names, and rows")
    _check_names(path, names, how)
    needed = {name: i for i, name in enumerate(names) if how.columns is None or name in how.columns}
    twice = [name for name in names if names.count(name) > 1 and name in needed]
    if twice:
        raise SpecError(f"{str(path)!r} has two columns that are called {twice[0]!r}; wanted unique names; rename one")
    parts: dict[str, list[pa.Array]] = {name: [] for name in needed}
    total = 0
    # Rows of several lines: where a quotation mark was meant as text, these have swallowed others.
    long_rows: list[list[str]] = []
    rest_of_first: Block = (1 + _lines_of(names), lines, rest)
    for line_count, rows in _csv_rows(path, names, itertools.chain([rest_of_first], blocks)):
        if line_count > len(rows) and how.label in names:
            long_rows += [row for row in rows if _lines_of(row) > 1]
        for name, i in needed.items():
            parts[name].append(pa.array([row[i] for row in rows], pa.string()))
        total += len(rows)
    columns = {name: pa.chunked_array(part, pa.string()) for name, part in parts.items()}
    if long_rows and how.label is not None and how.quotes != "csv":  # somebody who says csv has looked
        _check_swallowed(path, names, long_rows, columns[how.label], how)
    missing = pa.array(["", *how.missing_words])
    for name, column in columns.items():
        columns[name] = pc.if_else(pc.is_in(column, missing), pa.scalar(None, pa.string()), column)
    if how.label in columns:
        columns[how.label] = as_numbers(columns[how.label])
    # Of the others only the names are kept: a message tells which columns there are.
    whole = {}
    for name in dict.fromkeys(names):
        whole[name] = columns[name] if name in columns else pa.nulls(total)
    return pa.table(whole)


def _csv_rows(path: Path, names: Sequence[str], blocks: Iterable[Block]) -> Iterator[tuple[int, list[list[str]]]]:
    """(lines that they take, rows with a cell for every name) of some rows at a time, without blank lines.

    Raises:
        SpecError: a row has more or fewer cells, or is the line of names once more.
    """
    marked = [f"\ufeff{names[0]}", *names[1:]]  # as they stand within files that were joined
    blank = 0  # lines of a table of one column, of which nobody knows yet whether anything follows
    for line, line_count, block in blocks:
        if set(map(len, block)) - {0, len(names)}:
            raise SpecError(_uneven(path, line, block, names))
        if len(names) == 1:  # there a blank line is an empty cell, unless the file ends with it
            block = [*[[""]] * blank, *(row or [""] for row in block)]
            filled = _until_last_cell(block)
            blank = len(block) - len(filled)
            block = filled
        else:
            again = next((row for row in (names, marked) if row in block), None)
            if again is not None:
                raise SpecError(_names_again(path, line, block, again))
        yield line_count, [row for row in block if row]


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
    expected = _style(path, how)["delimiter"]
    actual = max(SEPARATORS, key=line.count)
    if actual == expected or actual not in line:
        return None
    wanted = SEPARATORS.get(expected, repr(expected))
    fix = f"save it with {wanted}"
    if actual == "\t":
        fix += ", or call it .tsv"
    return f"{str(path)!r} has {SEPARATORS[actual]} between its columns ({line[:80]!r}); wanted {wanted}; {fix}"


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
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(tuple(ENCODINGS)) or UNMARKED.match(start):
        decoded(start, repr(str(path)))  # which refuses it
    limit = csv.field_size_limit(sys.maxsize)  # of the whole process, so it is put back
    line = 1
    one_line_cells = path.suffix.lower() == ".tsv" and how.quotes is None
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, **_style(path, how))
            while rows := list(itertools.islice(reader, ROWS)):
                # In a TSV, quotation marks are as often a part of the text as they are not, and one that is never
                # closed would take all lines up to the next one for a single cell.
                line_count = reader.line_num - line + 1
                if one_line_cells and line_count > len(rows):
                    raise SpecError(_ambiguous(path, line, rows))
                yield line, line_count, rows
                line = reader.line_num + 1
    except csv.Error as error:
        fix = "double it, or set `quotes: none` if quotation marks belong to the texts"
        raise SpecError(
            f"{str(path)!r}, line {_line_of_error(path, how)}: a cell in quotation marks does not end where it should "
            f"({error}); {fix}"
        ) from None
    except UnicodeDecodeError:
        # It counts from where the text was last read on, and not from the file's beginning.
        _check_utf8(path)
        raise
    finally:
        csv.field_size_limit(limit)


def _check_utf8(path: Path) -> None:
    """Raises SpecError for the first line of a file that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise SpecError(_not_utf8(repr(str(path)), line[error.start], number)) from None


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
    cells = 0
    for row in rows:
        cells = len(row)
        if cells not in (0, len(names)):
            break
        line += _lines_of(row)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    fix = "put cells that hold a comma into quotation marks, and take out commas that end a line"
    if path.suffix.lower() == ".tsv":
        fix = "take tabs out of its texts"
    return f"{str(path)!r}, line {line}: {cells} cells; wanted {len(names)}, one a column ({shown}); {fix}"


def _check_swallowed(
    path: Path, names: Sequence[str], rows: list[list[str]], labels: pa.ChunkedArray, how: Reading
) -> None:
    """Raises SpecError where lines that a cell goes over look like rows themselves: a quotation mark has swallowed
    them."""
    place = names.index(how.label)
    delimiter = _style(path, how)["delimiter"]
    known = set(labels.unique().to_pylist()) - {None, ""}

    def is_row(line: str, before: Sequence[str] = (), after: Sequence[str] = ()) -> bool:
        """Whether a line, with the cells that its row has before and after it, has a cell a name and a known label;
        with its quotation marks as text, or as quotation marks."""
        plain = line.split(delimiter)
        quoted = next(csv.reader([line], delimiter=delimiter), [])
        for cells in (plain, quoted):
            whole = [*before, *cells, *after]
            if len(whole) == len(names) and whole[place] in known:
                return True
        return False

    for row in rows:
        for column, cell in enumerate(row):
            first, *inner = BREAK.split(cell)
            if not inner:
                continue
            *middle, last = inner
            swallowed = next((line for line in middle if is_row(line)), None)
            # One that is closed by the next row's own mark: both lines are rows, if the marks are taken for text.
            if swallowed is None and is_row(first, before=row[:column]) and is_row(last, after=row[column + 1 :]):
                swallowed = last
            if swallowed is not None:
                raise SpecError(
                    f"{str(path)!r}: a quotation mark opens a cell that begins with {cell[:40]!r}, and the line "
                    f"{swallowed[:60]!r} inside of it looks like a row; close the cell where it ends, or set "
                    "`quotes: csv` if it is right so"
                )


def as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts as numbers, where all of them are numbers written as numbers are; else as it is. 007 is a
    name."""
    values = [value for value in column.unique().to_pylist() if value is not None]
    if not values or "-0" in values:
        return column
    if all(map(WHOLE.match, values)):
        longest = max(map(len, values))
        return column if longest > DIGITS_KEPT else column.cast(pa.int64())
    if not all(DECIMAL.match(value) or WHOLE.match(value) for value in values):
        return column
    # 1.1 and 1.10 are two versions, and one number; 1 and 1.0 are written so by one and the same spreadsheet.
    broken = [value for value in values if not float(value).is_integer()]
    different = set(map(float, broken))
    return column if len(different) < len(broken) else column.cast(pa.float64())


# ------------------------------------------------------------------------------------------------ JSON


def _read_json(path: Path, how: Reading) -> pa.Table:
    """Objects, one a line or in a list; or one object of columns."""
    text = decoded(path.read_bytes(), repr(str(path)))
    records, place = _records(path, text)
    if not records:
        raise SpecError(f"{str(path)!r} holds 0 examples; wanted an object a line, or a list of them; check the file")
    names: dict[str, None] = {}  # of all objects, in the order in which they first come: any may leave some out
    for record in records:
        names.update(dict.fromkeys(record))
    _check_rows_on_top(path, records, list(names), how)
    columns: dict[str, pa.Array] = {}
    for name in names:
        if how.columns is not None and name not in how.columns:
            columns[name] = pa.nulls(len(records))
            continue
        values = [record.get(name) for record in records]
        if how.missing_words:
            values = [None if isinstance(value, str) and value in how.missing_words else value for value in values]
        # Without a word on which are needed all are read, and only the label must not fail.
        needed = how.columns is not None or name == how.label
        columns[name] = _json_column(path, name, values, place, needed)
    return pa.table(columns)


def _records(path: Path, text: str) -> tuple[list[dict[str, Any]], Callable[[int], str]]:
    """A file's objects, and how to say where one stands."""
    start = text.lstrip()[:1]
    if start != "[":
        try:
            return _records_by_line(path, text)
        except SpecError:
            # An object over several lines may hold the columns. If it does not, its first line is what is wrong.
            if start != "{" or "\n" not in text.strip():
                raise
            columns = _columns_of(_json_or_none(text))
            if columns is None:
                raise
            return columns, lambda i: f"row {i}"
    try:
        records = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise SpecError(f"{str(path)!r} is no JSON: {error}; correct it") from None
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise SpecError(f"{str(path)!r}, row {i}: holds {type(record).__name__}; wanted an object; correct the row")
    return records, lambda i: f"row {i}"


def _records_by_line(path: Path, text: str) -> tuple[list[dict[str, Any]], Callable[[int], str]]:
    """The same of JSON Lines; blank lines are none. A single line may hold an object of columns."""
    records = []
    numbers = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            records.append(_object(path, number, line))
            numbers.append(number)
    if len(records) == 1:
        columns = _columns_of(records[0])
        if columns is not None:
            return columns, lambda i: f"row {i}"
    return records, lambda i: f"line {numbers[i]}"


def _json_or_none(text: str) -> object:
    try:
        value: object = json.loads(text, object_pairs_hook=_unique)
    except ValueError:
        return None
    return value


def _check_rows_on_top(path: Path, records: list[dict[str, Any]], names: Sequence[str], how: Reading) -> None:
    """Raises SpecError where a file's rows lie deeper in it than they are looked for."""
    fix = "wanted a list of objects, or an object a line; write the rows so"
    first = records[0]
    # As pandas writes a table if nothing is said: one object, every column of which has the same row numbers.
    keys = {tuple(value) if isinstance(value, dict) else () for value in first.values()}
    alike = len(keys) == 1 and () not in keys
    if len(records) == 1 and len(names) > 1 and alike and how.label in names:
        raise SpecError(
            f"{str(path)!r} is one object, in which every column is an object of a key a row; {fix} (in pandas, "
            "orient='records')"
        )
    if not how.columns or set(how.columns) & set(names):
        return
    # As answers of web services come, with the rows beside what is said of them.
    within = []
    if len(names) == 1:
        within += [key for key, value in first.items() if isinstance(value, dict)]
    within += [key for key, value in first.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if within:
        raise SpecError(f"{str(path)!r}: its rows lie in {within[0]!r}; {fix}, as they stand there")


def _columns_of(value: object) -> list[dict[str, Any]] | None:
    """The rows of an object that holds a list for each column."""
    if not isinstance(value, dict) or not value:
        return None
    columns = list(value.values())
    if not all(isinstance(column, list) for column in columns):
        return None
    if len(set(map(len, columns))) != 1:
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = DECODER.decode(line)
    except ValueError as error:
        raise SpecError(
            f"{str(path)!r}, line {number}: no JSON: {error}; wanted an object a line; correct it"
        ) from None
    if not isinstance(value, dict):
        raise SpecError(
            f"{str(path)!r}, line {number}: holds {type(value).__name__}; wanted an object a line; correct the line"
        )
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, Any]:
    """An object without a key that stands in it twice, of which Python would keep the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # one for all lines: to make one takes as long as a line


def _json_column(path: Path, name: str, values: list[Any], place: Callable[[int], str], needed: bool) -> pa.Array:
    """A column of one kind of values; where it is not needed, of no values if they are of several.

    Args:
        place: row -> where its object stands.
    """
    kinds = {type(value) for value in values} - {type(None)}
    numeric = kinds & {int, float}
    if kinds == numeric:  # not-a-number is how some write that there is none
        values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    try:
        # Arrow would take truth values for numbers in some mixtures.
        if len(kinds - numeric) > 1 or (numeric and kinds != numeric):
            raise pa.ArrowInvalid("several kinds of values")
        return pa.array(values)
    except UnicodeEncodeError:
        half = next((i for i, value in enumerate(values) if HALF.search(str(value))), 0)
        raise SpecError(
            f"{str(path)!r}, {place(half)}: {ascii(values[half])[:60]} in column {name!r} holds half a character (a "
            "surrogate), which is no text; correct it"
        ) from None
    except (pa.ArrowException, OverflowError) as error:
        if not needed:
            return pa.nulls(len(values))
        raise SpecError(f"{str(path)!r}{_odd_value(name, values, place, error)}") from None


def _odd_value(name: str, values: list[Any], place: Callable[[int], str], error: Exception) -> str:
    """What is told of the first value of a column that is of another kind than most, or of all, if there is none."""
    counts = Counter(type(value) for value in values if value is not None)
    usual = max(counts, key=counts.__getitem__)
    odd = next((i for i, value in enumerate(values) if value is not None and type(value) is not usual), None)
    if odd is None:
        return f": column {name!r} cannot be read: {error}; correct it"
    return (
        f", {place(odd)}: {values[odd]!r} in column {name!r} is of another kind than the {counts[usual]} values around "
        f"it, which are {WORDS.get(usual, usual.__name__)}; write all of them alike"
    )


WORDS = {str: "texts", int: "numbers", float: "numbers", bool: "true or false", dict: "objects", list: "lists"}
