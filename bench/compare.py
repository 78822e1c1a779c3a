"""What moved between two runs of the benchmark: `python -m bench.compare A.json B.json`, both written by --benchmark-json.

For each row that both files hold: median of A and of B, their ratio (A / B; above 1: B is faster), and whether it is more than noise. A row
has moved where its medians lie further apart than half of both interquartile ranges together, and by more than `--least` (5 %) as well.
Ratios to peers that both files hold are compared by their quartiles likewise: they stand on paired rounds, and where the machines differ
they alone mean anything. The exit code is 0, or 1 with `--strict` where a row became slower; 2 for files that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


class BadFile(ValueError):
    """A file that is no report of pytest-benchmark."""


class Value(NamedTuple):
    """A median and half of its interquartile range."""

    middle: float
    noise: float


class Change(NamedTuple):
    row: str
    what: str
    a: Value
    b: Value
    gain: float  # above 1: B is better
    verdict: str  # faster, slower or noise


def read(path: Path) -> dict[str, Any]:
    """Row name -> its record, and "machine_info" of the file under "".

    Raises:
        BadFile: with one sentence.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}; give a file that --benchmark-json wrote") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadFile(f"{path} is not JSON ({error}); give a file that --benchmark-json wrote") from None
    rows = report.get("benchmarks") if isinstance(report, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and {"name", "stats"} <= r.keys() for r in rows):
        raise BadFile(f"{path} holds no list of benchmarks; give a file that pytest bench --benchmark-only --benchmark-json=FILE wrote")
    if not rows:
        raise BadFile(f"{path} holds no rows; was everything skipped or deselected?")
    for row in rows:
        numbers = [row["stats"].get(key) for key in ("median", "iqr")] if isinstance(row["stats"], dict) else []
        if len(numbers) != 2 or not all(isinstance(n, int | float) for n in numbers) or numbers[0] <= 0:
            raise BadFile(f"{path}: row {row['name']} has no median and spread; give a file that --benchmark-json wrote")
    return {"": report.get("machine_info") or {}, **{row["name"]: row for row in rows}}


def values(row: dict[str, Any]) -> dict[str, Value]:
    """What a row measured: its time in seconds, and its ratios to peers."""
    stats, info = row["stats"], row.get("extra_info") or {}
    calls = info.get("steps_a_round", 1)  # a round of a step's row is several steps
    found = {"median s": Value(stats["median"] / calls, stats["iqr"] / 2 / calls)}
    for key, middle in info.items():
        low, high = info.get(f"{key}_low"), info.get(f"{key}_high")
        if key.startswith("ratio") and isinstance(middle, float) and low is not None and high is not None:
            found[key] = Value(middle, (high - low) / 2)
    return found


def change(row: str, what: str, a: Value, b: Value, least: float) -> Change:
    gain = a.middle / b.middle if what == "median s" else b.middle / a.middle
    apart = abs(a.middle - b.middle)
    moved = apart > a.noise + b.noise and abs(gain - 1) > least
    return Change(row, what, a, b, gain, ("faster" if gain > 1 else "slower") if moved else "noise")


def compare(first: dict[str, Any], second: dict[str, Any], least: float) -> list[Change]:
    """All changes of rows that both reports hold, in the order of the first.

    Raises:
        BadFile: no row is in both.
    """
    found = []
    for name, row in first.items():
        if name and name in second:
            before, after = values(row), values(second[name])
            found += [change(name, what, before[what], after[what], least) for what in before if what in after]
    if not found:
        raise BadFile("the two files have no row in common; compare runs of the same bench files")
    return found


def table(changes: list[Change]) -> list[str]:
    width = max(len(f"{c.row} {c.what}") for c in changes)
    lines = [f"{'row':<{width}}  {'A':>11} {'+-':>9}  {'B':>11} {'+-':>9}  {'gain':>6}"]
    for c in changes:
        name = f"{c.row} {c.what}"
        lines.append(
            f"{name:<{width}}  {c.a.middle:>11.5g} {c.a.noise:>9.2g}  {c.b.middle:>11.5g} {c.b.noise:>9.2g}  {c.gain:>6.2f}  {c.verdict}"
        )
    return lines


def machines(first: dict[str, Any], second: dict[str, Any]) -> str | None:
    """A warning where both reports come of different machines, else None."""
    words = [(m.get("node"), (m.get("cpu") or {}).get("brand_raw"), (m.get("cpu") or {}).get("count")) for m in (first[""], second[""])]
    return None if words[0] == words[1] else f"the files come of different machines, {words[0]} and {words[1]}: trust the ratios alone"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    parser.add_argument("--least", type=float, default=0.05, help="smallest change that counts, as a share (0.05)")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a row became slower")
    args = parser.parse_args(argv)
    try:
        first, second = read(args.a), read(args.b)
        changes = compare(first, second, args.least)
    except BadFile as error:
        print(error, file=sys.stderr)
        return 2
    warning = machines(first, second)
    if warning:
        print(warning)
    print("\n".join(table(changes)))
    for label, one, other in (("A", first, second), ("B", second, first)):
        missing = [name for name in one if name and name not in other]
        if missing:
            print(f"only in {label}: {', '.join(missing)}")
    slower = [c for c in changes if c.verdict == "slower"]
    print(f"{len(changes)} values: {sum(c.verdict == 'faster' for c in changes)} faster, {len(slower)} slower, the rest within noise")
    return 1 if slower and args.strict else 0


if __name__ == "__main__":
    sys.exit(main())
