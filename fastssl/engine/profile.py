"""Where a step's time goes: phases, launches, and floating-point work against what the device can do.

All of it is measured before training, by steps whose traces are wiped out (putback.py): training is what it would have been.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models import Network
from . import measure
from .measure import TIMED, TRACED, WARM, DeviceClock, HostClock, measured
from .putback import put_back
from .report import write_atomically

PHASES = ("data", "forward", "loss", "backward", "update", "memory", "rest")


@dataclass(frozen=True)
class Profile:
    """Seconds, launches and operations of a step."""

    phases: dict[str, float]  # of an eager step that is watched, by PHASES: they add up to it
    whole: dict[str, float]  # mode -> seconds of a step that is not watched: "eager", and the run's own
    launches: dict[str, int | None]  # mode -> what `unit` names; None where they cannot be counted
    unit: str
    flops: int  # of an eager step; a multiplication and an addition are two
    ceiling: float  # FLOP/s of a matrix product
    product: str  # which one
    by: str  # what measured time

    def table(self) -> str:
        step = sum(self.phases.values())
        lines = [f"{'phase':<10}{'ms':>10}{'share':>9}   (eager steps, mean of {TIMED}, by {self.by})"]
        lines += [f"{name:<10}{1e3 * s:>10.3f}{s / step if step else 0:>9.1%}" for name, s in self.phases.items()]
        lines += [f"{'step':<10}{1e3 * step:>10.3f}{1:>9.1%}", ""]
        for mode, seconds in self.whole.items():
            inside = "" if mode == "eager" else "   (only the whole can be measured in this mode)"
            lines.append(f"whole step, {mode}: {1e3 * seconds:.3f} ms{inside}")
        lines.append(
            "launches: "
            + ", ".join(
                f"{count:,} {self.unit} ({mode})" if count else f"not to be counted here ({mode})" for mode, count in self.launches.items()
            )
        )
        mode, seconds = list(self.whole.items())[-1]
        reached = self.flops / seconds if seconds else 0.0
        lines.append(
            f"work: {self.flops / 1e9:.4g} GFLOP a step (matrix products, convolutions, attention), {reached / 1e12:.3g} TFLOP/s ({mode}), "
            f"{reached / self.ceiling:.1%} of the {self.ceiling / 1e12:.3g} TFLOP/s of {self.product} here"
        )
        return "\n".join(lines) + "\n"


class Phases:
    """Says of every moment of an eager Step to which phase it belongs, by marks where one ends and another begins.

    Between the end of `loss` and the end of its backward pass all is backward's; from there to the end of the update all is the update's.
    """

    def __init__(self, step: Any, clock: Any):
        self.step, self.clock = step, clock
        self.spans: list[tuple[str, Any, Any]] = []
        self.now, self.depth = "rest", 0
        self.last: Any = None

    def run(self) -> None:
        """One step."""
        self.last = self.clock.mark()
        self.step.learn(self._within("data", self.step.pipeline.draw))
        self._spend("rest")

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds since the spans were last cleared."""
        self.clock.wait()
        found = dict.fromkeys(PHASES, 0.0)
        for name, start, end in self.spans:
            found[name] += self.clock.seconds(start, end)
        return found

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the step's method, networks and update report where they are."""
        method, update = self.step.method, self.step.update
        hooks = []
        try:
            for network in (module for module in method.modules() if isinstance(module, Network)):
                hooks += [network.register_forward_pre_hook(self._enter), network.register_forward_hook(self._leave)]
            for name in method.compiled:
                method.__dict__[name] = self._within("memory" if name == "remember" else "loss", getattr(method, name))
            update.watch = self._spend
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name in method.compiled:
                method.__dict__.pop(name, None)
            update.watch = None

    def _spend(self, phase: str) -> None:
        now = self.clock.mark()
        self.spans.append((phase, self.last, now))
        self.last = now

    def _within(self, phase: str, function: Callable) -> Callable:
        def wrapped(*args: Any, **options: Any) -> Any:
            self._spend(self.now)
            around, self.now = self.now, phase
            try:
                return function(*args, **options)
            finally:
                self._spend(phase)
                self.now = around

        return wrapped

    def _enter(self, *_: Any) -> None:
        if self.depth == 0:
            self._spend(self.now)
        self.depth += 1

    def _leave(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self._spend("forward")


def when_asked(run: Any) -> None:
    """Profiles a Run's first stage where `train.profile` says so: a table in its log, and profile/ in its directory."""
    if not run.config.train.profile or getattr(run, "profiled", False):
        return
    run.profiled = True
    run.reporter.say(f"profiling {WARM + TIMED + TRACED} steps and some more, whose traces are wiped out")
    folder = run.folder / "profile" if run.folder is not None else None
    for line in profile(run.step, folder).table().splitlines():
        run.reporter.say(line)
    if folder is not None:
        run.reporter.say(f"profile: {folder / 'table.txt'}, {folder / 'trace.json'}")


def profile(step: Any, folder: Path | None, *, clock: Any = None, sides: tuple[int, ...] | None = None) -> Profile:
    """Measures a prepared Step, and leaves it as it was.

    Args:
        folder: takes trace.json (of the run's own mode) and table.txt; None to write nothing.
        clock: HostClock or DeviceClock if None, by the device.
        sides: of the ceiling's matrices; measure.SIDES if None.
    """
    device = step.device
    clock = clock or (DeviceClock(device) if device.type == "cuda" else HostClock())
    modes = {"eager": step.body} | ({step.mode: step.run} if step.mode not in ("", "eager") else {})
    whole, launches = {}, {}
    with put_back(step):
        for mode, run in modes.items():
            with eagerly(step) if mode == "eager" else contextlib.nullcontext():
                whole[mode] = measured(run, clock)
                if device.type == "cuda":
                    launches[mode] = measure.kernels(run, device)
                elif mode == "eager":
                    launches[mode] = measure.operations(run)
        with eagerly(step):
            phases = phases_of(step, clock)
            flops = measure.work(step.body)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            measure.trace(step, device, folder / "trace.json")
        dtype = step.amp or torch.float32
        most, side = measure.ceiling(device, dtype, sides or measure.SIDES[device.type], clock)
    product = f"a {side} x {side} matrix product in {str(dtype).removeprefix('torch.')}"
    unit = "CUDA kernels" if device.type == "cuda" else "dispatched operations"
    found = Profile(phases, whole, launches, unit, flops, most, product, clock.by)
    if folder is not None:
        write_atomically(folder / "table.txt", found.table())
    return found


@contextlib.contextmanager
def eagerly(step: Any) -> Iterator[None]:
    """Within it the method's `loss` and `remember` are its own, not their compiled forms (modes.compile_method)."""
    kept = {name: step.method.__dict__.pop(name) for name in step.method.compiled if name in step.method.__dict__}
    try:
        yield
    finally:
        step.method.__dict__.update(kept)


def phases_of(step: Any, clock: Any) -> dict[str, float]:
    """Phase -> mean seconds of a step."""
    phases = Phases(step, clock)
    with phases.watching():
        phases.run()
        phases.spans.clear()
        clock.wait()
        for _ in range(TIMED):
            phases.run()
    return {name: seconds / TIMED for name, seconds in phases.seconds().items()}
