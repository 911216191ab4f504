"""A version's numbers as tables: CSV for programs, a spreadsheet for people. The page shows the same."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from openpyxl import Workbook
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter

from talos_ray.shown import cell
from talos_ray.storage.version import Version

Table = list[Sequence[object]]  # the first row is the header


def scores(version: Version) -> Table:
    """A row a task and model, with 95 % intervals."""
    rows: Table = [("task", "kind", "coefficient", "model", "accuracy", "low", "high", "n")]
    for task, scores in version.scores.items():
        kind = version.kind_of(task)
        alpha = version.coefficients.get(task, version.coefficient_of(task))
        rows += [(task, kind, alpha, model, s.value, s.low, s.high, s.n) for model, s in scores.measured().items()]
    return rows


def checks(version: Version) -> Table:
    """What the gate wanted and found."""
    rows: Table = [
        ("condition", "task", "wanted", "found", "low", "high", "n", "result", "more inputs needed", "or up to")
    ]
    for c in version.checks:
        rows.append((c.what, c.task, c.wanted, c.value, c.low, c.high, c.n, c.result, c.more, c.most))
    return rows


def impact(version: Version) -> Table:
    """Every tensor that changed, and how far."""
    rows: Table = [("tensor", "weights", "weights changed", "length of the change / length of the base")]
    for name, t in version.impact.tensors.items():
        rows.append((name, t.weights, t.changed, t.relative))
    return rows


def drift(versions: Sequence[Version]) -> Table:
    """Test accuracy of every task in every version."""
    tasks = list(dict.fromkeys(t for v in versions for t in v.scores))
    rows: Table = [("version", "kind", "made", *tasks)]
    for v in versions:
        found = [v.scores[t].merged.value if t in v.scores else None for t in tasks]
        rows.append((v.number, v.kind, v.created, *found))
    return rows


def as_csv(table: Table) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([cell(value) for value in row] for row in table)
    return out.getvalue().encode()


def as_xlsx(sheets: Mapping[str, Table], decision: str) -> bytes:
    """A workbook with a sheet a table; the first begins with the decision."""
    book = Workbook()
    book.remove(book.active)
    for name, table in sheets.items():
        sheet = book.create_sheet(name)
        if sheet is book.worksheets[0]:
            sheet.append([cell(decision)])
            sheet["A1"].font = Font(bold=True)
            sheet.append([])
        first = sheet.max_row + 1 if sheet.max_row > 1 else 1
        for row in table:
            sheet.append([cell(value) for value in row])
        for head in sheet[first]:
            head.font = Font(bold=True)
        sheet.freeze_panes = sheet.cell(first + 1, 2)
        for i, column in enumerate(zip(*table, strict=True), 1):
            sheet.column_dimensions[get_column_letter(i)].width = min(60, 2 + max(len(str(v)) for v in column))
            for shown in sheet[get_column_letter(i)][first:]:
                if isinstance(shown.value, float):
                    shown.number_format = "0.000"
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()
