"""Measures of a call: its time, its launches, its floating-point work, and what the device can do at most."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WARM, TIMED, TRACED = 3, 5, 3  # calls before the clock runs, calls that it measures, calls of a trace
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # of the square matrices whose fastest product is the ceiling


class HostClock:
    """Marks in seconds. `wait` does nothing, as nothing runs on."""

    by = "the host's clock"

    def mark(self) -> Any:
        return time.perf_counter()

    def wait(self) -> None:
        pass

    def seconds(self, start: Any, end: Any) -> float:
        return end - start


class DeviceClock:
    """Marks are CUDA events on a device's current stream; their distances can be read after `wait`."""

    by = "CUDA events"

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000


def measured(run: Callable[[], Any], clock: Any) -> float:
    """Mean seconds of a call."""
    for _ in range(WARM):
        run()
    clock.wait()
    start = clock.mark()
    for _ in range(TIMED):
        run()
    end = clock.mark()
    clock.wait()
    return clock.seconds(start, end) / TIMED


class Count(TorchDispatchMode):
    """Counts the operations that reach a device."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], Any]) -> int:
    """Operations that a call dispatches, views among them."""
    with Count() as count:
        run()
    return count.calls


def _profilers() -> Any:
    """torch's ProfilerActivity, its library's own log lines (an ERROR where there is no GPU to ask) kept from the user's screen."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when the first trace starts
    from torch.profiler import ProfilerActivity

    return ProfilerActivity


def kernels(run: Callable[[], Any], device: torch.device) -> int | None:
    """CUDA kernels that a call launches, or None where the profiler sees none; copies and fills by the driver are not counted."""
    ProfilerActivity = _profilers()
    for _ in range(2):  # a first recording may miss what runs while the profiler starts
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            run()
            torch.cuda.synchronize(device)
    on_device = [e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device) or None


def work(run: Callable[[], Any]) -> int:
    """Floating-point operations of a call, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def trace(run: Callable[[], Any], device: torch.device, path: Path) -> None:
    """A few calls as a Chrome trace (chrome://tracing, ui.perfetto.dev)."""
    ProfilerActivity = _profilers()
    cuda = device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        for _ in range(TRACED):
            with torch.profiler.record_function("step"):
                run()
        if cuda:
            torch.cuda.synchronize(device)
    recorded.export_chrome_trace(str(path))


def ceiling(device: torch.device, dtype: torch.dtype, sides: tuple[int, ...], clock: Any) -> tuple[float, int]:
    """(FLOP/s, side) of the fastest single product of square matrices, as torch's switches (TF32) stand.

    A yardstick, not a bound: a library's convolutions may be better than its matrix products.
    """
    best = (0.0, sides[0])
    for side in sides:
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        for call in range(WARM + TIMED):
            start = clock.mark()
            torch.matmul(a, b)
            end = clock.mark()
            clock.wait()
            if call >= WARM:
                best = max(best, (2 * side**3 / clock.seconds(start, end), side))
    return best
