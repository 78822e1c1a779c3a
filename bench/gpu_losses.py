"""The losses on a CUDA device against their peers, in one command: checks, then timings, then a Markdown table.

    python -m bench.gpu_losses [--check | --no-check] [--seconds 540] [--only 32768x1000 finessl] [--out DIR] [--commit HASH]

First the ceilings of this very run: device copy and bf16 matrix product. Then, most wanted first, every shape and dtype: each peer is held
to float64 before it is timed, un-captured and in a CUDA graph, in turns within one process. A row that fails is printed, marked "failed"
and makes the exit code 1; the rows after it still run. Rows are appended to a JSON-lines file as they come; the Markdown file is written at
the end, also when the budget of `--seconds` ran out (what was not run is listed). Liger comes from `pip install liger-kernel`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import gpu_report
from ._timing import Machine, copy_gb_per_s, matmul_tflop_per_s
from .gpu_checks import CHECKS, CLASSES, Outcome, run_checks
from .loss_rows import MODES, cases, measure, measure_finessl, measure_host, measure_launches, short

RESERVE = 45.0  # seconds that a row with its compilations may take


class Run:
    """Budget, progress lines, and what has come out so far."""

    def __init__(self, machine: Machine, seconds: float, folder: Path, stem: str):
        self.machine, self.start, self.seconds = machine, time.perf_counter(), seconds
        folder.mkdir(parents=True, exist_ok=True)
        self.rows_file, self.table_file = folder / f"{stem}.jsonl", folder / f"{stem}.md"
        self.rows_file.write_text("", encoding="utf-8")
        self.records: list[dict] = []
        self.outcomes: list[Outcome] = []
        self.not_run: list[str] = []

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.start)

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:6.1f} s] {text}", flush=True)

    def check(self, only: tuple[str, ...]) -> None:
        for outcome in run_checks(self.machine.device, CLASSES, only):
            self.outcomes.append(outcome)
            self.say(f"check {outcome.name}: {outcome.status}, {outcome.detail} ({outcome.seconds:.1f} s)")
            if self.left() < RESERVE or not self.machine.alive():
                missing = [c.__name__ for c in CHECKS[len(self.outcomes) :] if not only or c.__name__ in only]
                self.not_run += [f"check {name}" for name in missing]
                return

    def row(self, title: str, records: Callable[[], Iterator[dict]]) -> None:
        """Runs one row if time and device allow. Whatever it raises becomes a failed record."""
        if self.left() < RESERVE or not self.machine.alive():
            self.not_run.append(title)
            return
        self.say(title)
        try:
            for record in records():
                self.keep(record)
        except Exception as error:
            traceback.print_exc()
            self.keep({"case": title, "form": "", "name": "all", "mode": "", "status": "failed", "why": short(error)})
        gc.collect()
        if self.machine.cuda and self.machine.alive():
            torch.cuda.empty_cache()

    def keep(self, record: dict) -> None:
        self.records.append(record)
        with self.rows_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.say(gpu_report.line(record))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true", help="the checks alone")
    which.add_argument("--no-check", action="store_true", help="the timings alone")
    parser.add_argument("--seconds", type=float, default=540, help="no check or row starts that this budget may not hold")
    parser.add_argument(
        "--only", nargs="*", default=(), help="rows or checks whose name holds one of these: 32768x1000, bfloat16, finessl ..."
    )
    parser.add_argument("--rounds", type=int, default=21, help="measurements of each row, at least 2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "bench/results")), help="folder of the two files")
    parser.add_argument("--commit", default="not given", help="of the code that is timed")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("bench.gpu_losses needs a CUDA device; torch sees none", file=sys.stderr)
        return 2
    machine = Machine(args.device)
    if machine.cuda:
        os.environ.setdefault("FASTSSL_KERNELS", "triton")  # so that nothing else can serve the rows named ours
    facts = gpu_report.environment(machine, args.commit)
    run = Run(machine, args.seconds, args.out, gpu_report.stem(facts))
    wanted = lambda title: not args.only or any(part in title for part in args.only)  # noqa: E731
    run.say("; ".join(f"{key} {value}" for key, value in facts.items()))
    if not args.no_check:
        names = tuple(check.__name__ for check in CHECKS if wanted(check.__name__))
        if names:
            run.check(names)
    if not args.check:
        small = not machine.cuda
        copy = copy_gb_per_s(machine, 2**22 if small else 2**31, args.rounds)
        matmul = matmul_tflop_per_s(machine, 64 if small else 8192, args.rounds)
        facts |= {
            "copy": f"{copy.median:.0f} GB/s, IQR {copy.iqr:.0f}",
            "bf16 matmul": f"{matmul.median:.0f} TFLOP/s, IQR {matmul.iqr:.0f}",
        }
        run.keep({"case": "ceilings", "form": "ceiling", "name": "copy", "mode": "", "status": "ok", "gb_per_s": copy.median})
        run.keep({"case": "ceilings", "form": "ceiling", "name": "matmul", "mode": "", "status": "ok", "tflop_per_s": matmul.median})
        modes = MODES if machine.cuda else MODES[:1]
        rows = [(case.title, lambda c=case: measure(machine, c, args.rounds, modes)) for case in cases()]
        blocks = [
            (f"finessl {str(d)[6:]}", lambda d=d: measure_finessl(machine, d, args.rounds, modes)) for d in (torch.float32, torch.float16)
        ]
        rows[8:8] = [*blocks, ("host time", lambda: measure_host(machine))]
        if machine.cuda:
            rows.append(("launches", lambda: measure_launches(machine)))
        for title, records in rows:
            if wanted(title):
                run.row(title, records)
    run.table_file.write_text(gpu_report.markdown(facts, run.outcomes, run.records, run.not_run), encoding="utf-8")
    failed = [o.name for o in run.outcomes if o.status == "failed"]
    failed += [f"{r['case']} {r['name']} {r['mode']}" for r in run.records if r["status"] == "failed"]
    run.say(f"{len(run.records)} records, {len(failed)} failed, {len(run.not_run)} not run; {run.table_file}")
    for name in failed:
        print(f"failed: {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
