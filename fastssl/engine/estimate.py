"""What a run will take: a few of its real steps on its real data, timed; nothing is written."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..config import TrainConfig
from .assemble import Parts
from .run import Run

WARM, TIMED = 3, 5  # steps before the clock runs, and steps that it measures


@dataclass(frozen=True)
class Estimate:
    """Extrapolated from `TIMED` steps of the first stage; evaluation, saving and later stages of another cost are not in it."""

    seconds_per_step: float  # median
    seconds: float  # of all steps
    memory_bytes: int  # peak: allocated on the CUDA device, or resident in this process
    memory: str  # "cuda" or "resident"
    steps_measured: int
    stages: int  # of the run; the first one was measured


def estimate(parts: Parts) -> Estimate:
    """Takes `WARM` and then `TIMED` steps of the run that `parts` would make. `parts` are of no use afterwards: they have been trained.

    Raises:
        torch.OutOfMemoryError, MemoryError: the run would not fit.
    """
    device, train = parts.device, parts.config.train
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _as_trained(train):
        run = Run(parts, None, quiet=True)
        run.method.train()
        times = []
        for step in range(WARM + TIMED):
            _wait(device)
            begin = time.perf_counter()
            run.step()
            _wait(device)
            if step >= WARM:
                times.append(time.perf_counter() - begin)
    median = statistics.median(times)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident()
    stages = 1
    while parts.method.stage(stages, train.steps) is not None:
        stages += 1
    end = train.steps if train.stop_at is None else min(train.stop_at, train.steps)
    return Estimate(median, median * end, memory, "cuda" if device.type == "cuda" else "resident", TIMED, stages)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident() -> int:
    """Peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


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
