"""Reports of a run: metrics.jsonl, log.txt, STATUS.json, the live line, and the final table.

Progress goes to stderr (a live bar on a terminal, plain lines into a pipe), results to stdout.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("loss", "kept", "pseudo_accuracy")  # what the live line shows, where the method reports it


class Reporter:
    """Writes a run's files and its progress.

    Args:
        folder: the run directory, or None to write no file.
        total: steps of the run.
        quiet: no progress on stderr.
    """

    def __init__(self, folder: Path | None, total: int, *, quiet: bool = False):
        self.folder, self.total, self.quiet = folder, total, quiet
        self.live = None
        self.heard: logging.Handler | None = None
        if folder is not None:  # what the rooms below tell of in mid-run, a lost file for one, belongs into the run's log
            self.heard = _Heard(self.warn)
            logging.getLogger("fastssl").addHandler(self.heard)
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self.live = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), console=Console(stderr=True)
            )
            self.task = self.live.add_task("train", total=total, text="")
            self.live.start()

    def keep_until(self, step: int, again: tuple[str, ...] = ()) -> None:
        """Drops metrics of steps after `step`, and events of the kinds `again` at it: they will be made again."""
        path = self.folder / "metrics.jsonl" if self.folder else None
        if path is None or not path.exists():
            return
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = []
        for line in lines:
            record = json.loads(line)
            if record["step"] < step or (record["step"] == step and record["event"] not in again):
                kept.append(line + "\n")
        write_atomically(path, "".join(kept))

    def say(self, text: str) -> None:
        """One line for the user, on stderr and in log.txt."""
        if self.folder:
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(text + "\n")
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            tell(text)

    def warn(self, text: str) -> None:
        """One line that `quiet` does not silence: something is not as the user may think."""
        quiet, self.quiet = self.quiet, False
        self.say(f"warning: {text}")
        self.quiet = quiet

    def metrics(self, event: str, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if self.folder:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "step": step, **values}) + "\n")

    def progress(self, step: int, values: dict[str, Any], rate: float, remaining: float, unit: str = "images/s") -> None:
        """The live line: step, losses, images (of texts tokens) a second, projected time."""
        parts = [f"{name.replace('_', ' ')} {values[name]:.3f}" for name in COLUMNS if values.get(name) is not None]
        text = f"{step}/{self.total}  " + "  ".join(parts) + f"  {rate:.0f} {unit}  {clock(remaining)} left"
        if self.folder:
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(text + "\n")
        if self.live is not None:
            self.live.update(self.task, completed=step, text=text)
        elif not self.quiet:
            tell(text)

    def status(self, state: str, step: int, **more: Any) -> None:
        """STATUS.json: running, finished, stopped, preempted, interrupted, diverged or failed.

        A disk that is full is no reason to hide why the run ended: the old status stays then.
        """
        if self.folder:
            with contextlib.suppress(OSError):
                write_atomically(self.folder / "STATUS.json", json.dumps({"state": state, "step": step, **more}) + "\n")

    def close(self) -> None:
        if self.heard is not None:
            logging.getLogger("fastssl").removeHandler(self.heard)
            self.heard = None
        if self.live is not None:
            self.live.stop()
            self.live = None


class _Heard(logging.Handler):
    """Passes warnings of the package's logger on."""

    def __init__(self, warn: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self.warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        self.warn(record.getMessage())


@contextlib.contextmanager
def listening(folder: Path | None) -> Iterator[list[str]]:
    """Keeps the package's warnings while a run has no log yet; without a folder, or where the run is not made, they are told at once."""
    early: list[str] = []
    if folder is None:
        yield early
        return
    handler = _Heard(early.append)
    logging.getLogger("fastssl").addHandler(handler)
    try:
        yield early
    except BaseException:
        for text in early:
            tell(f"warning: {text}")
        raise
    finally:
        logging.getLogger("fastssl").removeHandler(handler)


def tell(text: str) -> None:
    """A line on stderr; a reader that has gone away does not end training."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - stands in for the closed stream until exit


def speed(rates: dict[str, Any]) -> tuple[float, str]:
    """(images a second, "images/s") of a run's figures, and of a run on texts, which counts tokens, (tokens a second, "tokens/s")."""
    tokens = rates.get("tokens_per_second")
    return (rates["images_per_second"], "images/s") if tokens is None else (tokens, "tokens/s")


def clock(seconds: float) -> str:
    """75.2 -> "1:15"."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def final_table(result: dict[str, Any], classes: tuple[str, ...]) -> str:
    """The table that ends a run, as plain text."""
    percent = lambda value: "-" if value is None else f"{100 * value:.2f} %"  # noqa: E731
    rows = [("accuracy", percent(result["accuracy"]) + ("" if result["accuracy"] is not None else f" ({result['why_no_accuracy']})"))]
    raw, ema = result.get("raw"), result.get("ema")
    rows += [("  raw network", percent(raw["accuracy"]))] if raw else []
    rows += [("  averaged network", percent(ema["accuracy"]))] if ema else []
    together = result.get("together")
    rows += [("  all networks together", percent(together["accuracy"]))] if together else []
    rounds = [one for one in result.get("rounds", ()) if one["accuracy"] is not None]
    rows += [(f"  after stage {one['stage']}, {one['name']}", f"{percent(one['accuracy'])} at step {one['steps']}") for one in rounds]
    judged = together or ema or raw
    if judged:
        if thirds := judged.get("thirds"):
            rows += [(name, percent(judged[name.replace(" ", "_")])) for name in ("balanced accuracy", "geometric mean")]
            rows += [("many, medium, few labels", ", ".join(percent(thirds[name]) for name in ("many", "medium", "few")))]
        rows += [
            ("test texts" if "tokens_per_second" in result else "test images", str(judged["rows"])),
            ("calibration error (ECE)", percent(judged["ece"])),
        ]
    if result.get("kept") is not None:
        rows += [
            ("unlabelled kept", percent(result["kept"])),
            ("pseudo-label accuracy", f"{percent(result['pseudo_accuracy'])} of kept, {percent(result['pseudo_accuracy_all'])} of all"),
        ]
    if result.get("to_90_percent"):
        steps, seconds = result["to_90_percent"]
        rows += [("90 % of final accuracy", f"after {steps} steps, {seconds:.1f} s")]
    rows += [("labels", str(result["labels"])), ("steps", str(result["steps"]))]
    rate, unit = speed(result)
    rows += [("training time", f"{result['seconds']:.1f} s, {rate:.0f} {unit}")]
    if result["skipped"]:
        rows += [("skipped steps", f"{result['skipped']} (loss or gradient not finite)")]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    if judged:
        shown = [f"{c} {percent(a)}" for c, a in zip(classes, judged["per_class"], strict=True)]
        if len(shown) > 20:
            order = sorted(range(len(shown)), key=lambda i: (judged["per_class"][i] is None, judged["per_class"][i]))
            shown = [shown[i] for i in order[:20]]
            lines.append("per class, the 20 weakest (all in metrics.jsonl):")
        else:
            lines.append("per class:")
        lines += ["  " + "  ".join(shown[i : i + 5]) for i in range(0, len(shown), 5)]
    return "\n".join(lines)
