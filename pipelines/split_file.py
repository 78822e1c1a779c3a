"""split.csv: a Split on disk, one line a row and role, with a hash that names the split."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from .batch import Split
from .errors import DataError, unknown
from .source import EXTRA, AnySource
from .table import Problems, read_table, unguarded, write_table

ROLES = ("labelled", "unlabelled", "test")
COLUMNS = ("id", "role", "label", "weight")


def _lines(source: AnySource, labelled, label, weight, unlabelled, test) -> list[tuple[str, str, str, str]]:
    """Sorted (id, role, label, weight) lines. A labelled row that is also drawn unlabelled has a line of each role."""
    name = lambda c: source.classes[c] if c >= 0 else ""  # noqa: E731
    lines = [(source.ids[r], "labelled", name(c), f"{w:.9g}") for r, c, w in zip(labelled, label, weight, strict=True)]
    lines += [(source.ids[r], "unlabelled", "", "") for r in unlabelled]
    lines += [(source.ids[r], "test", name(source.label[r]), "") for r in test]
    return sorted(lines)


def split_hash(source: AnySource, labelled, label, weight, unlabelled, test) -> str:
    """Hexadecimal SHA-256 (the first 16 digits) of the sorted lines of a split: who has which role, label and weight."""
    digest = hashlib.sha256()
    for line in _lines(source, labelled, label, weight, unlabelled, test):
        # A separator that no field can hold keeps ("a", "bc") and ("ab", "c") apart.
        digest.update("\0".join(line).encode("utf-8", "surrogateescape") + b"\n\0")
    return digest.hexdigest()[:16]


def save(split: Split, source: AnySource, path: str | Path) -> None:
    """Writes a split as CSV: id, role (labelled, unlabelled, test), label (class name, blank where hidden), weight. Whole or not at all."""
    rows = _lines(source, split.labelled, split.label, split.weight, split.unlabelled, split.test)
    write_table(Path(path), COLUMNS, rows)


def load(path: str | Path, source: AnySource) -> Split:
    """Reads a split against a source. Rows that the file does not name take no part; the fixed test part stays when it names no test.

    The label column is needed for labelled rows alone; a test row's label may be blank. Weights are 1 where blank.

    Raises:
        DataError: unreadable, or lines that do not fit the source: all of them, with their numbers.
    """
    path = Path(path)
    rows, problems = read_table(path, COLUMNS[:2], COLUMNS[2:])
    # Fields are read without the spaces around them, so names are looked up without them too.
    row_of = {name.strip(): row for row, name in enumerate(source.ids)}
    class_of = {name.strip(): c for c, name in enumerate(source.classes)}
    role_at: dict[tuple[int, str], int] = {}
    roles: dict[str, list[tuple[int, int, float]]] = {role: [] for role in ROLES}

    def read(fields: dict[str, str], line: int) -> str | None:
        name, role = unguarded(fields["id"]), fields["role"].lower()
        if name not in row_of:
            missing = f"'{name}' is not among the {source.samples} of --extra-unlabelled; bring it back"
            if not source.extra:
                missing = f"'{name}' comes from elsewhere; give the --extra-unlabelled that this file was made with"
            return missing if name.startswith(EXTRA) else f"no row '{name}' in {source.name}"
        if role not in ROLES:
            return unknown("role", fields["role"], ROLES)
        row = row_of[name]
        if (row, role) in role_at:
            return f"'{name}' is {role} already in line {role_at[row, role]}"
        text = unguarded(fields["label"])
        if text and text not in class_of:
            return unknown("class", text, class_of)
        if role == "labelled" and row >= source.own:
            return f"'{name}' is an extra {source.sample}, and those are unlabelled only"
        if role == "labelled" and not text:
            return f"'{name}' is labelled and its label is blank"
        label = class_of.get(text, -1)
        if role == "test" and label >= 0 and label != source.label[row]:
            return f"'{name}' is a test row labelled '{text}', where {source.name} says otherwise; leave the label blank"
        if role == "test" and source.label[row] < 0:
            return f"'{name}' is a test row whose label is unknown"
        if role != "test" and source.test[row]:
            return f"'{name}' belongs to the fixed test part of {source.name}"
        try:
            weight = float(fields["weight"] or 1)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            return f"weight '{fields['weight']}' is not a number from 0"
        role_at[row, role] = line
        roles[role].append((row, label, weight))
        return None

    for line, fields in rows:
        fault = read(fields, line)
        if fault:
            problems.append((f"{path.name}:{line}", fault))
    problems += _overlaps(path, source, role_at)
    if not problems and not roles["labelled"]:
        problems.append((f"{path.name}:1", "names no labelled row"))
    if problems:
        raise DataError(f"{path} does not fit {source.name}; correct these lines:", problems)

    labelled = sorted(roles["labelled"])
    at = np.array([row for row, _, _ in labelled], np.int64)
    label = np.array([c for _, c, _ in labelled], np.int64)
    weight = np.array([w for _, _, w in labelled], np.float32)
    unlabelled = np.array(sorted(row for row, _, _ in roles["unlabelled"]), np.int64)
    test = np.array(sorted(row for row, _, _ in roles["test"]), np.int64) if roles["test"] else np.flatnonzero(source.test)
    return Split(at, label, weight, unlabelled, test, split_hash(source, at, label, weight, unlabelled, test))


def _overlaps(path: Path, source: AnySource, role_at: dict[tuple[int, str], int]) -> Problems:
    return [
        (f"{path.name}:{line}", f"'{source.ids[row]}' is test here and {other} in line {role_at[row, other]}")
        for (row, role), line in role_at.items()
        if role == "test"
        for other in ROLES[:2]
        if (row, other) in role_at
    ]
