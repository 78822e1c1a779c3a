"""Tables of texts -> TextSource: ids, classes, parts and copies, checked over all tables at once."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from . import text_columns as columns
from .choice import Choice
from .errors import ConfigError, DataError, unknown
from .quarantine import counted
from .source import EXTRA
from .table import Problems
from .text_columns import TextTable
from .text_source import TextSource, content_of

TEST = "test:"  # before the ids of test rows where the training table has such ids too


class Rows(NamedTuple):
    """Rows of a table that have a text; `quarantine` has (id, reason) of the others."""

    ids: list[str]
    texts: list[str]
    places: list[str]
    quarantine: list[tuple[str, str]]


def rows_of(table: TextTable, text_column: str, max_bad: float) -> Rows:
    """Ids and texts, whatever else the table holds. Raises DataError for faulty texts, and for more empty ones than the share `max_bad`."""
    problems = list(table.problems)
    ids, texts = columns.ids_of(table, problems), columns.texts_of(table, text_column, problems)
    _refuse([table], problems)
    bad = _empty(table, ids, texts, max_bad)
    kept = [row for row, text in enumerate(texts) if text]
    return Rows([ids[r] for r in kept], [texts[r] for r in kept], [table.places[r] for r in kept], bad)


class _Joined:
    """All rows of the training table and the test table, one after the other, those without a text among them."""

    def __init__(self, train: TextTable, test: TextTable | None, text_column: str, label_column: str):
        self.problems: Problems = [*train.problems]
        self.warnings: list[str] = []
        self.places = list(train.places)
        self.ids = columns.ids_of(train, self.problems)
        self.texts = columns.texts_of(train, text_column, self.problems)
        self.label = columns.labels_of(train, label_column, self.problems)
        self.test = columns.tested(train, self.problems)
        self.augmented = columns.augmented_of(train, self.problems)
        self._tell_unread(train, (text_column, label_column, "id", "part"))
        if test is not None:
            self._join(test, text_column, label_column)
        for name, place in zip(self.ids, self.places, strict=True):
            if name.startswith(EXTRA):
                self.problems.append((place, f"id '{name}' begins with '{EXTRA}', which marks texts of --extra-unlabelled; rename it"))
        rows = zip(self.label, self.texts, self.test, strict=True)
        self.classes = sorted({name for name, text, tested in rows if name and text and not tested})
        self._check_test()

    def _join(self, test: TextTable, text_column: str, label_column: str) -> None:
        self.problems += test.problems
        ids = columns.ids_of(test, self.problems)
        if not set(ids).isdisjoint(self.ids):
            ids = [TEST + name for name in ids]
            taken = set(self.ids)
            clash = [
                (place, f"id '{name}' is a training row's; rename it")
                for name, place in zip(ids, test.places, strict=True)
                if name in taken
            ]
            self.problems += clash
        self.ids += ids
        self.places += test.places
        self.texts += columns.texts_of(test, text_column, self.problems)
        self.label += columns.labels_of(test, label_column, self.problems)
        self.test += [True] * len(ids)
        self.augmented = [other + [""] * len(ids) for other in self.augmented]
        self._tell_unread(test, (text_column, label_column, "id"))

    def _tell_unread(self, table: TextTable, read: tuple[str, ...]) -> None:
        names = columns.unread(table, read)
        if names:
            self.warnings.append(f"columns of {table.where} that are not read: {', '.join(names)}")

    def _check_test(self) -> None:
        for text, tested, place in zip(self.label, self.test, self.places, strict=True):
            if tested and not text:
                self.problems.append((place, "has no label, and a test text needs one"))
            elif tested and self.classes and text not in self.classes:
                self.problems.append((place, unknown("class", text, self.classes, "the training texts")))

    def check_copies(self, rows: np.ndarray, content: np.ndarray) -> None:
        """Copies within a part: of two labels they are faults, of one they are told of. rows [n]: of the part; content [n]: theirs."""
        first: dict[int, int] = {}  # content -> its first row that has a label
        for row, mark in zip(rows.tolist(), content.tolist(), strict=True):
            if self.label[row] and self.label[first.setdefault(mark, row)] != self.label[row]:
                before = first[mark]
                self.problems.append(
                    (
                        self.places[row],
                        f"is labelled '{self.label[row]}', and its copy {self.places[before]} '{self.label[before]}'; keep one",
                    )
                )
        _, place, copies = np.unique(content, return_index=True, return_counts=True)
        if (copies > 1).any():
            part = "test" if self.test[int(rows[0])] else "training"
            again = np.delete(rows, place)
            named = counted([self.ids[row] for row in again])
            self.warnings.append(f"{part} texts that repeat an earlier one, case and white space aside: {named}; they are kept")

    def tell_classes(self) -> None:
        folded: dict[str, list[str]] = {}
        for name in self.classes:
            folded.setdefault(name.casefold(), []).append(name)
        alike = [" and ".join(names) for names in folded.values() if len(names) > 1]
        if alike:
            self.warnings.append(f"classes that differ in case alone: {', '.join(alike)}; correct the labels if they are meant as one")


def assembled(
    train: TextTable, test: TextTable | None, extra: TextTable | None, text_column: str, label_column: str, max_bad: float
) -> TextSource:
    """One set of up to three tables; see `text_table.load_table`."""
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"--max-bad {max_bad} is out of range; give a share between 0 and 1")
    if text_column.strip().lower() == label_column.strip().lower():
        raise ConfigError(f"data.text_column and data.label_column are both '{text_column}'; texts and labels are two columns")
    all_of = _Joined(train, test, text_column, label_column)
    if test is not None and any(all_of.test[: len(train.places)]):
        raise ConfigError(f"{train.where} has test rows of its own, by its column part; leave out --test, or that column")
    problems = all_of.problems
    more = ([], []) if extra is None else (columns.numbered(extra), columns.texts_of(extra, text_column, problems))
    problems += [] if extra is None else extra.problems

    kept = np.array([row for row, text in enumerate(all_of.texts) if text], np.int64)
    texts = [all_of.texts[row] for row in kept]
    content, tested = content_of(texts), np.array(all_of.test, np.bool_)[kept]
    for part in (~tested, tested):
        all_of.check_copies(kept[part], content[part])
    tables = [table for table in (train, test, extra) if table is not None]
    if problems:  # empty texts are told of with the rest
        for table, own in ((train, all_of.texts[: len(train.places)]), (test, all_of.texts[len(train.places) :]), (extra, more[1])):
            blank = [] if table is None else _blank(table, own)
            told = {place for place, _ in problems}
            problems += [one for one in blank if one[0] not in told] if len(blank) > max_bad * len(own) else []
    _refuse(tables, problems)
    if not all_of.classes:
        raise DataError(f"{train.where} has no label at all in its column '{label_column}'; label some texts of each class")
    if len(all_of.classes) < 2:
        raise DataError(f"{train.where} has one class, '{all_of.classes[0]}'; a classifier needs at least two")
    all_of.tell_classes()
    quarantine = []
    for table, at in ((train, 0), (test, len(train.places))):
        if table is not None:
            own = slice(at, at + len(table.places))
            quarantine += _empty(table, all_of.ids[own], all_of.texts[own], max_bad)
    lost = {name for name, _ in quarantine}
    lost = [
        name for name, text, tested_ in zip(all_of.ids, all_of.label, all_of.test, strict=True) if text and not tested_ and name in lost
    ]
    number = {name: c for c, name in enumerate(all_of.classes)}
    label = np.array([number.get(all_of.label[row], -1) for row in kept], np.int64)
    source = TextSource(
        name=train.name,
        classes=tuple(all_of.classes),
        ids=[all_of.ids[row] for row in kept],
        label=label,
        given=(label >= 0) & ~tested,
        test=tested,
        texts=texts,
        content=content,
        augmented=tuple([other[row] for row in kept] for other in all_of.augmented),
        quarantine=quarantine,
        warnings=all_of.warnings,
    )
    if quarantine:
        source.warnings.append(f"empty texts, left out of {len(all_of.ids)}: {counted([name for name, _ in quarantine])}")
    if lost:
        source.warnings.append(f"labels lost with empty texts: {counted(lost)}")
    if extra is not None:
        _append(source, extra, [EXTRA + name for name in more[0]], more[1], max_bad)
    source.choice = Choice("resident", f"{len(source):,} texts are held in memory as token ids")
    return source


def _append(source: TextSource, table: TextTable, ids: list[str], texts: list[str], max_bad: float) -> None:
    """Adds texts from elsewhere as unlabelled rows, those left out that are empty or in the test part."""
    bad = _empty(table, ids, texts, max_bad)
    kept = np.array([row for row, text in enumerate(texts) if text], np.int64)
    content = content_of(texts[row] for row in kept)
    copies = np.isin(content, source.content[source.test])
    if bad:
        source.quarantine += bad
        source.warnings.append(f"empty extra texts, left out of {len(texts)}: {counted([name for name, _ in bad])}")
    if copies.any():
        source.warnings.append(f"extra texts that are test texts, left out: {counted([ids[row] for row in kept[copies]])}")
    kept, content = kept[~copies], content[~copies]
    if not len(kept):
        raise DataError(f"--extra-unlabelled {table.where} holds no text but those of the test part; give another file, or leave it out")
    none = np.zeros(len(kept), np.bool_)
    source.ids += [ids[row] for row in kept]
    source.texts += [texts[row] for row in kept]
    source.label = np.concatenate([source.label, np.full(len(kept), -1, np.int64)])
    source.given, source.test = np.concatenate([source.given, none]), np.concatenate([source.test, none])
    source.content = np.concatenate([source.content, content])
    source.augmented = tuple(other + [""] * len(kept) for other in source.augmented)
    source.extra = len(kept)


def _refuse(tables: list[TextTable], problems: Problems) -> None:
    """Raises DataError for all problems, in the order of the tables and their rows."""
    if problems:
        parts = [re.fullmatch(r"(.*?)(\d*)", place, re.DOTALL).groups() for place, _ in problems]
        order = list(dict.fromkeys(file for file, _ in parts))
        keys = [(order.index(file), int(line or 0)) for file, line in parts]
        where = " and ".join(table.where for table in tables)
        lines = [problems[n] for n in sorted(range(len(problems)), key=keys.__getitem__)]
        raise DataError(f"{where} cannot be used as {'they are' if len(tables) > 1 else 'it is'}; correct these rows:", lines)


def _blank(table: TextTable, texts: list[str]) -> Problems:
    return [(place, "the text is empty") for place, text in zip(table.places, texts, strict=True) if not text]


def _empty(table: TextTable, ids: list[str], texts: list[str], max_bad: float) -> list[tuple[str, str]]:
    """(id, reason) of rows without a text. Raises DataError for more than the share `max_bad` of them, or all."""
    bad = [(name, f"the text is empty ({place})") for name, place, text in zip(ids, table.places, texts, strict=True) if not text]
    if len(bad) > max_bad * len(texts) or len(bad) == len(texts):
        share = f"{len(bad) / len(texts):.1%} where --max-bad allows {max_bad:.1%}"
        raise DataError(
            f"{len(bad)} of {len(texts)} texts in {table.where} are empty, {share}; fill in or remove those rows, or raise --max-bad:",
            _blank(table, texts),
        )
    return bad
