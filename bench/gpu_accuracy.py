"""CIFAR-10 (JPEG) by the thresholded methods, beside the published numbers: `python -m bench.gpu_accuracy --data DIR`.

    python -m bench.gpu_accuracy [--data DIR] [--plan] [--steps 20000] [--seeds 0] [--methods ...] [--labels 250 40 4000] [--seconds 540]

WRN-28-2 and the published presets' settings, but for the number of steps and `--amp` (bf16; `off` is the published). One `fastssl sweep` a
method and number of labels, in `--runs`; when `--seconds` are over the run at work saves itself, and the same command goes on there next
time. `--plan` prints the commands, what stands of each, and the seconds still to go, from a few measured steps of each method. The table
is written to `--out` each time. DIR holds `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; without --data it is $FASTSSL_DATA, or cifar10-jpeg
in there. JPEG costs about a point of accuracy against the set's own pixels. The published runs take 2^20 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from fastssl import presets
from fastssl.cli import main as fastssl

from . import gpu_report, gpu_runs
from ._timing import Machine

METHODS = ("fixmatch", "spl", "flexmatch", "freematch", "softmatch", "adamatch", "layermatch")
LABELS = (250, 40, 4000)  # most wanted first
OPTIONS = {"spl": ["--set", "method.lambda_u=1.1"]}  # where no preset of its own has it


class Setting(NamedTuple):
    """A row of the table: one sweep."""

    method: str
    labels: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.labels}"

    @property
    def preset(self) -> presets.Preset:
        """The method's own preset, or FixMatch's in which it is trained."""
        own = f"{self.method}_cifar10_{self.labels}"
        return presets.PRESETS[own if own in presets.PRESETS else f"fixmatch_cifar10_{self.labels}"]

    def words(self, args: argparse.Namespace, folder: Path) -> list[str]:
        """The flags that `fastssl train` and `fastssl sweep` take for it."""
        words = ["--preset", self.preset.name, "--method", self.method, "--data", str(folder), "--steps", str(args.steps)]
        words += ["--amp", args.amp, "--device", args.device]
        words += OPTIONS.get(self.method, []) if self.preset.method != self.method else []
        return words + [word for item in args.set for word in ("--set", item)]

    def sweep(self, args: argparse.Namespace, folder: Path) -> list[str]:
        return ["sweep", *self.words(args, folder), "--seeds", args.seeds, "--out", str(args.runs / self.name)]


def asked(words: list[str]) -> dict[str, Any]:
    """The JSON object that a command of fastssl prints.

    Raises:
        RuntimeError: the command failed; it has said why.
    """
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        code = fastssl([*words, "--json", "--quiet"])
    if code:
        raise RuntimeError(f"fastssl {shlex.join(words)} ended with exit code {code}")
    return json.loads(heard.getvalue().splitlines()[-1])


def states(setting: Setting, args: argparse.Namespace, folder: Path) -> list[str]:
    """What stands of each run of the setting: finished, interrupted, failed or new."""
    return list(asked([*setting.sweep(args, folder), "--dry-run"])["runs"].values())


def plan(settings: list[Setting], args: argparse.Namespace, folder: Path) -> None:
    """Prints each command and an estimate. Steps are measured once a method: the number of labels does not change them."""
    measured: dict[str, float] = {}
    total = 0.0
    for setting in settings:
        stand = states(setting, args, folder)
        todo = sum(state != "finished" for state in stand)
        if todo and setting.method not in measured:
            begin = time.perf_counter()
            estimate = asked(["train", *setting.words(args, folder), "--dry-run"])["estimate"]
            measured[setting.method] = estimate["seconds_per_step"]
            wall = time.perf_counter() - begin
            print(
                f"# {setting.method}: {1e3 * estimate['seconds_per_step']:.1f} ms a step, measured in {wall:.0f} s with reading the images"
            )
        seconds = todo * args.steps * measured.get(setting.method, 0.0)
        total += seconds
        print(f"fastssl {shlex.join(setting.sweep(args, folder))}  # {', '.join(stand)}: at most {seconds:.0f} s of steps", flush=True)
    print(f"# {total:.0f} s of steps in all, {total / args.seconds:.1f} calls; reading images, compiling and evaluation are left out")


def row(setting: Setting, args: argparse.Namespace) -> list[str]:
    """The setting's line of the table, from what its sweep has written."""
    published = setting.preset.published.get(setting.method)
    source = setting.preset.source.split(":")[0] if published else ""
    cells = [setting.method, str(setting.labels), f"{args.steps:,}"]
    table = args.runs / setting.name / "table.csv"
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            found = next(csv.DictReader(file))
        rounded = [f"{float(found[key]):.2f}" if found[key] else "-" for key in ("accuracy %", "std")]
        cells += [found["n"], *rounded, f"{float(found['seconds']):.0f}" if found["seconds"] else "-"]
    else:
        cells += ["0", "-", "-", "-"]
    return [*cells, str(published or "-"), "1,048,576" if published else "-", source]


def report(settings: list[Setting], args: argparse.Namespace, machine: Machine) -> Path:
    """Writes the table as Markdown."""
    facts = gpu_report.environment(machine, args.commit)
    head = ["method", "labels", "steps", "runs", "accuracy %", "std", "s a run", "published %", "its steps", "published in"]
    changed = f", {', '.join(args.set)}" if args.set else ""
    lines = [
        f"# CIFAR-10 (JPEG) on {facts['device']}",
        "",
        f"Made by `python -m bench.gpu_accuracy`: WRN-28-2, the published presets' settings but for steps and precision "
        f"(amp {args.amp}{changed}), seeds {args.seeds}; the last step's accuracy on the test images, of which the set has 10,000. JPEG "
        "costs about a point against the set's own pixels.",
        "",
        *gpu_report.table(["", ""], [[key, value] for key, value in facts.items()]),
        *gpu_report.table(head, [row(setting, args) for setting in settings]),
    ]
    return gpu_runs.write("accuracy", facts["device"], lines, args)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = gpu_runs.flags(__doc__, "runs/cifar10-jpeg")
    parser.add_argument("--plan", action="store_true", help="print commands, what stands and an estimate, and run nothing")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="METHOD")
    parser.add_argument("--labels", nargs="+", type=int, default=LABELS, choices=LABELS, metavar="N")
    parser.add_argument("--seeds", default="0", help="as `fastssl sweep` takes them")
    parser.add_argument("--steps", type=int, default=20_000)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    begin, args = time.perf_counter(), parsed(argv)
    if refused := gpu_runs.refusal(args, "bench.gpu_accuracy"):
        return refused
    folder = gpu_runs.images_folder(args.data)
    settings = {setting.name: setting for setting in (Setting(method, labels) for labels in args.labels for method in args.methods)}
    if args.plan:
        plan(list(settings.values()), args, folder)
        return 0

    def done(setting: Setting) -> bool:
        return set(states(setting, args, folder)) == {"finished"}

    def command(name: str) -> list[str] | None:
        return None if done(settings[name]) else settings[name].sweep(args, folder)

    failed = gpu_runs.walk(settings, command, args, begin)
    count = sum(map(done, settings.values()))
    path = report(list(settings.values()), args, Machine(args.device))
    print(path.read_text(encoding="utf-8"))
    print(f"{count} of {len(settings)} settings done{'' if count == len(settings) else '; the same command goes on'}: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
