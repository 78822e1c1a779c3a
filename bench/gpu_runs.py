"""What the scripts of accuracies on a GPU share: the folder of images, their flags, runs that end with the time that is lent, the table."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

RESERVE, GRACE = 60.0, 30.0  # seconds: no run starts with less left; what a run may take to save itself
PATIENCE = 120.0  # seconds after which a run that was asked to stop is ended


def images_folder(given: Path | None) -> Path | None:
    """The folder of images, or None where there is none."""
    place = given or (Path(os.environ["FASTSSL_DATA"]) if "FASTSSL_DATA" in os.environ else None)
    candidates = [] if place is None else [place, place / "cifar10-jpeg"]
    return next((folder for folder in candidates if (folder / "train").is_dir() and (folder / "test").is_dir()), None)


def flags(description: str | None, runs: str) -> argparse.ArgumentParser:
    """A parser with the flags that the scripts share; `runs` is where their runs lie unless told otherwise."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the JPEG images; $FASTSSL_DATA if left out")
    parser.add_argument("--amp", default="bf16", choices=("off", "bf16", "fp16"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="any other option of the runs")
    parser.add_argument(
        "--seconds", type=float, default=540, help=f"after which the run at work is saved; none begins with less than {RESERVE:.0f} left"
    )
    parser.add_argument("--runs", type=Path, default=Path(runs), help="where the runs lie")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "bench/results")), help="folder of the table")
    parser.add_argument("--commit", default="not given", help="of the code that is trained")
    return parser


def refusal(args: argparse.Namespace, script: str) -> int:
    """0 where images and device are there; else the exit code, and one sentence on stderr."""
    if images_folder(args.data) is None:
        print("no folder with train/ and test/ is there; give --data DIR, or set FASTSSL_DATA to where cifar10-jpeg lies", file=sys.stderr)
        return 4
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"{script} needs a CUDA device, and torch sees none; --device cpu runs it without", file=sys.stderr)
        return 2
    return 0


def work(command: list[str], log: Path, seconds: float) -> int:
    """Runs a command for at most so long, then asks it to save itself. Its words go to `log`. Returns its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def walk(names: Iterable[str], command: Callable[[str], list[str] | None], args: argparse.Namespace, begin: float) -> list[str]:
    """Runs one command of fastssl after the other while there is time; its words go to NAME.log in `--runs`.

    Args:
        names: of the runs.
        command: the words after `fastssl` for a name, asked when its turn comes; None where nothing is to do.
        begin: `time.perf_counter()` of the script's start.

    Returns:
        The names of those that failed; each was said on stderr.
    """
    failed = []
    for name in names:
        spent = time.perf_counter() - begin
        if args.seconds - spent < RESERVE:
            break
        words = command(name)
        if words is None:
            continue
        print(f"[{spent:6.1f} s] fastssl {shlex.join(words)}", flush=True)
        log = args.runs / f"{name}.log"
        code = work([sys.executable, "-m", "fastssl", *words], log, args.seconds - spent - GRACE)
        if code not in (0, 130):
            failed.append(name)
            print(f"{name} failed with exit code {code}; {log} says why", file=sys.stderr)
    return failed


def write(kind: str, device: str, lines: list[str], args: argparse.Namespace) -> Path:
    """Writes a table's lines as KIND-DEVICE-STEPS-steps.md into `--out`."""
    device = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = args.out / f"{kind}-{device}-{args.steps}-steps.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
