"""Small CSV files that people write by hand or in a spreadsheet: read forgivingly, checked line by line; written safely."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import DataError, unknown

Problems = list[tuple[str, str]]

# A spreadsheet runs a cell that begins with one of these as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


class Row(NamedTuple):
    """One record: its line in the file, and its fields by column name (missing optional columns are "")."""

    line: int
    fields: dict[str, str]


class Records(NamedTuple):
    """A CSV file before anything is known of its columns.

    Attributes:
        header: line of the column names; 0 where the file is empty. columns: the names in lower case, as many as a row has fields.
        rows: (line, fields) of each record below it. problems: faults of records, which are not among the rows.
    """

    header: int
    columns: list[str]
    rows: list[tuple[int, list[str]]]
    problems: Problems


def read_records(path: Path, names: Sequence[str], *, delimiter: str | None = None, empty: bool = False) -> Records:
    """Reads a CSV with a header line: a byte-order mark, CRLF, quotes, blank lines and spaces around fields are fine.

    Args:
        names: columns by which the delimiter is told: that of `,` `;` and tab which separates most of them. delimiter: this one.
        empty: rows whose every field is blank are rows; they are passed over as blank lines are otherwise.

    Raises:
        DataError: the file cannot be read, or is not UTF-8 (every offending line is listed).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    text = _decoded(data, path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    if not header:
        return Records(0, [], [], [])
    delimiter = delimiter or max(",;\t", key=lambda mark: _names(header, mark, names))
    before = csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a long text is no fault
    try:
        return _parsed(text, delimiter, path.name, empty)
    finally:
        csv.field_size_limit(before)


def _parsed(text: str, delimiter: str, name: str, empty: bool) -> Records:
    header, columns, rows, problems = 0, [], [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return Records(header, columns, rows, problems)
        except csv.Error as error:
            # Whatever follows an unbalanced quote cannot be told apart from the field it opens.
            problems.append((f"{name}:{line}", f"not a CSV record ({error}); check its quotes"))
            return Records(header, columns, rows, problems)
        fields = [field.strip() for field in record]
        if not any(fields) and not (empty and columns and len(fields) == len(columns)):
            continue
        if not columns:
            header, columns = line, [field.lower() for field in fields]
        elif len(fields) != len(columns):
            problems.append(
                (
                    f"{name}:{line}",
                    f"number of fields is {len(fields)}, the header has {len(columns)}; quote fields that hold the delimiter",
                )
            )
        elif any("\0" in field for field in fields):
            problems.append((f"{name}:{line}", "holds a NUL character"))
        else:
            rows.append((line, fields))


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = (), *, others: bool = False) -> tuple[list[Row], Problems]:
    """Reads a CSV with known columns, in any case and order. Further columns are a fault, unless `others` lets them pass unread.

    Returns:
        (rows, problems), a problem being ("file.csv:12", sentence). A header that cannot be used gives no rows.

    Raises:
        DataError: as `read_records`.
    """
    found = read_records(path, required)
    if not found.header:
        if found.problems:
            return [], found.problems
        return [], [(f"{path.name}:1", f"the file is empty; its first line must name the columns {', '.join(required)}")]
    problems = header_problems(found.columns, required, [*optional, *found.columns] if others else optional, f"{path.name}:{found.header}")
    if problems:
        return [], problems
    rows = [Row(line, dict.fromkeys(optional, "") | dict(zip(found.columns, fields, strict=True))) for line, fields in found.rows]
    return rows, found.problems


def _names(header: str, delimiter: str, required: Sequence[str]) -> tuple[int, int]:
    names = [name.strip(" \"'").lower() for name in header.split(delimiter)]
    return sum(name in required for name in names), len(names)


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        problems = []
        for number, line in enumerate(data.split(b"\n"), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                problems.append((f"{path.name}:{number}", f"byte {error.start + 1} is not UTF-8"))
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8", problems) from None


def header_problems(columns: list[str], required: Sequence[str], optional: Sequence[str], place: str) -> Problems:
    """Columns that are unknown, missing, or there twice."""
    known = [*required, *optional]
    problems = [(place, unknown("column", name, known)) for name in columns if name not in known]
    problems += [(place, f"column '{name}' is missing") for name in required if name not in columns]
    return problems + [(place, f"column '{name}' comes twice") for name in sorted({c for c in columns if columns.count(c) > 1})]


def guarded(field: str) -> str:
    """A field that no spreadsheet runs: text that would begin a formula gets a leading apostrophe."""
    return "'" + field if field.startswith(_FORMULA) else field


def unguarded(field: str) -> str:
    """The field that `guarded` was given."""
    return field[1:] if field.startswith("'") and field[1:].startswith(_FORMULA) else field


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a UTF-8 CSV with LF line ends, whole or not at all; fields are guarded."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([guarded(field) for field in row] for row in rows)
    os.replace(partial, path)
