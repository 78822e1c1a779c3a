"""Foundation labels: what another model says of the rows of a set, read from a CSV file and checked against the set.

Only the labels that the split gives to training are ever compared with them; all others stay unseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .batch import FoundationLabels, Split
from .errors import ConfigError, DataError, unknown
from .source import AnySource
from .splits import _keys, _named
from .table import Problems, Row, read_table, unguarded

COLUMNS = ("id", "label")
Say = Callable[[str], None]


def configured(data: Any, source: AnySource, split: Split, *, seed: int, warn: Say, note: Say) -> FoundationLabels | None:
    """What the `data` section of a run's configuration asks for; None where it names no file.

    Args:
        data: a DataConfig. The rest as in `read`.

    Raises:
        ConfigError: noise without a file.
    """
    if data.foundation_labels is not None:
        return read(data.foundation_labels, source, split, noise=data.foundation_noise, seed=seed, warn=warn, note=note)
    if data.foundation_noise:
        raise ConfigError("data.foundation_noise replaces foundation labels, and there are none; give --foundation-labels FILE")
    return None


def read(
    path: str | Path, source: AnySource, split: Split, *, noise: float = 0.0, seed: int = 0, warn: Say, note: Say | None = None
) -> FoundationLabels:
    """Reads a CSV with the columns id,label and perhaps confidence (`path` serves as `id`), as forgiving as `table.read_table`.

    A blank label is a missing one, a blank confidence is 1. Rows may come in any order; ids that the set lacks are left out.

    Args:
        path: the file. Ids are those of split.csv, labels are class names.
        source: the set.
        split: who is labelled: coverage is counted over its labelled and unlabelled rows, agreement over its labelled ones.
        noise: share of the labels, in [0, 1], that another class replaces, for experiments with poor teachers: the rows of the smallest
            keys of (seed, id), so that the rows replaced at 0.2 are among those at 0.4, and by the same classes.
        seed: of the noise.
        warn: receives what may not be as the user thinks. note: receives coverage and agreement.

    Returns:
        Labels and weights of all rows of the set.

    Raises:
        ConfigError: `noise` out of range.
        DataError: unreadable, lines that do not fit the set (all of them, with their numbers), or labels of no row that trains.
    """
    if not 0 <= noise <= 1:
        raise ConfigError(f"data.foundation_noise {noise} is out of range; give a share from 0 to 1")
    path = Path(path)
    rows, problems = _table(path)
    label, weight, strangers, repeats = _matched(path.name, rows, problems, source)
    if problems:
        raise DataError(f"{path} does not fit {source.name}; correct these lines:", problems)
    if len(strangers) == len(rows):
        raise DataError(f"{path} has labels for other ids: '{strangers[0]}' is one of its own, '{source.ids[0]}' is one of {source.name}")
    training = np.union1d(split.labelled, split.unlabelled)
    if not (label[training] >= 0).any():
        raise DataError(
            f"{path} has no label for any of the {len(training)} training {source.samples} of {source.name}; label some of them"
        )
    if strangers:
        warn(f"ids of {path.name} that are not in {source.name}: {_named(strangers, len(rows))}")
    if repeats:
        warn(f"{path.name} repeats ids, and the first line of each counts: {_named(repeats, len(rows))}")
    say = note or (lambda text: None)
    if noise:
        rest = np.setdiff1d(np.arange(len(source)), training)
        replaced = [_corrupt(label, part, noise, seed, source) for part in (training, rest)]
        say(f"foundation labels: {replaced[0]} of the training {source.samples}' were replaced by another class (noise {noise:g})")
    _tell(path.name, label, source, split, training, warn, say)
    return FoundationLabels(label, weight)


def _table(path: Path) -> tuple[list[Row], Problems]:
    """The file's rows by `id`, whatever it calls that column."""
    found = read_table(path, COLUMNS, ("confidence",))
    if not found[0] and found[1]:
        rows, problems = read_table(path, ("path", "label"), ("confidence",))
        if rows or len(problems) < len(found[1]):
            found = [Row(line, {**fields, "id": fields["path"]}) for line, fields in rows], problems
    if not found[0] and not found[1]:
        found[1].append((f"{path.name}:1", "has no row below its header"))
    return found


def _matched(file: str, rows: list[Row], problems: Problems, source: AnySource) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Lines against the set: label and weight of each of its rows, ids that it lacks, ids that come again; faults go to `problems`."""
    # Fields are read without the spaces around them, so names are looked up without them too.
    row_of = {name.strip(): row for row, name in enumerate(source.ids)}
    class_of = {name.strip(): c for c, name in enumerate(source.classes)}
    lost = {name.strip() for name, _ in source.quarantine}  # of the set, but cannot be used
    label = np.full(len(source), -1, np.int64)
    weight = np.zeros(len(source), np.float32)
    seen: dict[str, tuple[str, int]] = {}
    strangers: list[str] = []
    repeats: list[str] = []

    def take(line: int, fields: dict[str, str]) -> str | None:
        name, text = unguarded(fields["id"]), unguarded(fields["label"])
        if not name:
            return "the id is blank"
        first, at = seen.setdefault(name, (text, line))
        if first != text:
            return f"'{name}' is labelled '{text}' here and '{first}' in line {at}; keep one"
        if at != line:
            repeats.append(name)
            return None
        try:
            confidence = float(fields["confidence"] or 1)
        except ValueError:
            confidence = math.nan
        if not 0 <= confidence <= 1:
            return f"confidence '{fields['confidence']}' is not a number from 0 to 1"
        if name not in row_of:
            if name not in lost:
                strangers.append(name)
        elif text and text not in class_of:
            return unknown("class", text, class_of)
        elif text:
            label[row_of[name]], weight[row_of[name]] = class_of[text], confidence
        return None

    for line, fields in rows:
        fault = take(line, fields)
        if fault:
            problems.append((f"{file}:{line}", fault))
    return label, weight, strangers, repeats


def _corrupt(label: np.ndarray, rows: np.ndarray, noise: float, seed: int, source: AnySource) -> int:
    """Replaces a share of the labels of `rows` in place, each by one of the other classes; returns how many."""
    rows = rows[label[rows] >= 0]
    names = [source.ids[r] for r in rows]
    taken = np.argsort(_keys("foundation noise", seed, names), kind="stable")[: int(np.floor(noise * len(rows) + 0.5))]
    classes = len(source.classes)
    # A step of 1 to C - 1 around the circle of classes never ends where it began.
    step = 1 + (_keys("foundation class", seed, [names[i] for i in taken]) % np.uint64(classes - 1)).astype(np.int64)
    label[rows[taken]] = (label[rows[taken]] + step) % classes
    return len(taken)


def _tell(file: str, label: np.ndarray, source: AnySource, split: Split, training: np.ndarray, warn: Say, note: Say) -> None:
    """Coverage of the training rows and agreement with the split's own labels, and what is odd about them."""
    bare = training[label[training] < 0]
    if len(bare):
        warn(f"training {source.samples} without a foundation label in {file}: {_named([source.ids[r] for r in bare], len(training))}")
    told = f"foundation labels: {file} labels {len(training) - len(bare)} of {len(training)} training {source.samples}"
    there = label[split.labelled] >= 0
    both, right = int(there.sum()), int((label[split.labelled] == split.label).sum())
    if both:
        told += f" and agrees with {right} of {both} labelled ones ({100 * right / both:.1f} %)"
    else:
        told += f" and none of the {len(split.labelled)} labelled ones, so agreement is unknown"
    note(told)
    classes = len(source.classes)
    # Twice chance is all of it for two classes; three quarters is halfway there.
    if both and right / both < max(0.5, min(2 / classes, 0.75)):
        warn(
            f"foundation labels of {file} agree with {right} of {both} labelled {source.samples} ({100 * right / both:.1f} %, chance is "
            f"{100 / classes:.1f} %); look whether classes are mixed up"
        )
    never = sorted(set(range(classes)) - set(label[training].tolist()))
    if never:
        warn(f"classes that {file} never names among the training {source.samples}: {_named([source.classes[c] for c in never], classes)}")
