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


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = (), *, others: bool = False) -> tuple[list[Row], Problems]:
    """Reads a CSV with a header line.

    A byte-order mark, CRLF, `,` `;` or tab as delimiter, quotes, blank lines and spaces around fields are fine; column names are
    read in any case and order. Further columns are a fault, unless `others` lets them pass unread.

    Returns:
        (rows, problems), a problem being ("file.csv:12", sentence). A header that cannot be used gives no rows.

    Raises:
        DataError: the file cannot be read, or is not UTF-8 (every offending line is listed).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    text = _decoded(data, path)
    lines = text.splitlines()
    header = next((line for line in lines if line.strip()), "")
    if not header:
        return [], [(f"{path.name}:1", f"the file is empty; its first line must name the columns {', '.join(required)}")]
    delimiter = max(",;\t", key=lambda mark: _names(header, mark, required))
    rows: list[Row] = []
    problems: Problems = []
    columns: list[str] | None = None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return rows, problems
        except csv.Error as error:
            # Whatever follows an unbalanced quote cannot be told apart from the field it opens.
            return rows, [*problems, (f"{path.name}:{line}", f"not a CSV record ({error}); check its quotes")]
        fields = [field.strip() for field in record]
        if not any(fields):
            continue
        if columns is None:
            columns = [field.lower() for field in fields]
            problems += _header_problems(columns, required, [*optional, *columns] if others else optional, f"{path.name}:{line}")
            if problems:
                return [], problems
        elif len(fields) != len(columns):
            problems.append(
                (
                    f"{path.name}:{line}",
                    f"number of fields is {len(fields)}, the header has {len(columns)}; quote fields that hold the delimiter",
                )
            )
        elif any("\0" in field for field in fields):
            problems.append((f"{path.name}:{line}", "holds a NUL character"))
        else:
            rows.append(Row(line, dict.fromkeys(optional, "") | dict(zip(columns, fields, strict=True))))


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


def _header_problems(columns: list[str], required: Sequence[str], optional: Sequence[str], place: str) -> Problems:
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
