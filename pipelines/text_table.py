"""Tables of texts as people bring them: CSV, TSV, Parquet and JSON-lines files, and tables in memory -> columns. The door to pyarrow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError, SetupError
from .table import Problems, header_problems, read_records
from .text_assembly import Rows, assembled, rows_of
from .text_columns import TextTable
from .text_source import TextSource

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")


def is_table(path: str | Path) -> bool:
    """Whether a path names a table of texts: by its suffix, unless it is a folder."""
    path = Path(path).expanduser()
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def load_table(
    path: str | Path,
    *,
    test: str | Path | None = None,
    extra: str | Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    max_bad: float = 0.01,
) -> TextSource:
    """Reads texts and their labels from a file: CSV (`,` `;` or tab between fields), TSV, Parquet (needs pyarrow) or JSON lines.

    Columns, in any case and order: the text; the label, blank where unknown; `id` names the rows; `part` says which of them are test
    rows; `text_aug_0`, `text_aug_1`, ... are other wordings. Further columns are told of and not read. Classes are the labels of the
    training rows, sorted. Rows whose text is empty are left out and told of.

    Args:
        path: the table.
        test: a table of test rows, each with a label that training has.
        extra: a table of more unlabelled texts; nothing but its texts is read, and those that are test texts are left out.
        text_column, label_column: what those columns are called, in any case.
        max_bad: largest share of each table's rows whose text may be empty, in [0, 1].

    Raises:
        ConfigError: no such file, another kind of file, or two test parts.
        DataError: what cannot be used as given, every line of it.
        SetupError: a Parquet file without pyarrow.
    """
    own = Path(path).expanduser()
    for flag, place in (("--test", test), ("--extra-unlabelled", extra)):
        other = None if place is None else Path(place).expanduser()
        if other is not None and own.exists() and other.exists() and other.samefile(own):
            raise ConfigError(f"{flag} {place} is the table of --data itself; give another file, or leave it out")
    files = [None if place is None else read_file(place) for place in (path, test, extra)]
    return assembled(*files, text_column, label_column, max_bad)


def from_table(
    table: Any,
    test: Any = None,
    *,
    extra: Any = None,
    name: str = "table",
    text_column: str = "text",
    label_column: str = "label",
    max_bad: float = 0.01,
) -> TextSource:
    """`load_table` of tables in memory.

    A table is a dict of columns, a list of dicts, or a data frame or table of pandas, polars, pyarrow or Hugging Face's datasets; of a
    dict of the latter, "train" and "test" are taken. `extra` may also be a list of texts. None, NaN and blank labels are unknown, and of
    a ClassLabel -1 too.

    Args:
        name: what the set is called; ids begin with it.
    """
    if isinstance(table, Mapping) and hasattr(table.get("train"), "column_names"):
        table, test = table["train"], table.get("test") if test is None else test
    if isinstance(extra, Sequence) and extra and isinstance(extra[0], str):
        extra = {text_column: extra}
    tables = [
        None if held is None else _held(held, part) for held, part in ((table, name), (test, f"{name}_test"), (extra, f"{name}_extra"))
    ]
    return assembled(*tables, text_column, label_column, max_bad)


def read_texts(path: str | Path, *, text_column: str = "text", max_bad: float = 0.01) -> Rows:
    """The texts of a file with their ids, whatever else it holds: for predictions. Raises as `load_table`."""
    return rows_of(read_file(path), text_column, max_bad)


def read_file(path: str | Path) -> TextTable:
    """The columns of a file.

    Raises:
        ConfigError, SetupError: as `load_table`. DataError: what cannot be read, every line of it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; texts come from a file ({', '.join(SUFFIXES)})")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path} is no table of texts; give a file that ends in {', '.join(SUFFIXES)}")
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    read = {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix.lower(), _csv)
    return read(path)


def _csv(path: Path) -> TextTable:
    tab = "\t" if path.suffix.lower() == ".tsv" else None
    found = read_records(path, ("text", "label", "id"), delimiter=tab, empty=True)
    if not found.header and not found.problems:
        raise DataError(f"{path} is empty; its first line names the columns, as in text,label")
    if not found.rows and not found.problems:
        raise DataError(f"{path} has no row below its header")
    problems = header_problems(found.columns, (), found.columns, f"{path.name}:{found.header}")
    lines = [line for line, _ in found.rows]
    fields = zip(*(row for _, row in found.rows), strict=True) if found.rows else ((),) * len(found.columns)
    columns = {name: list(column) for name, column in zip(found.columns, fields, strict=True)}
    return TextTable(path.stem, str(path), columns, [f"{path.name}:{line}" for line in lines], [*problems, *found.problems])


def _json_lines(path: Path) -> TextTable:
    """One object a line; a key that some lines lack is None there."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    problems: Problems = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.append((place, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"))
        except (ValueError, RecursionError) as error:
            problems.append((place, f"is not JSON ({error}); each line holds one object"))
        else:
            if isinstance(row, dict):
                rows.append({key.strip().lower(): value for key, value in row.items()})
                places.append(place)
            else:
                problems.append((place, 'is no JSON object; write {"text": ..., "label": ...}'))
    if not rows and not problems:
        raise DataError(f"{path} is empty; each line holds one JSON object, with the keys text and label")
    names = dict.fromkeys(key for row in rows for key in row)
    return TextTable(path.stem, str(path), {name: [row.get(name) for row in rows] for name in names}, places, problems)


def _parquet(path: Path) -> TextTable:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SetupError(f"{path} is Parquet, which needs pyarrow, and that is not installed; run: pip install pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from error
    # Bytes that are not UTF-8 are told of by row, so text is taken as bytes.
    texts = (pyarrow.types.is_string, pyarrow.types.is_large_string)
    schema = [field.with_type(pyarrow.large_binary()) if any(is_(field.type) for is_ in texts) else field for field in table.schema]
    return _held(table.cast(pyarrow.schema(schema)), path.stem, str(path), path.name)


def _held(table: Any, name: str, where: str | None = None, place: str | None = None) -> TextTable:
    """A table in memory; its rows are told by their numbers, from 1."""
    if isinstance(table, Sequence) and not isinstance(table, str):
        strange = next((row for row in table if not isinstance(row, Mapping)), None)
        if strange is not None:
            raise ConfigError(
                f"a row of {name} is a {type(strange).__name__}; a list of rows holds dicts, as {{'text': ..., 'label': ...}}"
            )
        names = dict.fromkeys(key for row in table for key in row)
        columns = {key: [row.get(key) for row in table] for key in names}
    else:
        names = table if isinstance(table, Mapping) else getattr(table, "column_names", getattr(table, "columns", None))
        if names is None or isinstance(table, str):
            raise ConfigError(
                f"{name} is a {type(table).__name__}; give a dict of columns, a list of dicts, or a table of pandas, polars, pyarrow or "
                "datasets (a file: load_table)"
            )
        columns = {key: _values(table[key]) for key in names}
        for key, feature in (getattr(table, "features", None) or {}).items():
            known = getattr(feature, "names", None)
            if known is not None and key in columns:  # a ClassLabel: positions in a list of names
                columns[key] = [known[value] if isinstance(value, int) and value >= 0 else value for value in columns[key]]
                columns[key] = [None if value == -1 else value for value in columns[key]]
    lengths = {str(key): len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of {name} differ in length: {', '.join(f'{key} {length}' for key, length in lengths.items())}")
    rows = next(iter(lengths.values()), 0)
    if not rows:
        raise DataError(f"{where or name} has no rows")
    lower = [str(key).strip().lower() for key in columns]
    problems = header_problems(lower, (), lower, place or name)
    places = [f"{place or name} row {number}" for number in range(1, rows + 1)]
    return TextTable(name, where or name, dict(zip(lower, columns.values(), strict=True)), places, problems)


def _values(column: Any) -> list[Any]:
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            return getattr(column, method)()
    return list(column)


__all__ = ["SUFFIXES", "from_table", "is_table", "load_table", "read_file", "read_texts"]
