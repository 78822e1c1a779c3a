"""Cells of a sweep: each an ordinary run in a directory of its own, with its state on disk, run one after the other in a process.

DIR/sweep.yaml          the commands that worked on it
DIR/cells/NAME.json     what a cell was asked to be, and why it failed where it did
DIR/runs/NAME/          the run itself
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gc
import hashlib
import io
import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import SECTIONS, RunConfig, read_yaml, resolve
from ..methods import find
from ..pipelines import sources
from ..pipelines.errors import ConfigError, FastsslError, Preempted
from . import checkpoint, classical
from .assemble import assemble
from .directory import take_lock
from .memory import out_of_memory
from .report import write_atomically
from .run import Interrupted, Run, resume

PASSING = (3, 4, 7)  # exit codes whose cause may have gone since, so that a run goes on from its checkpoint: data, machine, memory or disk
# Options that move no figure of a finished run: a sweep may go on with others.
SOFT = ("data.root", "data.workers", "train.keep", "train.save_every", "train.profile")
FILES = (
    "foundation_labels",
    "descriptions",
    "noisy_labels",
    "split",
    "labels",
    "extra_unlabelled",
)  # of `data`: their content decides a result, and a path does not tell it
TABLES = ("name", "test")  # the same of a run on texts


def content(path: str | None) -> str | None:
    """A hash of a file's content, or of the names, sizes and times of the files in a folder; None where there is none."""
    if path is not None and Path(path).is_dir():
        files = sorted(place for place in Path(path).rglob("*") if place.is_file())
        facts = [(str(place.relative_to(path)), place.stat().st_size, place.stat().st_mtime_ns) for place in files]
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
    if path is None or not Path(path).is_file():
        return None
    about = os.stat(path)
    return _content(path, about.st_mtime_ns, about.st_size)


@functools.cache
def _content(path: str, changed: int, size: int) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its folder, the same whenever the same sweep is asked for.
        method: as the command named it. variant: its name, or None.
        settings: (dotted key, value as written) of each option that varies and concerns this cell.
        config: resolved; a scikit-learn peer's has its options in `method` and takes `data` and the seed alone.
    """

    name: str
    method: str
    variant: str | None
    settings: tuple[tuple[str, str], ...]
    seed: int
    config: RunConfig

    @property
    def asked(self) -> dict[str, dict[str, Any]]:
        """What decides the cell's result, as JSON holds it."""
        nested = self.config.nested()
        if classical.is_peer(self.method):
            nested = {"method": nested["method"], "data": nested["data"], "train": {"seed": self.seed}}
        keys = (*FILES, *TABLES) if sources.is_table(self.config.data.name) else FILES
        nested["files"] = {key: digest for key in keys if (digest := content(nested["data"].get(key)))}
        return json.loads(json.dumps(nested))


@dataclass(frozen=True)
class Outcome:
    """How work on a cell ended: `state` is finished, failed or stopped; `code` is the exit code that `fastssl train` would have had."""

    name: str
    state: str
    code: int = 0
    reason: str = ""
    wall: float = 0.0  # seconds, everything counted
    heard: tuple[str, ...] = ()  # warnings that it gave


def folder_of(cell: Cell, root: Path) -> Path:
    return root / "runs" / cell.name


def record_of(cell: Cell, root: Path) -> dict[str, Any] | None:
    """The cell's own file, None where it never began."""
    path = root / "cells" / f"{cell.name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}); remove it with {folder_of(cell, root)}, and the run is made anew") from None


def write_record(cell: Cell, root: Path, failure: dict[str, Any] | None = None) -> None:
    path = root / "cells" / f"{cell.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"config": cell.asked, "failure": failure}, indent=1) + "\n")


def result_of(cell: Cell, root: Path) -> dict[str, Any] | None:
    """The result of a finished cell, read from its run; None for any other."""
    folder = folder_of(cell, root)
    try:
        if json.loads((folder / "STATUS.json").read_text(encoding="utf-8"))["state"] != "finished":
            return None
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    results = [json.loads(line) for line in lines if line.startswith('{"event": "result"')]
    return results[-1] if results else None


def state_of(cell: Cell, root: Path) -> str:
    """finished, failed (run again), interrupted (goes on from its checkpoint) or new."""
    if result_of(cell, root) is not None:
        return "finished"
    if (record_of(cell, root) or {}).get("failure"):
        return "failed"
    return "interrupted" if checkpoint.listed(folder_of(cell, root) / "checkpoints") else "new"


def check(cells: list[Cell], root: Path) -> None:
    """Refuses a directory that these cells may not have. Writes nothing.

    Raises:
        ConfigError: two cells of one name, a directory of something else, or of cells with another configuration.
    """
    names: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in names:
            raise ConfigError(
                f"two runs of this sweep would both lie in runs/{cell.name}; rename a variant, or leave out what is given twice"
            )
        names[cell.name] = cell
    if not root.exists():
        return
    if not root.is_dir() or (any(root.iterdir()) and not (root / "sweep.yaml").exists()):
        raise ConfigError(f"{root} is there and holds no sweep; give another --out")
    for cell in cells:
        record = record_of(cell, root)
        if record is None:
            if folder_of(cell, root).exists():
                raise ConfigError(f"{folder_of(cell, root)} is no run of this sweep; move it away or give another --out")
            continue
        for key, then, now in differences(cell, record["config"]):
            raise ConfigError(
                f"{folder_of(cell, root)} was begun with {key} {then}, and this command asks for {now}; "
                "give another --out, or write both values as a list"
            )


def differences(cell: Cell, then: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, its value in `then`, its value now) of what differs and moves figures."""
    now = cell.asked
    for key in sorted({*now["files"], *then.get("files", now["files"])}):
        old, new = (f"of content {values.get(key)}" for values in (then.get("files", now["files"]), now["files"]))
        if old != new:
            yield f"data.{key}", old, new
    for section in (name for name in now if name != "files"):
        kind = SECTIONS.get(section, type(cell.config.method))
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        for name in {**now[section], **then.get(section, {})}:
            # An option that was not yet there, or is no more, stood at its default.
            old, new = (values.get(section, {}).get(name, defaults.get(name)) for values in (then, now))
            if old != new and f"{section}.{name}" not in SOFT:
                yield f"{section}.{name}", old, new


def work(cell: Cell, root: Path, *, checkpoints: bool = True) -> Outcome:
    """Runs one cell to its end, from wherever it stands; what goes wrong in it is an Outcome and not an error.

    Args:
        checkpoints: keep them once the cell is finished.
    """
    begin, heard, words = time.perf_counter(), io.StringIO(), {"state": "finished"}
    log = logging.getLogger("fastssl")
    handlers = list(log.handlers)
    try:
        # What a run says is in its own log; its warnings are handed on, so that a sweep may say each once.
        with contextlib.redirect_stderr(heard):
            train(cell, root)
        if not checkpoints:
            shutil.rmtree(folder_of(cell, root) / "checkpoints", ignore_errors=True)
    except (Interrupted, Preempted) as stop:
        words = {"state": "stopped", "code": stop.exit_code, "reason": str(stop)}
    except KeyboardInterrupt:
        words = {"state": "stopped", "code": 130, "reason": "interrupted"}
    except Exception as error:
        words = {"state": "failed", **told(error)}
        if not isinstance(error, FastsslError):
            (root / "cells" / f"{cell.name}.traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        write_record(cell, root, failure={"exit_code": words["code"], "reason": words["reason"]})
    log.handlers[:] = handlers  # a run that could not be made whole still listens
    clear()
    lines = tuple(line for line in heard.getvalue().splitlines() if line.strip())
    return Outcome(cell.name, wall=time.perf_counter() - begin, heard=lines, **words)


def train(cell: Cell, root: Path) -> None:
    """What `work` does, with errors as they come."""
    folder, state = folder_of(cell, root), state_of(cell, root)
    failure = (record_of(cell, root) or {}).get("failure") or {}
    saved = state == "failed" and failure.get("exit_code") in PASSING and checkpoint.listed(folder / "checkpoints")
    write_record(cell, root)
    if state == "interrupted" or saved:
        values = read_yaml(str(folder / "config.yaml"))
        own = resolve(cell.config.method_name, find(cell.config.method_name).Config, [("config.yaml", values)])
        run = resume(own, folder, quiet=True)
    else:
        if folder.exists():
            take_lock(folder).close()
            shutil.rmtree(folder)
        if classical.is_peer(cell.method):
            classical.run(cell.config, folder)
            return
        run = Run(assemble(cell.config, quiet=True), folder, quiet=True)
    run.train()
    if run.step.mode != "eager":
        torch.compiler.reset()  # compiled code of a run that is over


def told(error: Exception) -> dict[str, Any]:
    """Exit code and sentence of an error, as the command line gives them."""
    if isinstance(error, FastsslError):
        return {"code": error.exit_code, "reason": str(error)}
    if out_of_memory(error):
        return {"code": 7, "reason": "out of memory; take a smaller --batch-size or --ratio"}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"code": 7, "reason": f"no space left on the disk ({error.filename or 'while writing'})"}
    return {"code": 1, "reason": f"unexpected {type(error).__name__}: {error}"}


def clear() -> None:
    """Gives back what the last cell held: runs hold themselves in circles.

    What the first cell leaves are modules that stay imported; they are not searched again (0.2 s each time).
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_order(cells: list[Cell], root: Path, *, checkpoints: bool = True) -> Iterator[Outcome]:
    """Works on the cells in this process, one after the other, until one is stopped."""
    try:
        for cell in cells:
            outcome = work(cell, root, checkpoints=checkpoints)
            yield outcome
            if outcome.state == "stopped":
                return
    finally:
        gc.unfreeze()
