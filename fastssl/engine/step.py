"""Step: one update of a stage, all of it on the device. Nothing in it reads a tensor from the host, so that it can be captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..methods.base import Method, Stage
from ..pipelines.batch import Batch, Pipeline
from ..schedules import Clock, learning_rate
from .update import Update
from .updates import Updates

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """clock, draw, forward, loss, backward, optimiser, averages, memory, metric sums: in this order, once a call.

    Metrics are summed on the device; `read` copies them to the host and starts anew.

    Attributes:
        run: what a call runs: `body`, or a recording of it (modes.py).
        mode: "eager", "compile" or "graph"; "" until modes.py has chosen.
    """

    def __init__(self, method: Method, pipeline: Pipeline, update: Update | Updates, clock: Clock, config: TrainConfig):
        self.method, self.pipeline, self.update, self.clock, self.config = method, pipeline, update, clock, config
        self.amp = AMP_TYPES.get(config.amp)
        self.device = clock.step.device
        clock.ok = update.ok
        self.buffers = [buffer for module in method.modules() if not getattr(module, "guards_itself", False) for buffer in own(module)]
        self.sums: dict[str, Tensor] = {}
        self.streak = torch.zeros((), dtype=torch.int64, device=self.device)
        self.worst_streak = torch.zeros((), dtype=torch.int64, device=self.device)
        self.run: Callable[[], None] = self.body
        self.mode = ""

    def restart(self, stage: Stage) -> None:
        """Begins the stage again, at the addresses that it had: optimiser, clock and counters start afresh, unless it goes on."""
        self.update.restart(stage)
        if not stage.goes_on:
            self.clock.step.fill_(-1)
        for total in (self.streak, self.worst_streak, *self.sums.values()):
            total.zero_()

    def __call__(self) -> None:
        self.run()

    def body(self) -> None:
        """One step."""
        self.learn(self.pipeline.draw)

    def learn(self, draw: Callable[[], Batch]) -> None:
        """One step on what `draw` gives: one batch, or as many pieces of it as gradients are accumulated over."""
        self.clock.advance()
        rate = learning_rate(
            self.clock.step,
            peak=self.config.lr,
            total=self.clock.total,
            schedule=self.config.schedule,
            warmup=self.config.warmup,
            period=self.config.schedule_period,
        )
        self.update.begin(rate, self.clock.step)
        before = [buffer.clone() for buffer in self.buffers]
        pieces = []
        for _ in range(self.config.accumulate):
            batch = draw()
            with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None, cache_enabled=False):
                terms = self.method.step(batch, self.clock, self.update)
            pieces.append({"loss": terms.total.detach(), **terms.metrics})
        if isinstance(self.update, Updates):
            self.update.settle()
        ok = self.update.ok
        # A skipped step leaves no trace in memory either: banks, thresholds and batch-norm statistics are put back.
        for buffer, kept in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(ok, buffer, kept))
        self.streak.copy_(torch.where(ok, 0, self.streak + 1))
        self.worst_streak.copy_(torch.maximum(self.worst_streak, self.streak))
        self._add("skipped", (~ok).to(torch.float64), torch.ones_like(ok))
        for metrics in pieces:
            for name, value in metrics.items():
                numerator, denominator = value if isinstance(value, tuple) else (value, torch.ones_like(value))
                self._add(name, numerator, ok, denominator)

    def _add(self, name: str, value: Tensor, ok: Tensor, denominator: Tensor | None = None) -> None:
        pair = torch.stack([value, torch.ones_like(value) if denominator is None else denominator]).to(torch.float64)
        pair = torch.where(ok, pair, 0.0)
        if name in self.sums:
            self.sums[name].add_(pair)
        else:
            self.sums[name] = pair.clone()

    def read(self) -> dict[str, float | None]:
        """Means since the last reading, and the one copy from device to host. None where nothing was there to average."""
        names = list(self.sums)
        if not names:
            return {}
        table = torch.stack([self.sums[n] for n in names]).cpu()
        for total in self.sums.values():
            total.zero_()
        return {name: (float(n) / float(d) if float(d) else None) for name, (n, d) in zip(names, table, strict=True)}

    def state_dict(self) -> dict[str, object]:
        return {"sums": dict(self.sums), "streak": self.streak, "clock": self.clock.step}

    def load_state_dict(self, state: dict[str, object]) -> None:
        for name, value in state["sums"].items():
            # In place where there is one: a captured step adds to the address that it knows.
            self.sums.setdefault(name, torch.zeros_like(value, device=self.device)).copy_(value)
        self.streak.copy_(state["streak"])
        # The worst streak starts anew with what goes on: a run that was ended by one may be given another chance.
        self.worst_streak.copy_(state["streak"])
        self.clock.step.copy_(state["clock"])


def own(module: nn.Module) -> Iterator[Tensor]:
    """A module's own buffers, its parts' left out."""
    return module.buffers(recurse=False)
