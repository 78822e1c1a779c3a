"""The columns of one table of texts, value by value: what cannot be used becomes a problem with the place of its row."""

from __future__ import annotations

import difflib
import math
import re
from typing import Any, NamedTuple

import numpy as np

from .errors import DataError
from .table import Problems

PARTS = ("train", "test")
_AUGMENTED = re.compile(r"text_aug_(\d+)")


class TextTable(NamedTuple):
    """A table as it was read.

    Attributes:
        name: what ids of its rows begin with. where: as the user knows it.
        columns: names in lower case, each with its N values.
        places: of the rows, as "reviews.csv:12". problems: what was wrong with rows that are not among them.
    """

    name: str
    where: str
    columns: dict[str, list[Any]]
    places: list[str]
    problems: Problems


class _Fault(ValueError):
    """What is wrong with one value."""


def column(table: TextTable, name: str, option: str) -> list[Any]:
    """The values of a column that must be there. Raises DataError with the nearest name and the option that names another."""
    name = name.strip().lower()
    if name not in table.columns:
        flag = option.replace("_", "-")
        near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.5)
        there = f"did you mean '{near[0]}'?" if near else f"its columns are {', '.join(table.columns)};"
        if "path" in table.columns:  # a labels.csv
            there = "its column path names images? then --data takes their folder, and --labels this file;"
        raise DataError(
            f"{table.where} has no column '{name}'; {there} --set data.{option}=NAME (of data check --{flag} NAME) names another",
            table.problems,
        )
    return table.columns[name]


def texts_of(table: TextTable, name: str, problems: Problems) -> list[str]:
    """[N] texts, "" where there is none."""
    return _strings(table, column(table, name, "text_column"), "text", problems)


def labels_of(table: TextTable, name: str, problems: Problems) -> list[str]:
    """[N] class names, "" where unknown."""
    return _named(table, column(table, name, "label_column"), "label", problems)


def ids_of(table: TextTable, problems: Problems) -> list[str]:
    """[N] ids: the column `id`, or "NAME/000001" by the row's number."""
    if "id" not in table.columns:
        return numbered(table)
    ids = _named(table, table.columns["id"], "id", problems)
    first: dict[str, str] = {}
    for name, place in zip(ids, table.places, strict=True):
        if not name:
            problems.append((place, "the id is blank"))
        elif first.setdefault(name, place) != place:
            problems.append((place, f"id '{name}' is taken by {first[name]}; ids must differ"))
    return ids


def numbered(table: TextTable) -> list[str]:
    """ "NAME/000001", "NAME/000002", ...: of one width, so that they sort by number."""
    width = max(6, len(str(len(table.places))))
    return [f"{table.name}/{number:0{width}d}" for number in range(1, len(table.places) + 1)]


def tested(table: TextTable, problems: Problems) -> list[bool]:
    """[N] whether the column `part` puts the row in the test part; none without such a column."""
    if "part" not in table.columns:
        return [False] * len(table.places)
    parts = [part.lower() for part in _named(table, table.columns["part"], "part", problems)]
    for part, place in zip(parts, table.places, strict=True):
        if part and part not in PARTS:
            problems.append((place, f"part '{part}' is neither train nor test"))
    return [part == "test" for part in parts]


def augmented_of(table: TextTable, problems: Problems) -> list[list[str]]:
    """The columns text_aug_0, text_aug_1, ... in the order of their numbers, each [N] texts, "" where there is none."""
    names = sorted((name for name in table.columns if _AUGMENTED.fullmatch(name)), key=lambda name: int(name[len("text_aug_") :]))
    return [_strings(table, table.columns[name], name, problems) for name in names]


def unread(table: TextTable, read: tuple[str, ...]) -> list[str]:
    """Columns that are none of `read` and hold no other wordings."""
    known = {name.strip().lower() for name in read}
    return [name for name in table.columns if name not in known and not _AUGMENTED.fullmatch(name)]


def _strings(table: TextTable, values: list[Any], what: str, problems: Problems) -> list[str]:
    made = []
    for value, place in zip(values, table.places, strict=True):
        try:
            made.append(_text(value))
        except _Fault as fault:
            problems.append((place, f"the {what} {fault}"))
            made.append("")
    return made


def _named(table: TextTable, values: list[Any], what: str, problems: Problems) -> list[str]:
    """As `_strings`; whole numbers and other numbers are names too: 3 and 3.0 are "3"."""

    def name(value: Any) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, float) and math.isfinite(value):
            value = int(value) if value.is_integer() else value
        return str(value) if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else value

    return _strings(table, [name(value) for value in values], what, problems)


def _text(value: Any) -> str:
    # NaN, and pandas' own missing values
    if value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Fault(f"is not UTF-8 at byte {error.start + 1}; save it as UTF-8") from None
    if not isinstance(value, str):
        raise _Fault(f"is of the type {type(value).__name__}, not a string")
    if "\0" in value:
        raise _Fault("holds a NUL character")
    if not value.isascii() and any("\ud800" <= mark <= "\udfff" for mark in value):
        raise _Fault("holds half of a surrogate pair, which is no character")
    return value.strip()
