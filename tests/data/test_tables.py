"""Tables are read as they were written, or refused with the line: a row is never moved, joined or dropped."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from talos_ray import SpecError, Task
from talos_ray.data.tables import Reading, as_numbers, decoded, read_table
from talos_ray.scaffold import scaffold
from talos_ray.tasks import load_rows, load_task

ALL = Reading()
MORE = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

# Whatever a text may hold, and a good deal of what readers stumble over.
ODD = st.sampled_from(
    [*list("\"',;\t\n\r\\#"), "None", "N/A", "null", "NaN", "007", "1e5", "\ufeff", "\u2028", "𝄞", '""', "\r\n"]
)
WORD = st.lists(
    st.one_of(ODD, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)), min_size=1, max_size=4
)
CELL = WORD.map("".join).filter(str.strip)
ROWS = st.lists(st.tuples(CELL, st.sampled_from(["good", "poor", "fair enough"])), min_size=1, max_size=8)


def write_csv(path: Path, rows: list, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, delimiter=delimiter).writerows([("text", "label"), *rows])
    return path


def same_or_named(path: Path, rows: list, how: Reading) -> None:
    """What is read is what was written, or an error names the file."""
    try:
        table = read_table(path, how)
    except SpecError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) <= 2
        return
    assert list(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True)) == rows


def check_csv(folder: Path, rows: list) -> None:
    path = write_csv(folder / "x.csv", rows)
    same_or_named(path, rows, Reading("label"))
    table = read_table(path, Reading("label", quotes="csv"))  # whoever knows that it is CSV gets all of it
    assert list(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True)) == rows


def check_tsv(folder: Path, rows: list) -> None:
    same_or_named(write_csv(folder / "x.tsv", rows, "\t"), rows, Reading("label"))
    plain = [(t, label) for t, label in rows if not set("\t\n\r") & set(t)]
    path = folder / "y.tsv"
    path.write_text("\n".join("\t".join(r) for r in [("text", "label"), *plain]), encoding="utf-8", newline="")
    table = read_table(path, Reading("label", quotes="none"))
    assert list(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True)) == plain


def check_json(folder: Path, rows: list) -> None:
    objects = [{"text": t, "label": label} for t, label in rows]
    for name, text in (
        ("x.jsonl", "\n".join(json.dumps(o, ensure_ascii=False) for o in objects)),
        ("x.json", json.dumps(objects, indent=1)),
        ("y.json", json.dumps({"text": [t for t, _ in rows], "label": [x for _, x in rows]})),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="")
        table = read_table(folder / name, Reading("label"))
        assert list(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True)) == rows


def check_parquet(folder: Path, rows: list) -> None:
    """As whoever wrote it liked: long strings, a dictionary of labels, columns that nobody needs, few rows a group, split over files."""
    texts, labels = [t for t, _ in rows], [x for _, x in rows]
    for kind, coded in ((pa.string(), False), (pa.large_string(), True)):
        label = pa.array(labels).dictionary_encode() if coded else pa.array(labels)
        more = pa.array([None if i % 2 else i for i in range(len(rows))])
        pq.write_table(
            pa.table({"more": more, "text": pa.array(texts, kind), "label": label}), folder / "x.parquet", row_group_size=3
        )
        if any("\x1f" in t for t in texts):  # separates a text from its choices
            with pytest.raises(SpecError, match="U.001F"):
                load_rows(AS_TEXT, str(folder / "x.parquet"), CLASSES)
            continue
        found = load_rows(AS_TEXT, str(folder / "x.parquet"), CLASSES)
        texts_read = [found.rows[i][found.column] for i in range(len(found))]
        seen = list(zip(texts_read, [CLASSES[i] for i in found.labels.tolist()], strict=True))
        assert seen == rows


CLASSES = ("good", "poor", "fair enough")
AS_TEXT = Task(name="t", data="x.parquet", kind="text", input="text", classes=CLASSES).model_dump()
CHECKS = {"csv": check_csv, "tsv": check_tsv, "json": check_json, "parquet": check_parquet}


@pytest.mark.parametrize("kind", CHECKS)
def test_what_is_read_is_what_was_written(kind, tmp_path):
    @FEW
    @given(ROWS)
    def holds(rows):
        CHECKS[kind](tmp_path, rows)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_what_is_read_is_what_was_written_in_thousands(kind, tmp_path):
    @MORE
    @given(ROWS)
    def holds(rows):
        CHECKS[kind](tmp_path, rows)

    holds()


def refused(path: Path, text: str, match: str, how: Reading = Reading("label")) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError, match=match) as caught:
        read_table(path, how)
    assert len(str(caught.value).splitlines()) <= 2


def test_rows_that_slide_are_refused_with_the_first_line(tmp_path):
    x, y = tmp_path / "x.csv", tmp_path / "x.tsv"
    refused(x, "text,label\na,b\nc,d,e\nf,g,h\n", r"line 3: 3 cells; wanted 2, one a column \(text, label\)")
    refused(x, "text,label\na,b\n\nc\n", "line 4: 1 cells; wanted 2")
    refused(x, 'text,label\n"two\nlines",b\nc,d,\n', "line 4: 3 cells")
    refused(x, "text,label\n" + "a,b\n" * 25_000 + "a,b,c\n", "line 25002: 3 cells")
    refused(y, "text\tlabel\na\tb\tc\n", "line 2: 3 cells; wanted 2.*take tabs out")
    x.write_text("text,label,\na,b,\nc,d,\n")  # the comma ends the names, too: nothing slides
    assert read_table(x, Reading("label"))["label"].to_pylist() == ["b", "d"]


def test_quotation_marks_that_swallow_lines_are_refused(tmp_path):
    x, y = tmp_path / "x.csv", tmp_path / "x.tsv"
    refused(
        x,
        'text,label\na,b\n"Great film,good\nfine,poor\nhe said "so",poor\n',
        "line 3: a cell in quotation marks does not end",
    )
    refused(
        x,
        'text,label\na,good\n"Great,good\nfine,poor\nold,good\nthe end",poor\n',
        "the line 'fine,poor' inside of it looks like a row",
    )
    refused(
        y,
        'text\tlabel\na\tb\n"Great\tgood\nfine\tpoor\nthe end"\tpoor\n',
        "line 3: a quotation mark opens a cell that ends in line 5",
    )
    rows = read_table(y, Reading("label", quotes="none"))
    assert rows["text"].to_pylist() == ["a", '"Great', "fine", 'the end"'] and rows["label"].to_pylist() == [
        "b",
        "good",
        "poor",
        "poor",
    ]
    x.write_text('text,label\n"one\ntwo, three\nfour",good\nfine,poor\n')  # a text of three lines, as it was meant
    assert read_table(x, Reading("label"))["text"].to_pylist() == ["one\ntwo, three\nfour", "fine"]


def test_words_that_others_take_for_missing_are_words(tmp_path):
    words = ["None", "N/A", "NA", "null", "nan", "NaN", "-", "#N/A"]
    (tmp_path / "x.csv").write_text("text,label\n" + "".join(f"{w},a\n" for w in words) + ",b\n")
    assert read_table(tmp_path / "x.csv", ALL)["text"].to_pylist() == [*words, None]
    told = Reading(missing_words=("N/A", "null"))
    assert read_table(tmp_path / "x.csv", told)["text"].null_count == 3


def test_numbers_are_numbers_where_all_are_written_as_numbers_are(tmp_path):
    def labels(*values: str) -> list:
        (tmp_path / "x.csv").write_text("text,label\n" + "".join(f"w,{v}\n" for v in values))
        return read_table(tmp_path / "x.csv", Reading("label"))["label"].to_pylist()

    assert labels("1", "-2", "30") == [1, -2, 30]
    assert labels("007", "12") == ["007", "12"]
    assert labels("1.0", "2") == [1.0, 2.0]
    assert labels("1", "x") == ["1", "x"] and labels("true", "false") == ["true", "false"]
    assert labels("9" * 30) == ["9" * 30] and labels("1e5") == ["1e5"]
    assert as_numbers is not None
    (tmp_path / "x.csv").write_text("text,label\n12,1\n0013,2\n")
    assert read_table(tmp_path / "x.csv", Reading("label"))["text"].to_pylist() == ["12", "0013"]


def test_encodings_are_utf8_or_refused_by_name(tmp_path):
    x = tmp_path / "x.csv"
    x.write_bytes("text,label\nwörd,a\n".encode("utf-8-sig"))
    assert read_table(x, ALL)["text"].to_pylist() == ["wörd"]
    refused(x, "text,label\nword,a\nwörd,b\n".encode("latin-1"), r"not UTF-8: byte 0xf6 in line 3 \(perhaps Latin-1")
    for name in ("utf-16-le", "utf-16-be"):
        refused(x, "text,label\nwörd,a\n".encode(name), "is UTF-16 without a mark; wanted UTF-8")
    for name in ("utf-16", "utf-32"):
        refused(x, "text,label\nwörd,a\n".encode(name), f"is {name.upper()}; wanted UTF-8")
    assert decoded("\ufeffé".encode(), "x") == "é"


def test_json_that_could_be_read_in_two_ways(tmp_path):
    x = tmp_path / "x.jsonl"
    refused(
        x,
        '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n{"text": "c", "label": 2}\n',
        r"line 2: 'x' in column 'label' is of another kind than the 2",
    )
    refused(x, '{"text": "a", "text": "b"}\n', "line 1: .*'text' stands twice")
    refused(x, '{"text": "a"}\n{"text": \n', "line 2: no JSON")
    refused(x, '["a", "b"]\n', "row 0: holds str; wanted an object")
    x.write_text('{"text": "a", "label": 1}\n\n{"label": null, "text": "b"}\n{"text": "c"}\n')
    assert read_table(x, ALL)["label"].to_pylist() == [1, None, None]


def test_two_columns_of_one_name(tmp_path):
    refused(tmp_path / "x.csv", "text,label,label\na,b,c\n", "two columns that are called 'label'")
    (tmp_path / "x.csv").write_text("text,id,id,label\n" + "a,1,2,x\nb,1,2,y\n" * 10)
    data = load_task(Task(name="t", data=str(tmp_path / "x.csv"), kind="text", input="text"), 0)
    assert data.classes == ("x", "y") and len(data.train) == 14


def told(match: str, data: Path, content: str | None = None, **more) -> None:
    """What `check` tells of a task's data."""
    if content is not None:
        data.write_text(content, encoding="utf-8")
    with pytest.raises(SpecError, match=match) as caught:
        load_task(Task(**{"name": "t", "data": str(data), "kind": "text", "input": "text", **more}), 0)
    assert len(str(caught.value)) < 700 and len(str(caught.value).splitlines()) == 1


def test_a_line_of_names_among_the_rows_is_refused(tmp_path):
    """As files have that were joined as they stood: it would be a class called label."""
    rows = "one,a\ntwo,b\n" * 10
    told("line 22: the names of the columns stand there again", tmp_path / "x.csv", f"text,label\n{rows}text,label\n{rows}")
    told("line 22: the names", tmp_path / "y.csv", f"text,label\n{rows}\ufefftext,label\n{rows}")
    told("line 25002: the names", tmp_path / "z.csv", "text,label\n" + "a,b\n" * 25_000 + "text,label\n")
    (tmp_path / "one.csv").write_text("text\ntext\nother\n")  # a table of one column may hold the word
    assert read_table(tmp_path / "one.csv")["text"].to_pylist() == ["text", "other"]


def test_what_stands_between_cells_is_told_where_it_is_not_what_the_name_says(tmp_path):
    rows = "".join(f"w{i}, and more;{'ab'[i % 2]}\n" for i in range(30))
    told("has semicolons between its columns.*save it with commas", tmp_path / "x.csv", "text;label\n" + rows)
    told("has tabs.*or call it .tsv", tmp_path / "y.csv", "text\tlabel\n" + "a\tb\n" * 20)
    told("has commas.*wanted tabs", tmp_path / "z.tsv", "text,label\n" + "a,b\n" * 20)
    told("begins with 'sep=;'", tmp_path / "s.csv", "sep=;\ntext;label\n" + rows)
    told("a blank line where the names", tmp_path / "b.csv", "\ntext,label\na,b\n")
    (tmp_path / "n.csv").write_text("text;label\na\nb\n")  # somebody who wants a column of that name gets it
    assert read_table(tmp_path / "n.csv", Reading(columns=["text;label"]))["text;label"].to_pylist() == ["a", "b"]


def test_json_whose_rows_lie_deeper_in_it(tmp_path):
    rows = [{"text": f"w{i}", "label": "ab"[i % 2]} for i in range(30)]
    by_row = {name: {str(i): row[name] for i, row in enumerate(rows)} for name in ("text", "label")}
    told("a key a row.*orient='records'", tmp_path / "x.json", json.dumps(by_row))
    told("its rows lie in 'data'", tmp_path / "y.json", json.dumps({"data": rows}))
    told("its rows lie in 'data'", tmp_path / "z.json", json.dumps({"version": "1", "data": rows}))
    told("its rows lie in 'row'", tmp_path / "w.jsonl", "\n".join(json.dumps({"row": row}) for row in rows))
    told("and 10 more; set input", tmp_path / "v.json", json.dumps(dict(enumerate(rows))))  # as orient='index' writes
    half = [*rows, {"text": "\ud800", "label": "a"}]
    told("line 31: .*half a character", tmp_path / "h.jsonl", "\n".join(map(json.dumps, half)))


def test_versions_are_no_numbers(tmp_path):
    """1.1 and 1.10 are two of them; 1 and 1.0 are one number."""
    (tmp_path / "x.csv").write_text("text,label\n" + "".join(f"{v} {i},{v}\n" for i in range(10) for v in VERSIONS))
    task = Task(name="t", data=str(tmp_path / "x.csv"), kind="text", input="text")
    for classes in (VERSIONS, None):
        data = load_task(task.model_copy(update={"classes": classes}), 0)
        assert data.classes == VERSIONS
        found = [data.classes[i] for i in data.train.labels.tolist()]
        assert found == [text.split()[0] for text in data.train.rows[:]["text"]]
    mixed = as_numbers(pa.chunked_array([["1", "1.0", "2.50"]]))
    assert mixed.to_pylist() == [1.0, 1.0, 2.5]
    pq.write_table(pa.table({"text": ["a"] * 9, "label": [1.1, 1.2, 1.1] * 3}), tmp_path / "x.parquet")
    told("'1.1' and '1.10' are one number", tmp_path / "x.parquet", classes=VERSIONS)


VERSIONS = ("1.1", "1.10", "1.2")


def test_parquet_as_other_writers_name_types(tmp_path):
    texts = [f"w{i}" for i in range(20)]
    labels = ["a", "b"] * 10
    views = {"text": pa.array(texts, pa.string_view()), "label": pa.array(labels, pa.string_view())}
    pq.write_table(pa.table(views), tmp_path / "x.parquet")
    found = load_rows(AS_TEXT, str(tmp_path / "x.parquet"), ("a", "b"))
    assert found.rows[:]["text"] == texts and found.labels.tolist() == [0, 1] * 10
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), tmp_path / "y.parquet")
    told("holds 0 examples", tmp_path / "y.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_words_for_what_is_missing_are_such_in_every_kind_of_table(tmp_path, kind):
    rows = [{"text": f"w{i}", "label": "01?"[i % 3]} for i in range(30)]
    rows[1]["text"] = "N/A"
    path = tmp_path / f"x.{kind}"
    if kind == "csv":
        write_csv(path, [tuple(row.values()) for row in rows])
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    task = Task(name="t", data=str(path), kind="text", input="text", missing_words=("?", "N/A"), missing="drop")
    data = load_task(task, 0)
    assert data.classes == ("0", "1") and "11 of 30 rows" in data.notes[0]
    assert {*data.train.rows[:]["text"]}.isdisjoint({"N/A"})
    told("row 1 of split 'train' has no text.*11 rows", path, missing_words=("?", "N/A"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_files_that_are_something_else_than_they_are_called(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    for start, match in (
        (b"PK\x03\x04" + bytes(40), "is a ZIP archive, as spreadsheets are.*export it"),
        (b"\x1f\x8b\x08" + bytes(40), "is compressed by gzip.*unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "a pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html>\n", "is a web page"),
    ):
        path.write_bytes(start)
        told(match, path)
        with pytest.raises(SpecError, match=match):
            scaffold(tmp_path)
    if kind != "parquet":
        pq.write_table(pa.table({"text": ["a"], "label": ["b"]}), path)
        told("is Parquet.*call it .parquet", path)
