"""Pre-training on CIFAR-10 (JPEG), then few labels: `python -m bench.gpu_pretraining --data DIR`.

    python -m bench.gpu_pretraining [--data DIR] [--steps 20000] [--fine 4000] [--model preact-resnet-18] [--seconds 540] [--device cuda]

SimCLR without a label, its encoder exported; FineSSL, FixMatch and labels alone on that encoder with 4 labels a class; beside them FixMatch
and labels alone from scratch, with as many steps as pre-training and fine-tuning have together. Each is a plain command of `fastssl train`
in `--runs`; when `--seconds` are over the run at work saves itself, and the same command goes on there next time. The table is written to
`--out` each time. DIR is as for `bench.gpu_accuracy`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple

from . import gpu_report, gpu_runs
from ._timing import Machine

FEW = ["--labels-per-class", "4"]


class Job(NamedTuple):
    """A row of the table: one run."""

    name: str
    said: str
    words: list[str]  # of `fastssl train`, but for data, network and place
    encoder: bool  # whether it starts from SimCLR's


def jobs(args: argparse.Namespace) -> list[Job]:
    """In the order in which they run."""
    fine, whole = ["--steps", str(args.fine)], ["--steps", str(args.steps + args.fine)]
    contrast = ["--method", "simclr", *FEW, "--steps", str(args.steps), "--batch-size", "64", "--ratio", "8"]
    contrast += ["--set", "method.fine_tune_share=0", "--set", "method.temperature=0.5", "--lr", "0.6", "--set", "train.schedule=cosine"]
    tuned = ["--tune", "full"]
    return [
        Job("simclr", "SimCLR, no label", contrast, False),
        Job("finessl_on_simclr", "FineSSL on SimCLR's encoder", ["--method", "finessl", *FEW, *fine, *tuned], True),
        Job("fixmatch_on_simclr", "FixMatch on SimCLR's encoder", ["--method", "fixmatch", *FEW, *fine], True),
        Job("supervised_on_simclr", "labels alone on SimCLR's encoder", ["--method", "supervised", *FEW, *fine], True),
        Job("fixmatch", "FixMatch from scratch", ["--method", "fixmatch", *FEW, *whole], False),
        Job("supervised", "labels alone from scratch", ["--method", "supervised", *FEW, *whole], False),
    ]


def state(folder: Path) -> str:
    """What stands of a run: new, finished, or what its STATUS.json says."""
    path = folder / "STATUS.json"
    return json.loads(path.read_text(encoding="utf-8"))["state"] if path.exists() else "new"


def command(job: Job, args: argparse.Namespace, data: Path) -> list[str]:
    """The command that begins a job, or goes on with it."""
    place = args.runs / job.name
    if state(place) not in ("new", "failed"):
        return ["train", "--resume", str(place)]
    words = [
        "train",
        *job.words,
        "--data",
        str(data),
        "--model",
        args.model,
        "--amp",
        args.amp,
        "--device",
        args.device,
        "--seed",
        args.seed,
    ]
    words += ["--weights", str(args.runs / "encoder.safetensors")] if job.encoder else []
    return [*words, *(word for item in args.set for word in ("--set", item)), "--overwrite", "--out", str(place)]


def result(folder: Path) -> dict | None:
    """The last result that a run wrote."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return next((line for line in reversed(lines) if line["event"] == "result"), None)


def report(done: list[Job], args: argparse.Namespace, machine: Machine) -> Path:
    """Writes the table as Markdown."""
    facts = gpu_report.environment(machine, args.commit)
    rows = []
    for job in done:
        found = result(args.runs / job.name)
        cells = ["-"] * 3
        if found is not None:
            judged = "no labels" if job.name == "simclr" else f"{100 * found['accuracy']:.2f}"
            cells = [f"{found['steps']:,}", judged, f"{found['seconds']:.0f}"]
        rows.append([job.said, *cells, f"`fastssl {shlex.join(['train', *job.words])}`"])
    lines = [
        f"# SimCLR, then 4 labels a class, on CIFAR-10 (JPEG), {facts['device']}",
        "",
        f"Made by `python -m bench.gpu_pretraining`: {args.model}, amp {args.amp}, seed {args.seed}; the last step's accuracy on the test "
        "images.",
        "",
        *gpu_report.table(["", ""], [[key, value] for key, value in facts.items()]),
        *gpu_report.table(["what", "steps", "accuracy %", "s", "command (data, network and place left out)"], rows),
    ]
    return gpu_runs.write("pretraining", facts["device"], lines, args)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = gpu_runs.flags(__doc__, "runs/pretraining")
    parser.add_argument("--model", default="preact-resnet-18")
    parser.add_argument("--steps", type=int, default=20_000, help="of SimCLR")
    parser.add_argument("--fine", type=int, default=4000, help="steps of each run on its encoder")
    parser.add_argument("--seed", default="0")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    begin, args = time.perf_counter(), parsed(argv)
    if refused := gpu_runs.refusal(args, "bench.gpu_pretraining"):
        return refused
    data, encoder = gpu_runs.images_folder(args.data), args.runs / "encoder.safetensors"
    listed = {job.name: job for job in jobs(args)}

    def done(name: str) -> bool:
        return state(args.runs / name) == "finished"

    def turn(name: str) -> list[str] | None:
        if name == "export":
            ready = done("simclr") and not encoder.exists()
            return ["export", str(args.runs / "simclr"), "--out", str(encoder), "--overwrite"] if ready else None
        job = listed[name]
        return None if done(name) or (job.encoder and not encoder.exists()) else command(job, args, data)

    first, *others = listed
    failed = gpu_runs.walk([first, "export", *others], turn, args, begin)
    count = sum(map(done, listed))
    path = report(list(listed.values()), args, Machine(args.device))
    print(path.read_text(encoding="utf-8"))
    print(f"{count} of {len(listed)} runs done{'' if count == len(listed) else '; the same command goes on'}: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
