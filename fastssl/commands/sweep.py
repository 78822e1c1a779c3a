"""`fastssl sweep`: a resumable grid of runs and one table."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import RunConfig
from ..pipelines.errors import ConfigError
from . import grid_axes, places, train
from .grid_axes import Plan

if TYPE_CHECKING:
    from ..engine.grid import Cell, Outcome

# Flags of train that mean one run, or something else here.
NOT_TAKEN = {"--help", "--method", "--seed", "--out", "--overwrite", "--resume", "--dry-run", "--profile", "--quiet", "--json"}
LONGEST = 150  # letters of a folder's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        metavar="A,B",
        help="methods by name, and sklearn:LogisticRegression, sklearn:SelfTraining, sklearn:LabelSpreading on pixels or TF-IDF",
    )
    parser.add_argument(
        "--seeds", default="0", metavar="0-4", help="seeds of each setting: numbers and ranges, as 0-4 or 0,2,5; 0 if left out"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'NAME: SECTION.OPTION=VALUE ...'",
        help="settings under one name, crossed with the rest; method.name among them makes it stand for itself; may be repeated",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the sweep's directory; one that is there goes on")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that work on runs, sharing the threads")
    parser.add_argument("--no-checkpoints", action="store_true", help="remove a run's checkpoint once it is finished")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and what stands of them, and do nothing")
    source = argparse.ArgumentParser()
    train.add_arguments(source)
    for action in source._actions:
        if not NOT_TAKEN & set(action.option_strings):
            parser._add_action(action)  # the very one that train has
    parser.add_argument("--quiet", action="store_true", help="no line for each finished run")
    parser.add_argument("--json", action="store_true", help="end stdout with one JSON object of the table")


def run(args: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"a sweep starts its own processes (--jobs), and WORLD_SIZE is {os.environ['WORLD_SIZE']}; start it without torchrun"
        )
    if args.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {args.jobs}")
    places.check(args)
    cells = lay_out(args)
    from ..engine import grid, grid_table

    root = Path(args.out)
    grid.check(cells, root)
    states = {cell.name: grid.state_of(cell, root) for cell in cells}
    print(summary(states), file=sys.stderr)
    if args.dry_run:
        for name, state in states.items():
            print(f"{name}  {state}")
        if args.json:
            print(json.dumps({"out": args.out, "runs": states}))
        return 0
    if not grid_table.drawable():
        print("warning: table.png is left out without matplotlib; run: pip install 'fastssl[report]'", file=sys.stderr)
    for data in {cell.config.data: None for cell in cells}:
        places.fetch(args, data)
    root.mkdir(parents=True, exist_ok=True)
    from ..engine.directory import take_lock

    with take_lock(root):
        note(root, command(args))
        stopped = work(args, [cell for cell in cells if states[cell.name] != "finished"], root, len(cells))
        rows = grid_table.collect(cells, root)
        grid_table.write(rows, root, command(args), jobs=args.jobs, picture=stopped is None)
    if stopped is not None:
        done = sum(len(row.results) for row in rows)
        print(f"fastssl: stopped with {done} of {len(cells)} runs finished; the same command goes on: {command(args)}", file=sys.stderr)
        return stopped.code
    print(grid_table.as_markdown(rows))
    failures = [failure for row in rows for failure in row.failures.values()]
    if args.json:
        told = {"out": args.out, "command": command(args), "runs": len(cells), "failed": len(failures)}
        print(json.dumps({**told, "rows": grid_table.as_json(rows)}))
    else:
        print(f"table: {root / 'table.md'}", file=sys.stderr)
    return failures[0][1] if failures else 0


def lay_out(args: argparse.Namespace) -> list[Cell]:
    """Every run of the sweep, configured.

    Raises:
        ConfigError: an option, a value or a method that one of them does not have.
    """
    from ..engine.grid import Cell
    from ..engine.grid_table import short_names

    plans = grid_axes.plans(args)
    short = short_names(list(dict.fromkeys(key for plan in plans for key, _ in plan.settings)))
    cells = []
    for plan in plans:
        config = configured(args, plan)
        method = plan.method or config.method_name
        cells.append(Cell(folder_name(plan, method, short), method, plan.variant, plan.settings, plan.seed, config))
    return cells


def configured(args: argparse.Namespace, plan: Plan) -> RunConfig:
    """The configuration of one run, as `fastssl train` would resolve it, but for what a sweep does not need of a run by default."""
    from ..engine import classical

    options = classical.find(plan.method)() if plan.peer else None
    config = train.configure(grid_axes.namespace(args, plan))
    if plan.peer:
        return dataclasses.replace(config, method_name=plan.method, method=options)
    asked = {key for key, layer in config.origins.items() if not layer.startswith("preset")}
    own = {"keep": 1, "eval_every": config.train.steps}  # one checkpoint, judged at the end
    fresh = {name: value for name, value in own.items() if f"train.{name}" not in asked}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fresh))


def folder_name(plan: Plan, method: str, short: dict[str, str]) -> str:
    """ "fixmatch-threshold=0.95-seed0": the same for the same run of the same sweep, and good as a folder's name."""
    words = [method, *([plan.variant] if plan.variant not in (None, method) else [])]
    words += [f"{short[key]}={value}" for key, value in plan.settings]
    text = "-".join(words)
    name = re.sub(r"[^A-Za-z0-9._=+,@-]", "_", text).lstrip("._-")
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
    return f"{name}-seed{plan.seed}"


def summary(states: dict[str, str]) -> str:
    """ "12 runs: 3 finished and kept, 1 goes on from its checkpoint, 1 failed before and is run again, 7 new"."""
    count = Counter(states.values())
    words = {
        "finished": "finished and kept",
        "interrupted": "to go on from a checkpoint",
        "failed": "failed before, to run again",
        "new": "new",
    }
    return f"{len(states)} runs: " + ", ".join(f"{count[state]} {said}" for state, said in words.items() if count[state])


def work(args: argparse.Namespace, cells: list[Cell], root: Path, total: int) -> Outcome | None:
    """Works on the cells that are not finished and tells of each; returns the one that was stopped, or None."""
    from ..engine.grid import Outcome, in_order
    from ..engine.grid_jobs import in_processes

    options = {"checkpoints": not args.no_checkpoints}
    jobs = min(args.jobs, len(cells))
    outcomes = in_processes(cells, root, jobs=jobs, **options) if jobs > 1 else in_order(cells, root, **options)
    begin, stopped, heard = time.perf_counter(), None, set()
    try:
        for k, outcome in enumerate(outcomes, 1):
            for line in outcome.heard:
                if line not in heard:  # the same words of six hundred runs are said once
                    heard.add(line)
                    print(f"{outcome.name}: {line}", file=sys.stderr)
            if outcome.state == "stopped":
                stopped = outcome
            remaining = (time.perf_counter() - begin) / k * (len(cells) - k)
            if not args.quiet or outcome.state == "failed":
                print(progress(outcome, root, total - len(cells) + k, total, remaining), file=sys.stderr, flush=True)
    except KeyboardInterrupt:  # between two runs, or for the second time
        return Outcome("", "stopped", 130, "interrupted")
    return stopped


def progress(outcome: Outcome, root: Path, k: int, total: int, remaining: float) -> str:
    """The line of a run that ended."""
    from ..engine.report import clock

    if outcome.state != "finished":
        return f"{k}/{total} {outcome.name}: {outcome.state} ({outcome.reason})"
    accuracy = json.loads((root / "runs" / outcome.name / "STATUS.json").read_text(encoding="utf-8"))["accuracy"]
    judged = "-" if accuracy is None else f"{100 * accuracy:.2f} %"
    return f"{k}/{total} {outcome.name}: {judged}, {outcome.wall:.1f} s, {clock(remaining)} left"


def note(root: Path, text: str) -> None:
    """Adds a command to DIR/sweep.yaml, which makes the directory a sweep's."""
    import yaml

    from .. import __version__
    from ..engine.report import write_atomically

    path = root / "sweep.yaml"
    commands = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("commands", []) if path.exists() else []
    commands += [] if text in commands else [text]
    write_atomically(path, yaml.safe_dump({"commands": commands, "fastssl": __version__}, sort_keys=False, width=10_000))


def command(args: argparse.Namespace) -> str:
    """The command line, its flags in the order of --help."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["fastssl", "sweep"]
    for action in parser._actions:
        value = getattr(args, action.dest, action.default)
        if value == action.default:
            continue
        if isinstance(value, bool):
            words.append(action.option_strings[0] if value else action.option_strings[-1])
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [action.option_strings[0], str(item)]
    return shlex.join(words)
