"""`fastssl predict` of a run on texts: tables, files with a text a line, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..pipelines.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ..engine.inference import Trained
    from ..pipelines.text_columns import TextTable

STDIN = "-"
LINES = ".txt"
CHUNK = 4096  # texts whose rows are held at a time


class Texts(NamedTuple):
    """Rows in the order of their files; a text is "" where there is none."""

    ids: list[str]
    texts: list[str]


def refuse_texts(paths: list[str], run: str) -> None:
    """Raises ConfigError where a run on images is given texts."""
    from ..pipelines.text_table import is_table

    for path in paths:
        if path == STDIN or (not Path(path).is_dir() and (is_table(path) or Path(path).suffix.lower() == LINES)):
            what = "standard input" if path == STDIN else path
            raise ConfigError(f"{run} reads images, and {what} holds texts; give images, folders of them, or a run on texts")


def read(paths: list[str], text_column: str, run: str) -> Texts:
    """The rows of all files, ids as `train --data` names them: the column `id`, or "reviews/000007" by the row's number.

    Raises:
        ConfigError: a folder, or a file of another kind. DataError: what cannot be read, every line of it, or no row at all.
    """
    from ..pipelines import text_columns as columns
    from ..pipelines.text_table import SUFFIXES, is_table, read_file
    from .eval_texts import demanded

    found = Texts([], [])
    for path in paths:
        if path == STDIN:
            table, column = lines_of(sys.stdin.buffer.read(), "stdin", "standard input"), "text"
        elif Path(path).suffix.lower() == LINES and Path(path).is_file():
            table, column = lines_of(Path(path).read_bytes(), Path(path).stem, path), "text"
        elif is_table(path):
            table = read_file(path)
            column = demanded(table, text_column, "--text-column", DataError)
        else:
            kind = "a folder" if Path(path).is_dir() else "no file of texts"
            raise ConfigError(
                f"{run} reads texts, and {path} is {kind}; give files that end in {', '.join((*SUFFIXES, LINES))} (a text a line), or - "
                "for standard input"
            )
        problems = list(table.problems)
        ids, texts = columns.ids_of(table, problems), columns.texts_of(table, column, problems)
        if problems:
            raise DataError(f"{table.where} cannot be read; correct these lines:", problems)
        found.ids.extend(ids)
        found.texts.extend(texts)
    if not any(found.texts):
        raise DataError(f"there is no text in {', '.join(paths)}")
    return found


def lines_of(data: bytes, name: str, where: str) -> TextTable:
    """A text a line as a table of one column; blank lines are empty texts."""
    from ..pipelines.text_columns import TextTable

    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = lines[:-1] if lines and not lines[-1].strip() else lines
    if not lines:
        raise DataError(f"{where} is empty; give a text a line")
    places = [f"{name}:{number}" for number in range(1, len(lines) + 1)]
    return TextTable(name, where, {"text": lines}, places, [])


def rows(given: Texts, trained: Trained, amp: str) -> Iterator[list[str]]:
    """One row a text: id, label, confidence, probability of each class; empty behind the id where there is no text."""
    from ..engine.text_inference import reader_of, text_logits
    from ..pipelines.table import guarded

    reader = reader_of(trained)
    for start in range(0, len(given.ids), CHUNK):
        texts = given.texts[start : start + CHUNK]
        answers = iter(text_logits(trained.network, reader, [text for text in texts if text], amp).double().softmax(dim=1).tolist())
        for name, text in zip(given.ids[start : start + CHUNK], texts, strict=True):
            if not text:
                yield [guarded(name), "", "", *[""] * len(trained.classes)]
                continue
            p = next(answers)
            top = max(range(len(p)), key=p.__getitem__)
            yield [guarded(name), guarded(trained.classes[top]), f"{p[top]:.6f}", *(f"{value:.6f}" for value in p)]
