"""What a run will take: a few of its real steps on its real data, timed; nothing is written."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..config import TrainConfig
from . import look, memory
from .assemble import Parts
from .run import Run

WARM, TIMED = 3, 5  # steps before the clock runs, and steps that it measures


@dataclass(frozen=True)
class Estimate:
    """Extrapolated from `TIMED` steps of the first stage; evaluation, saving and later stages of another cost are not in it."""

    seconds_per_step: float  # median
    seconds: float  # of all steps
    memory_bytes: int  # measured peak: allocated on the CUDA device, or resident in this process
    memory: str  # "cuda" or "resident"
    steps_measured: int
    stages: int  # of the run; the first one was measured
    foreseen_bytes: int | None  # peak of the most demanding stage and of evaluation, not measured; None where it cannot be foreseen


def estimate(parts: Parts) -> Estimate:
    """Takes `WARM` and then `TIMED` steps of the run that `parts` would make. `parts` are of no use afterwards: they have been trained.

    Raises:
        ResourceError: the run would not fit into memory.
    """
    device, train = parts.device, parts.config.train
    with _as_trained(train):
        run = Run(parts, None, quiet=True)
        if run.stage is None:  # nothing trains
            return Estimate(0.0, 0.0, *memory.peak(device), 0, 0, None)
        run.memory = memory.begin(run)
        look.prepare(run, 0)
        run.method.train()
        run.prepare()
        times = []
        for step in range(WARM + TIMED):
            _wait(device)
            begin = time.perf_counter()
            with memory.guarded(run, "training"):
                run.step()
                _wait(device)
            if step >= WARM:
                times.append(time.perf_counter() - begin)
    median = statistics.median(times)
    size, kind = memory.peak(device)
    stages = sum(1 for _ in memory.stages(parts.method, train.steps))
    foreseen = run.memory.peak if run.memory is not None else None
    return Estimate(median, median * steps_alike(run), size, kind, TIMED, stages, foreseen)


def steps_alike(run: Run) -> float:
    """How many of the first stage's steps the run takes as long as: stages draw different numbers of images, and time goes with images."""
    method, train = run.method, run.config.train
    left = train.steps if train.stop_at is None else min(train.stop_at, train.steps)
    usual, total, first = method.asks(method.config), 0.0, 0
    for stage in memory.stages(method, train.steps):
        images = (stage.views or usual).count(train.ratio)
        first = first or images
        total += min(stage.steps, left) * images / first
        left -= min(stage.steps, left)
    return total


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _as_trained(train: TrainConfig) -> Iterator[None]:
    """torch's switches as Run.train sets them."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = train.tf32
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
