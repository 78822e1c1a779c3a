"""Run: walks the stages, evaluates, saves, resumes, reports."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ..config import RunConfig
from ..methods.base import Stage
from ..pipelines.errors import DivergedError, FastsslError, Preempted
from . import checkpoint, directory, gradient_gate, look, memory, modes, profile, state, texts
from .announce import announce
from .assemble import Parts, assemble
from .own_labels import with_own_labels
from .report import Reporter, listening, speed
from .rounds import Rounds
from .step import AMP_TYPES
from .sweep import Judgement, judge, logits_of, reached


class Interrupted(FastsslError):
    """Ctrl-C: the step was finished and saved (exit 130)."""

    exit_code = 130


class Run:
    """One training run in one directory.

    Args:
        parts: what `assemble` made of the configuration.
        folder: the run directory (made here), or None to write nothing.
        overwrite: replace a run that is there.
        quiet: no progress on stderr.

    Raises:
        ConfigError: the directory exists.
    """

    def __init__(self, parts: Parts, folder: Path | None, *, overwrite: bool = False, quiet: bool = False, resume: bool = False):
        self.parts, self.config, self.folder = parts, parts.config, folder
        self.method, self.pipeline = parts.method, parts.pipeline
        train = self.config.train
        self.total = train.steps
        self.done = 0  # steps of the run that are finished
        self.ended = False  # whether the method had no further stage before the steps were used up
        self.seconds = 0.0  # training time, evaluation and saving left out
        self.curve: list[tuple[int, float, float]] = []
        self.stage_index, self.stage_start = 0, 0
        self.last: dict[str, float | None] = {}
        self.skipped, self.reported = 0.0, 0
        self.images = 0  # views forwarded so far
        self.signal: int | None = None
        self.judgement: tuple[int, Judgement | None, Judgement | None] = (-1, None, None)  # step, raw, averaged
        self.rounds = Rounds(self)
        with listening(folder) as early:
            self.set_up(self.method.stage(0, self.total))  # first: where it refuses the configuration no run is made or replaced
            if folder is not None and not resume:
                directory.create(folder, parts, overwrite=overwrite)
        self.lock = directory.take_lock(folder) if folder is not None else None
        self.reporter = Reporter(folder, self.total, quiet=quiet)
        for text in early:
            self.reporter.warn(text)

    def train(self) -> dict[str, Any]:
        """Trains to the end (or to `train.stop_at`), and returns the result that the final table shows.

        Raises:
            DivergedError, Preempted, Interrupted: after saving what can be saved.
        """
        train = self.config.train
        deterministic = torch.are_deterministic_algorithms_enabled()
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if self.parts.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = train.tf32
        kept = torch.get_rng_state()
        if self.done == 0:
            torch.manual_seed(train.seed)  # dropout and the like; a resumed run has its checkpoint's own state
            announce(self)
        self.memory = memory.begin(self) if self.stage else None
        # Python lets the main thread alone take signals; elsewhere (a notebook's worker) the caller's own handling stays.
        taken = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        handlers = {number: signal.signal(number, self._on_signal) for number in taken}
        self.reporter.status("running", self.done)
        try:
            self._walk()
            finished = self.ended or self.done >= self.total
            if finished and self.done and int(self.step.streak) >= min(train.max_skipped, self.done):
                raise DivergedError(self._diverged(int(self.step.streak)))
            result = self.result()
            self.reporter.metrics("result", self.done, result)
            self.reporter.status("finished" if finished else "stopped", self.done, accuracy=result["accuracy"])
            return result
        except (Preempted, Interrupted) as stop:
            self.reporter.status("preempted" if isinstance(stop, Preempted) else "interrupted", self.done, reason=str(stop))
            raise
        except DivergedError as error:
            self.reporter.status("diverged", self.done, reason=str(error))
            raise
        except BaseException as error:
            self.reporter.status("failed", self.done, reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            torch.set_rng_state(kept)
            torch.use_deterministic_algorithms(deterministic)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.let_go()

    def let_go(self) -> None:
        """Closes the log and gives the directory free."""
        self.reporter.close()
        if self.lock is not None:
            self.lock.close()

    def set_up(self, stage: Stage | None) -> None:
        """Makes clock, update and step of a stage, or takes those that it had (rounds.py)."""
        self.stage, self.step = stage, self.rounds.set_up(stage)
        self.total = 0 if stage is None else self.total
        self.clock, self.update = self.step.clock, self.step.update

    def prepare(self) -> None:
        """Compiles or captures the stage's step, once, before its first call; the time is not training time."""
        if not self.step.mode:
            with memory.guarded(self, "preparing"):
                gradient_gate.when_asked(self)
                self.reporter.say(
                    modes.prepare(self.step, self.config.train.step_mode, self.reporter.warn, recorder=self.rounds.recorder())
                )
                profile.when_asked(self)

    def _walk(self) -> None:
        train = self.config.train
        eval_every = train.eval_every or max(1, self.total // 10)
        save_every = train.save_every or max(1, self.total // 4)
        end = self.total if train.stop_at is None else min(train.stop_at, self.total)
        if self.total == 0:
            self.save()
        elif self.done == 0:
            look.begin(self, 0)
        self.method.train()
        while self.done < end and not self.ended:
            if self.done - self.stage_start >= self.stage.steps and not self.rounds.next():
                break
            self.prepare()
            begin = time.perf_counter()
            with memory.guarded(self, "training"):
                self.step()
            self.seconds += time.perf_counter() - begin
            self.done += 1
            self.images += self.config.train.batch_size * self.pipeline.views.count(self.config.train.ratio)
            if self.done % train.report_every == 0 or self.done == self.total:
                self.report()
            if self.done % eval_every == 0 or self.done == self.total:
                self.evaluate()
            if self.done % save_every == 0 or self.done == end or self.signal is not None:
                self.save()
            if self.signal is not None and self.done < end:
                where = f"stopped by signal {self.signal} after step {self.done}, saved; go on with --resume {self.folder}"
                raise (Interrupted if self.signal == signal.SIGINT else Preempted)(where)

    def report(self) -> None:
        if self.done == self.reported:
            return
        begin = time.perf_counter()
        values = self.step.read()
        worst = int(self.step.worst_streak)
        self.seconds += time.perf_counter() - begin  # the reading waits for the device: that is training time
        if not values:
            return
        self.skipped += (values.pop("skipped") or 0.0) * (self.done - self.reported)
        self.reported = self.done
        self.last = values
        remaining = self.seconds / self.done * (self.total - self.done)
        rates = {"images_per_second": self.images / self.seconds, **texts.rate(self)}
        record = {**values, "skipped": round(self.skipped), "lr": float(self.update.lr), **rates, "seconds": self.seconds}
        self.reporter.metrics("train", self.done, record)
        shown, unit = speed(rates)
        self.reporter.progress(self.done, values, shown, remaining, unit)
        if worst >= self.config.train.max_skipped:
            raise DivergedError(self._diverged(worst))

    def _diverged(self, streak: int) -> str:
        saved = checkpoint.listed(self.folder / "checkpoints") if self.folder else []
        return (
            f"loss or gradient was not finite in {streak} steps running, up to step {self.done} (newest checkpoint: "
            f"{saved[-1] if saved else 'none'}); train anew with another --out and a lower --lr"
            f"{'' if self.config.train.amp == 'off' else ', or --amp off'}"
        )

    def _judge(self) -> tuple[Judgement | None, Judgement | None]:
        """On the test part: the raw network (of several the first), and the averaged one or all together where these are judged."""
        if len(self.parts.split.test) == 0:
            return None, None
        amp, classes = AMP_TYPES.get(self.config.train.amp), len(self.parts.source.classes)
        judged = []
        names = self.method.judges()
        raw = self.method.network if names[0] == "ema" else self.method.get_submodule(names[0])
        for network in (raw, self.method.judged() if len(names) > 1 or names == ("ema",) else None):
            if network is None:
                judged.append(None)
                continue
            with memory.guarded(self, "evaluating"):
                logits, label, index = logits_of(network, self.pipeline, "test", amp=amp)
            judged.append(judge(self.method.finish(logits, index), label, classes, self.parts.split.label))
        return judged[0], judged[1]

    def evaluate(self) -> None:
        raw, ema = self._judge()
        self.judgement = (self.done, raw, ema)
        counted = ema or raw
        if counted is None:
            return
        self.curve.append((self.done, self.seconds, counted.accuracy))
        values = {"seconds": self.seconds, "accuracy": counted.accuracy, "ece": counted.ece}
        self.reporter.metrics("eval", self.done, {**values, "accuracy_raw": raw.accuracy, "accuracy_ema": ema.accuracy if ema else None})

    def result(self) -> dict[str, Any]:
        """Figures at the present step. `accuracy` is the judged network's on the test part, None where there is none."""
        at, raw, ema = self.judgement
        if at != self.done:
            raw, ema = self._judge()
        counted = ema or raw
        self.rounds.end(counted.accuracy if counted else None)
        c, averaged = self.config, self.method.judges() == ("ema",)
        return {
            "run_dir": str(self.folder) if self.folder else None,
            "method": c.method_name,
            "data": c.data.name,
            "model": c.model.name,
            "steps": self.done,
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds if self.seconds else 0.0,
            **texts.rate(self),
            "accuracy": counted.accuracy if counted else None,
            "why_no_accuracy": None if counted else f"no test {self.parts.source.samples}; give --test or --holdout",
            "labels": len(self.parts.split.labelled),
            "seed": c.train.seed,
            "ece": counted.ece if counted else None,
            "raw": dataclasses.asdict(raw) if raw else None,
            "ema": dataclasses.asdict(ema) if ema and averaged else None,
            "together": dataclasses.asdict(ema) if ema and not averaged else None,
            "rounds": self.rounds.table(),
            **{k: self.last.get(k) for k in ("kept", "pseudo_accuracy", "pseudo_accuracy_all", "pseudo_bias", "foundation_agreement")},
            # Of a run whose stages are judged one by one, the curve is of several networks.
            "to_90_percent": None if any(one["accuracy"] is not None for one in self.rounds.table()[:-1]) else reached(self.curve),
            "skipped": round(self.skipped),
            "peak_memory_bytes": memory.end(self),
            "split_hash": self.parts.split.hash,
        }

    def save(self) -> None:
        """Writes a checkpoint of everything that the rest of the run depends on."""
        if self.folder is not None:
            state.save(self)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def resume(config: RunConfig, folder: Path, *, quiet: bool = False) -> Run:
    """The run of a directory, brought back to its newest checkpoint. `config` is the directory's own."""
    # The split comes from the directory, never drawn again: a redrawn one would show the model more labels than it claims.
    drawn = {"split": str(folder / "split.csv"), "labels_per_class": None, "label_fraction": None, "labels_total": None, "holdout": None}
    data = dataclasses.replace(with_own_labels(config, folder).data, **drawn, sampling="balanced")
    parts = assemble(dataclasses.replace(config, data=data), restored=True, quiet=quiet)
    parts.config = config
    run = Run(parts, folder, quiet=quiet, resume=True)
    try:
        state.restore(run)
    except BaseException:
        run.let_go()
        raise
    return run
