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
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from . import gpu_report
from ._timing import Machine
from .gpu_accuracy import GRACE, RESERVE, images_folder, work

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
    device = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    path = args.out / f"pretraining-{device}-{args.steps}-steps.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the JPEG images; $FASTSSL_DATA if left out")
    parser.add_argument("--model", default="preact-resnet-18")
    parser.add_argument("--steps", type=int, default=20_000, help="of SimCLR")
    parser.add_argument("--fine", type=int, default=4000, help="steps of each run on its encoder")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--amp", default="bf16", choices=("off", "bf16", "fp16"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="any other option of the runs")
    parser.add_argument("--seconds", type=float, default=540, help="after which the run at work is saved")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining"), help="where the runs lie")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "bench/results")), help="folder of the table")
    parser.add_argument("--commit", default="not given", help="of the code that is trained")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    begin, args = time.perf_counter(), parsed(argv)
    data = images_folder(args.data)
    if data is None:
        print("no folder with train/ and test/ is there; give --data DIR, or set FASTSSL_DATA to where cifar10-jpeg lies", file=sys.stderr)
        return 4
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("bench.gpu_pretraining needs a CUDA device, and torch sees none; --device cpu runs it without", file=sys.stderr)
        return 2
    failed, listed, encoder = [], jobs(args), args.runs / "encoder.safetensors"
    for job in listed:
        left = args.seconds - (time.perf_counter() - begin)
        if left < min(RESERVE, args.seconds / 2):
            break
        if state(args.runs / job.name) == "finished" or (job.encoder and not encoder.exists()):
            continue
        words = command(job, args, data)
        print(f"[{time.perf_counter() - begin:6.1f} s] fastssl {shlex.join(words)}", flush=True)
        code = work([sys.executable, "-m", "fastssl", *words], args.runs / f"{job.name}.log", max(1.0, left - GRACE))
        if code not in (0, 130):
            failed.append(job.name)
            print(f"{job.name} failed with exit code {code}; {args.runs / job.name}.log says why", file=sys.stderr)
        elif job.name == "simclr" and state(args.runs / job.name) == "finished":
            export = [sys.executable, "-m", "fastssl", "export", str(args.runs / job.name), "--out", str(encoder), "--overwrite"]
            if work(export, args.runs / "export.log", RESERVE):
                failed.append("export")
                print(f"the encoder was not exported; {args.runs / 'export.log'} says why", file=sys.stderr)
    done = sum(state(args.runs / job.name) == "finished" for job in listed)
    path = report(listed, args, Machine(args.device))
    print(path.read_text(encoding="utf-8"))
    print(f"{done} of {len(listed)} runs done{'' if done == len(listed) else '; the same command goes on'}: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
