"""A version's numbers as tables: CSV for programs, a spreadsheet for people. The page shows the same."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from openpyxl import Workbook
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from talos_ray.shown import cell
from talos_ray.storage.version import Version

Table = list[Sequence[object]]  # the first row is the header


def scores(version: Version) -> Table:
    """A row a task and model, with 95 % intervals."""
    rows: Table = [("task", "kind", "coefficient", "model", "accuracy", "low", "high", "n")]
    for task, measured in version.scores.items():
        kind = version.kind_of(task)
        # A number, to calculate with; a text only where groups of layers have one each.
        alpha = version.coefficients.get(task, version.coefficient_of(task))
        for model, score in measured.measured().items():
            rows.append((task, kind, alpha, model, score.value, score.low, score.high, score.n))
    return rows


def checks(version: Version) -> Table:
    """What the gate wanted and found."""
    rows: Table = [
        ("condition", "task", "wanted", "found", "low", "high", "n", "result", "more inputs needed", "or up to")
    ]
    for check in version.checks:
        found = (check.value, check.low, check.high, check.n)
        rows.append((check.what, check.task, check.wanted, *found, check.result, check.more, check.most))
    return rows


def impact(version: Version) -> Table:
    """Every tensor that changed, and how far."""
    rows: Table = [("tensor", "weights", "weights changed", "length of the change / length of the base")]
    for name, tensor in version.impact.tensors.items():
        rows.append((name, tensor.weights, tensor.changed, tensor.relative))
    return rows


def drift(versions: Sequence[Version]) -> Table:
    """Test accuracy of every task in every version."""
    # A column a task that any version was scored on, in the order in which they came.
    tasks = list(dict.fromkeys(task for version in versions for task in version.scores))
    rows: Table = [("version", "kind", "made", *tasks)]
    for version in versions:
        scores = version.scores
        accuracies = [scores[task].merged.value if task in scores else None for task in tasks]
        rows.append((version.number, version.kind, version.created, *accuracies))
    return rows


def as_csv(table: Table) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in table:
        writer.writerow([cell(value) for value in row])
    return out.getvalue().encode()


def as_xlsx(sheets: Mapping[str, Table], decision: str) -> bytes:
    """A workbook with a sheet a table; the first begins with the decision."""
    book = Workbook()
    book.remove(book.active)  # a new one has an empty sheet
    for name, table in sheets.items():
        sheet = book.create_sheet(name)
        if sheet is book.worksheets[0]:
            sheet.append([cell(decision)])
            sheet["A1"].font = Font(bold=True)
            sheet.append([])
        _fill(sheet, table)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def _fill(sheet: Worksheet, table: Table) -> None:
    """A table below what the sheet has: its head stays in sight, columns are as wide as what they show."""
    head = sheet.max_row + 1 if sheet.max_row > 1 else 1  # openpyxl counts a row in an empty sheet, too
    for row in table:
        sheet.append([cell(value) for value in row])
    for title in sheet[head]:
        title.font = Font(bold=True)
    sheet.freeze_panes = sheet.cell(head + 1, 2)
    for number, column in enumerate(zip(*table, strict=True), 1):
        letter = get_column_letter(number)
        longest = max(len(str(value)) for value in column)
        sheet.column_dimensions[letter].width = min(60, 2 + longest)
        # Shown to the digits that an interval justifies; the cell holds all of them.
        for shown in sheet[letter][head:]:
            if isinstance(shown.value, float):
                shown.number_format = "0.000"
