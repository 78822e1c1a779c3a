"""The GPU benchmark's results as text: where they were made, one line a record, and the Markdown file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess

import torch

from ._timing import Machine
from .gpu_checks import Outcome

PEERS = ("eager", "compile", "compile_closed", "liger", "copy", "official", "sync_free")
NOTES = """\
Times are medians of CUDA-event times a call, IQR their interquartile range, entrants in turns within one process; the L2 is swept by
reading before each measurement, and input sets rotate. "x peer" is the peer's time over ours, median of the rounds: above 1, ours is
faster; "x copy" is against a device copy of the row's least bytes in the same rounds. Liger writes its gradient over the logits: it gets
a copy of them for each call, whose cost is outside the time. It asks the device for values, so no CUDA graph can hold it.

Least bytes: (2 N C for the loss, 3 N C with its gradient) * itemsize + 20 N. "% of copy" is on these; "% moved" is on 4 N C for ours by
autograd, whose backward pass reads the student again; "% unread" is on the moved bytes less the student rows of weight 0, for a kernel
that skips reading them (then "% of copy" flatters it). All three are of the copy bandwidth measured in this run. Launches are nodes of
the captured graph a call: kernels, copies, memsets. Memory is what one call adds at its peak, its gradient included."""


def environment(machine: Machine, commit: str) -> dict[str, str]:
    facts = {"date": str(datetime.date.today()), "device": platform.processor() or platform.machine(), "commit": commit}
    if machine.cuda:
        facts["device"] = torch.cuda.get_device_name(machine.device)
        facts["L2"] = f"{machine.l2 / 2**20:.0f} MB"
        facts["driver"] = _driver(machine.device.index)
    for name in ("torch", "triton", "liger-kernel"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    facts["CUDA"] = str(torch.version.cuda)
    facts["Python"] = platform.python_version()
    facts["FASTSSL_KERNELS"] = os.environ.get("FASTSSL_KERNELS", "not set")
    return facts


def _driver(index: int) -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={index}"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def stem(facts: dict[str, str]) -> str:
    """ "NVIDIA H200" on a day -> "losses-nvidia-h200-2026-11-21"."""
    return f"losses-{re.sub(r'[^a-z0-9]+', '-', facts['device'].lower()).strip('-')}-{facts['date']}"


def line(record: dict) -> str:
    """A record in one line."""
    parts = [record["case"], record["name"], record["mode"], record["status"]]
    if "us" in record:
        parts.append(f"{record['us']:.2f} us (IQR {record['iqr_us']:.2f})")
    parts += [f"{record[key]:.0f} {unit}" for key, unit in (("gb_per_s", "GB/s"), ("tflop_per_s", "TFLOP/s")) if key in record]
    parts += [f"x {name} {value:.2f}" for name, value in record.get("ratio_to", {}).items()]
    if "launches" in record:
        parts.append(f"{record['launches']:g} launches")
    return "  ".join([*filter(None, parts), *([record["why"]] if "why" in record else [])])


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def _number(record: dict, key: str, form: str, scale: float = 1.0) -> str:
    return format(record[key] * scale, form) if key in record else ""


def timings(records: list[dict], copy: float | None) -> list[str]:
    """One table of records that share form and mode; columns that are empty throughout are left out."""
    head = ["N x C", "dtype", "implementation", "us", "IQR", *(f"x {name}" for name in PEERS), "GB/s", "% of copy", "% moved", "% unread"]
    head += ["launches", "extra MB", "kept", "sets x calls"]
    rows = []
    for r in records:
        shape = f"{r['rows_n']} x {r['classes']}" if "rows_n" in r else r["case"]
        cells = [shape, r.get("dtype", ""), r["name"], _number(r, "us", ".2f") or r["status"], _number(r, "iqr_us", ".2f")]
        cells += [format(r["ratio_to"][name], ".2f") if name in r.get("ratio_to", {}) else "" for name in PEERS]
        cells.append(_number(r, "gb_per_s", ".0f"))
        cells += [_number(r, key, ".1f", 100 / copy) if copy else "" for key in ("gb_per_s", "moved_gb_per_s", "unread_gb_per_s")]
        cells += [_number(r, "launches", "g"), _number(r, "peak_extra_bytes", ".2f", 1e-6), _number(r, "kept", ".2f")]
        cells.append(f"{r['sets']} x {r['calls']}" if "sets" in r else "")
        rows.append(cells)
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table([head[i] for i in used], [[row[i] for i in used] for row in rows])


def markdown(facts: dict[str, str], outcomes: list[Outcome], records: list[dict], not_run: list[str]) -> str:
    copy = next((r["gb_per_s"] for r in records if r["form"] == "ceiling" and r["name"] == "copy"), None)
    lines = [f"# Losses on {facts['device']}", "", "Made by `python -m bench.gpu_losses`.", ""]
    lines += table(["", ""], [[key, value] for key, value in facts.items()])
    if outcomes:
        lines += [
            "## Checks",
            "",
            *table(["check", "outcome", "what", "s"], [[o.name, o.status, _cell(o.detail), f"{o.seconds:.1f}"] for o in outcomes]),
        ]
    timed = [r for r in records if r["status"] == "ok" and r["form"] != "ceiling"]
    if timed:
        lines += ["## Timings", "", NOTES, ""]
    for form in dict.fromkeys(r["form"] for r in timed):
        for mode in dict.fromkeys(r["mode"] for r in timed if r["form"] == form):
            lines += [f"### {form}, {mode}", "", *timings([r for r in timed if (r["form"], r["mode"]) == (form, mode)], copy)]
    for status in ("failed", "skipped"):
        bad = [r for r in records if r["status"] == status]
        if bad:
            lines += [f"## {status.capitalize()}", "", *table(["row", "implementation", "mode", "why"], [_why(r) for r in bad])]
    if not_run:
        lines += ["## Not run: the time was out, or the device lost", "", *(f"* {title}" for title in not_run), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _why(record: dict) -> list[str]:
    return [record["case"], record["name"], record["mode"], _cell(record["why"])]
