"""The captured step on a CUDA device in one command: checks, then timings against the published practice, then a Markdown table.

    python -m bench.gpu_steps [--check | --no-check] [--seconds 540] [--only fixmatch_wrn282 captured] [--out DIR] [--commit HASH]

Checks (step_checks.py): captured steps equal eager ones, bitwise those launched by the host under deterministic algorithms; no
recompilation; no synchronisation inside a step; DALI by copy. Then (method_checks.py) captured against eager for every method of the
registry: `--only captured_equals_eager_`. Then the rows of bench_step.py, bench_run.py and bench_methods.py for a GPU, most wanted first;
the last are a row a method against FixMatch: `--only method_`. What the budget left out is named; `--only` takes these names.
A row that fails is printed, and makes the exit code 1; the rows after it still run. Rows are appended to a JSON-lines file as they
come; the Markdown file is written at the end, also when the budget of `--seconds` ran out (what was not run is listed).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from . import bench_methods, bench_run, bench_step, gpu_report, method_checks, step_checks
from ._timing import Machine, copy_gb_per_s, matmul_tflop_per_s
from .step_rows import Recorder, table_lines

RESERVE = 60.0  # seconds that a row with its compilation may take
FIRST = ("fixmatch_wrn282_separate_run", "finessl_vitb16_run", "fixmatch_wrn282", "finessl", "graph", "fixmatch_wrn288", "update", "method")


def rows_for(device: str) -> dict[str, Callable[[Any, Machine], None]]:
    """The rows of this kind of device by name, most wanted first."""

    def in_folder(row: Callable[[Any, Machine, Path], None]) -> Callable[[Any, Machine], None]:
        def call(benchmark: Any, machine: Machine) -> None:
            with tempfile.TemporaryDirectory() as folder:
                row(benchmark, machine, Path(folder) / "images")

        return call

    rows = {**bench_step.ROWS, **bench_methods.ROWS, **{name: in_folder(row) for name, row in bench_run.ROWS.items()}}
    chosen = [name for name in rows if name.endswith(f"_{device}")]
    place = lambda name: next((i for i, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))  # noqa: E731
    return {name: rows[name] for name in sorted(chosen, key=place)}


class Session:
    """Budget, progress lines, and what has come out so far."""

    def __init__(self, machine: Machine, seconds: float, rows_file: Path):
        self.machine, self.start, self.seconds, self.rows_file = machine, time.perf_counter(), seconds, rows_file
        rows_file.parent.mkdir(parents=True, exist_ok=True)
        rows_file.write_text("", encoding="utf-8")
        self.records: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.not_run: list[str] = []

    def enough(self) -> bool:
        return self.seconds - (time.perf_counter() - self.start) >= RESERVE and self.machine.alive()

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:6.1f} s] {text}", flush=True)

    def row(self, name: str, run: Callable[[Any, Machine], None]) -> None:
        """Runs one row if time and device allow. Whatever it raises makes it a failed one."""
        if not self.enough():
            self.not_run.append(name)
            return
        recorder = Recorder()
        self.say(name)
        try:
            run(recorder, self.machine)
        except Exception as error:
            traceback.print_exc()
            self.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            self.say(f"{name} failed: {self.failed[name]}")
        else:
            self.records[name] = recorder.extra_info
            for line in table_lines(name, recorder.extra_info):
                self.say(line)
        with self.rows_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": name, "failed": self.failed.get(name), **recorder.extra_info}) + "\n")
        gc.collect()
        torch._dynamo.reset()  # what one row compiled must not count against the next one's limits
        if self.machine.cuda and self.machine.alive():
            torch.cuda.empty_cache()


def markdown(facts: dict[str, str], outcomes: list[Any], session: Session) -> str:
    lines = [
        f"# Steps on {facts['device']}",
        "",
        "Made by `python -m bench.gpu_steps`; `bench/bench_step.py` says what the words mean.",
        "",
    ]
    lines += gpu_report.table(["", ""], [[key, value] for key, value in facts.items()])
    if outcomes:
        cells = [[o.name, o.status, " ".join(o.detail.replace("|", "/").split()), f"{o.seconds:.1f}"] for o in outcomes]
        lines += ["## Checks", "", *gpu_report.table(["check", "outcome", "what", "s"], cells)]
    cells = []
    for name, info in session.records.items():
        share = f"{info['percent_of_ceiling']:.0f}" if "percent_of_ceiling" in info else ""
        for key in [key for key in info if key.startswith("ratio_to_") and not key.endswith(("_low", "_high"))]:
            peer = key.removeprefix("ratio_to_")
            spread = f"{info[f'{key}_low']:.2f} to {info[f'{key}_high']:.2f}"
            goal = f"{info[f'goal_{peer}']:.2f}" if f"goal_{peer}" in info else ""
            times = [f"{info['ours_ms']:.3f}", share, peer, f"{info[f'{peer}_ms']:.3f}"]
            cells.append([name, str(info.get("batch", "")), *times, f"{info[key]:.2f}", spread, goal])
    head = ["row", "batch", "ours ms", "% of ceiling", "peer", "peer ms", "ratio", "quartiles", "goal"]
    if cells:
        lines += ["## Rows", "", "Ratios are medians over paired rounds, peer over ours: above 1, ours is faster.", ""]
        lines += gpu_report.table(head, cells)
    if session.failed:
        lines += ["## Failed", "", *gpu_report.table(["row", "why"], [[n, w.replace("|", "/")] for n, w in session.failed.items()])]
    if session.not_run:
        lines += ["## Not run: the time was out, or the device lost", "", *(f"* {name}" for name in session.not_run), ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true", help="the checks alone")
    which.add_argument("--no-check", action="store_true", help="the timings alone")
    parser.add_argument("--seconds", type=float, default=540, help="no check or row starts that this budget may not hold")
    parser.add_argument("--only", nargs="*", default=(), help="rows or checks whose name holds one of these: wrn288, finessl, captured ...")
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu runs the CPU rows, and compiled steps for captured ones"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "bench/results")), help="folder of the two files")
    parser.add_argument("--commit", default="not given", help="of the code that is timed")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu_steps needs a CUDA device; torch sees none", file=sys.stderr)
        return 2
    known = [*rows_for(args.device), *(check.__name__ for check in step_checks.CHECKS), *method_checks.CHECKS]
    strange = [part for part in args.only if not any(part in name for name in known)]
    if strange:
        print(f"--only {' '.join(strange)} is in no name; there are {', '.join(known)}", file=sys.stderr)
        return 2
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS wakes: the deterministic check needs it
    machine = Machine(args.device)
    wanted = lambda name: not args.only or any(part in name for part in args.only)  # noqa: E731
    facts = gpu_report.environment(machine, args.commit)
    stem = gpu_report.stem(facts).replace("losses-", "steps-", 1) + time.strftime("-%H%M%S")  # a part may be run again on the same day
    session = Session(machine, args.seconds, args.out / f"{stem}.jsonl")
    session.say("; ".join(f"{key} {value}" for key, value in facts.items()))
    outcomes = []
    if not args.no_check:
        rooms = (step_checks, method_checks)
        for outcome in chain.from_iterable(room.run_checks(machine, wanted, session.enough) for room in rooms):
            outcomes.append(outcome)
            session.say(f"check {outcome.name}: {outcome.status}, {outcome.detail} ({outcome.seconds:.1f} s)")
    if not args.check:
        if machine.cuda:
            facts["copy"] = f"{copy_gb_per_s(machine, 2**31).median:.0f} GB/s"
            facts["bf16 matmul"] = f"{matmul_tflop_per_s(machine, 8192).median:.0f} TFLOP/s"
        for name, run in rows_for(args.device).items():
            if wanted(name):
                session.row(name, run)
    report = args.out / f"{stem}.md"
    report.write_text(markdown(facts, outcomes, session), encoding="utf-8")
    failed = [o.name for o in outcomes if o.status == "failed"] + list(session.failed)
    session.say(f"{len(session.records)} rows, {len(failed)} failed, {len(session.not_run)} not run; {report}")
    for name in failed:
        print(f"failed: {name}", flush=True)
    if not outcomes and not session.records and not failed:
        print("nothing ran: give more --seconds, or another --only", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
