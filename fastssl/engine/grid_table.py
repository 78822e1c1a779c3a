"""The table of a sweep: a row for each method, variant and setting, its figures over seeds, as CSV, Markdown, PNG and JSON."""

from __future__ import annotations

import csv
import datetime
import importlib.util
import io
import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import __version__, environment
from .grid import Cell, record_of, result_of
from .report import write_atomically

# Shares of a run's last report, whose means in per cent are shown where any run has them: key of the result -> heading.
EXTRAS = {
    "kept": "kept %",
    "pseudo_accuracy": "pseudo-label accuracy %",
    "pseudo_bias": "pseudo-label bias %",
    "foundation_agreement": "foundation agreement %",
}


@dataclass
class Row:
    """Runs that differ by their seed alone.

    Attributes:
        results: seed -> result of a finished run. failures: seed -> (name of the run, exit code, reason).
    """

    method: str
    variant: str | None
    settings: dict[str, str]
    seeds: list[int] = field(default_factory=list)
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[int, tuple[str, int, str]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        named = [self.method] if self.variant is None else [self.method, self.variant]
        return ", ".join([*named, *(f"{short} {value}" for short, value in self.settings.items())])

    def figures(self) -> dict[str, Any]:
        """n (runs judged); accuracy, deviation, ece and EXTRAS in per cent; median of training seconds; None where there is none."""
        judged = [r["accuracy"] for r in self.results.values() if r["accuracy"] is not None]
        out: dict[str, Any] = {
            "n": len(judged),
            "accuracy": 100 * statistics.mean(judged) if judged else None,
            "deviation": 100 * statistics.stdev(judged) if len(judged) > 1 else None,
            "seconds": statistics.median(r["seconds"] for r in self.results.values()) if self.results else None,
            "ece": self._mean("ece"),
        }
        return out | {key: self._mean(key) for key in EXTRAS}

    def _mean(self, key: str) -> float | None:
        found = [r[key] for r in self.results.values() if r.get(key) is not None]
        return 100 * statistics.mean(found) if found else None


def short_names(keys: list[str]) -> dict[str, str]:
    """Dotted key -> its last part, where no other key ends in the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def collect(cells: list[Cell], root: Path) -> list[Row]:
    """Rows in the order of the cells, with what is on disk now."""
    rows: dict[tuple, Row] = {}
    short = short_names(varying(cells))
    for cell in cells:
        key = (cell.method, cell.variant, cell.settings)
        row = rows.setdefault(key, Row(cell.method, cell.variant, {short[k]: value for k, value in cell.settings}))
        row.seeds.append(cell.seed)
        result = result_of(cell, root)
        if result is not None:
            row.results[cell.seed] = result
        elif failure := (record_of(cell, root) or {}).get("failure"):
            row.failures[cell.seed] = (cell.name, failure["exit_code"], failure["reason"])
    return list(rows.values())


def varying(cells: list[Cell]) -> list[str]:
    """Dotted keys of the settings that vary, in the order of the command."""
    return list(dict.fromkeys(key for cell in cells for key, _ in cell.settings))


def cells_of(rows: list[Row]) -> tuple[list[str], list[list[Any]]]:
    """(headings, values) of the table, numbers unrounded, None where there is nothing to show."""
    settings = list(dict.fromkeys(name for row in rows for name in row.settings))
    seeds = list(dict.fromkeys(seed for row in rows for seed in row.seeds))
    figures = [row.figures() for row in rows]
    extras = [key for key in EXTRAS if any(f[key] is not None for f in figures)]
    variants = any(row.variant is not None for row in rows)
    headings = ["method", *(["variant"] if variants else []), *settings, "n", "accuracy %", "std"]
    headings += [f"seed {seed}" for seed in seeds] + ["seconds", "ECE %", *(EXTRAS[key] for key in extras)]
    body = []
    for row, f in zip(rows, figures, strict=True):
        named = [row.method, *([row.variant] if variants else []), *(row.settings.get(name) for name in settings)]
        each = [100 * a if (a := row.results.get(seed, {}).get("accuracy")) is not None else None for seed in seeds]
        body.append([*named, f["n"], f["accuracy"], f["deviation"], *each, f["seconds"], f["ece"], *(f[key] for key in extras)])
    return headings, body


def as_markdown(rows: list[Row]) -> str:
    """The table, and under it a line for each run that failed and for rows that nothing could be judged by."""
    headings, body = cells_of(rows)
    rounded = {"n": "{}", "seconds": "{:.1f}"}

    def shown(heading: str, value: Any) -> str:
        if value is None:
            return "-"
        return value.replace("|", "\\|") if isinstance(value, str) else rounded.get(heading, "{:.2f}").format(value)

    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(shown(h, v) for h, v in zip(headings, line, strict=True)) + " |" for line in body]
    notes = [f"- {name} failed (exit {code}): {reason}" for row in rows for name, code, reason in row.failures.values()]
    for why in dict.fromkeys(r["why_no_accuracy"] for row in rows for r in row.results.values() if r["accuracy"] is None):
        notes.append(f"- runs without accuracy: {why}")
    return "\n".join([*lines, *([""] if notes else []), *(note.replace("\n", " ") for note in notes)])


def as_csv(rows: list[Row]) -> str:
    """The same figures unrounded, with how many runs of a row failed."""
    headings, body = cells_of(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*headings, "failed"])
    writer.writerows([*("" if value is None else value for value in line), len(row.failures)] for row, line in zip(rows, body, strict=True))
    return out.getvalue()


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as JSON holds them; accuracies a seed in per cent."""
    out = []
    for row in rows:
        each = {str(seed): None if r["accuracy"] is None else 100 * r["accuracy"] for seed, r in row.results.items()}
        failures = [{"run": name, "exit_code": code, "reason": reason} for name, code, reason in row.failures.values()]
        named = {"method": row.method, "variant": row.variant, "settings": row.settings}
        out.append({**named, **row.figures(), "accuracies": each, "failures": failures})
    return out


def about(command: str, jobs: int) -> str:
    """Command, date, hardware and versions, as Markdown."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    threads = torch.get_num_threads() if jobs == 1 else max(1, torch.get_num_threads() // jobs)
    many = f"{jobs} processes of {threads} threads" if jobs > 1 else f"{threads} threads"
    hardware = f"{processor()}, {environment.cpu_count()} cores, {many}" + "".join(f", {name}" for name in cuda)
    versions = f"fastssl {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    explained = "Accuracy on the test part in per cent: mean and sample standard deviation over n seeds; median seconds of training."
    return f"```sh\n{command}\n```\n\n{datetime.date.today()}, {hardware}; {versions}.\n{explained}"


def processor() -> str:
    """The processor's name, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def drawable() -> bool:
    """Whether matplotlib, which draws table.png, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write(rows: list[Row], root: Path, command: str, *, jobs: int = 1, picture: bool = True) -> None:
    """table.md, table.csv and, where it is asked for and matplotlib is installed, table.png."""
    write_atomically(root / "table.md", f"{about(command, jobs)}\n\n{as_markdown(rows)}\n")
    write_atomically(root / "table.csv", as_csv(rows))
    if picture and drawable():
        draw(rows, root / "table.png")


def draw(rows: list[Row], path: Path) -> None:
    """Horizontal bars of mean accuracy with standard deviations, a row each, to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures = [row.figures() for row in rows]
    means = [f["accuracy"] for f in figures]
    known = [(m - (f["deviation"] or 0), m + (f["deviation"] or 0)) for m, f in zip(means, figures, strict=True) if m is not None]
    low = min((a for a, _ in known), default=0)
    # Rows that lie close together are told apart by an axis that does not begin at 0; it says so.
    left = 0 if low < 50 else max(0, 10 * (low // 10) - 10 if low % 10 < 3 else 10 * (low // 10))
    figure = Figure(figsize=(9, 1.1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(row.method for row in rows))
    for place, (row, f) in enumerate(zip(rows, figures, strict=True)):
        if f["accuracy"] is None:
            axes.text(left, place, " no accuracy", va="center", fontsize=8)
            continue
        colour = f"C{methods.index(row.method) % 10}"
        spread = {"xerr": f["deviation"], "capsize": 3, "ecolor": "black"} if f["deviation"] is not None else {}
        axes.barh(place, f["accuracy"] - left, left=left, height=0.7, color=colour, alpha=0.8, **spread)
        said = f"{f['accuracy']:.2f}" + (f" ± {f['deviation']:.2f}" if f["deviation"] is not None else "")
        axes.text(1.01, place, f"{said} ({f['n']})", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    # Rows differ at their ends: what is too long loses its middle.
    labels = [row.label if len(row.label) <= 80 else f"{row.label[:35]} ... {row.label[-40:]}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left, max([100, *(b for _, b in known)]) if left else 100)
    axes.set_xlabel("test accuracy in %" + (f", from {left:.0f}" if left else "") + ": mean ± standard deviation (runs)", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=120)
    os.replace(temporary, path)
