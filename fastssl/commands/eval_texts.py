"""`fastssl eval` of a run on texts: its own test rows, or the labelled rows of another table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..engine.inference import Trained
    from ..pipelines.text_columns import TextTable


class Labelled(NamedTuple):
    """Texts with the numbers of their classes."""

    texts: list[str]
    label: list[int]
    warnings: list[str]


def table_of(args: argparse.Namespace, config: RunConfig, path: str) -> tuple[TextTable, str]:
    """A table that a run on texts is given, and the column of its texts: --text-column, or the run's own.

    Raises:
        ConfigError: no table. DataError: it cannot be read, or has no such column.
    """
    from ..pipelines.errors import ConfigError, DataError
    from ..pipelines.text_table import SUFFIXES, is_table, read_file

    if not is_table(path):
        raise ConfigError(f"{args.run} reads texts, and {path} is no table of them; give a file that ends in {', '.join(SUFFIXES)}")
    table = read_file(path)
    column = args.text_column or config.data.text_column
    return table, demanded(table, column, "--text-column", DataError)


def demanded(table: TextTable, name: str, flag: str, error: type[Exception]) -> str:
    """A column's name as the table has it. Raises `error` with the flag that names another."""
    name = name.strip().lower()
    if name not in table.columns:
        raise error(f"{table.where} has no column '{name}' (it has {', '.join(table.columns)}); {flag} NAME names another")
    return name


def other_rows(args: argparse.Namespace, config: RunConfig, trained: Trained) -> Labelled:
    """The labelled rows of --data; of a table whose column `part` names test rows, those alone. Texts that are empty are told of.

    Raises:
        ConfigError: no table. DataError: labels that the run never saw, with their lines, or texts that cannot be read.
    """
    from ..pipelines import text_columns as columns
    from ..pipelines.errors import DataError, unknown

    table, text_column = table_of(args, config, args.data)
    label_column = demanded(table, args.label_column or config.data.label_column, "--label-column", DataError)
    problems = list(table.problems)
    texts = columns.texts_of(table, text_column, problems)
    labels = columns.labels_of(table, label_column, problems)
    tested = columns.tested(table, problems)
    number = {name: c for c, name in enumerate(trained.classes)}
    problems += [
        (place, unknown("class", label, trained.classes, "the run"))
        for label, place in zip(labels, table.places, strict=True)
        if label and label not in number
    ]
    if problems:
        raise DataError(f"{table.where} does not fit {args.run}; correct these lines:", sorted(problems, key=_line))
    wanted = [row for row, label in enumerate(labels) if label and (tested[row] or not any(tested))]
    kept = [row for row in wanted if texts[row]]
    lost = len(wanted) - len(kept)
    warnings = [f"{lost} of {len(wanted)} labelled texts of {table.where} are empty and left out"] if lost else []
    return Labelled([texts[row] for row in kept], [number[labels[row]] for row in kept], warnings)


def _line(problem: tuple[str, str]) -> tuple[int, str]:
    digits = problem[0].replace(":", " ").split()[-1]
    return (int(digits) if digits.isdigit() else 0, problem[0])


def measured(
    trained: Trained, rows: Labelled, amp: str, epsilons: tuple[float, ...]
) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, int]]:
    """([N, C] logits of each network, its logits of the texts moved by each epsilon, and how many texts nothing moved)."""
    import torch

    from ..engine.text_inference import attacked_texts, reader_of, text_logits

    reader, target = reader_of(trained), torch.tensor(rows.label)
    logits = {name: text_logits(network, reader, rows.texts, amp) for name, network in trained.networks.items()}
    attacked: dict[str, list[Any]] = {name: [] for name in trained.networks}
    unmoved = dict.fromkeys(trained.networks, 0)
    for name, network in trained.networks.items() if epsilons else ():
        attacked[name], unmoved[name] = attacked_texts(network, reader, rows.texts, target, amp, epsilons)
    return logits, attacked, unmoved
