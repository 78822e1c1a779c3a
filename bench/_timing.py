"""Time, launches and memory on a CUDA device; on a CPU a wall clock stands in, so that everything built on this can be tested there.

A measurement is one `Job`: several calls over several input sets, divided by their number. Jobs that are compared run in turns, round by
round in one process, and their order moves on by one each round. Before each measurement the L2 cache is swept by reading (not writing:
dirty lines would be written back inside the measurement) four times its size.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

L2_MULTIPLE = 4  # of the L2, in bytes: what is swept, and what the input sets of a row hold where memory and `MOST_CALLS` allow
MOST_CALLS = 64


class Spread(NamedTuple):
    """Of n measurements: median and interquartile range."""

    median: float
    iqr: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, high - low, len(values))


class EventTimer:
    """Microseconds of the current CUDA stream between two events around a call."""

    def __init__(self) -> None:
        self.start = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)

    def __call__(self, run: Callable[[], object]) -> float:
        self.start.record()
        run()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) * 1e3


def cpu_wall_clock_us(run: Callable[[], object]) -> float:
    """Microseconds of host time around a call: what stands in for `EventTimer` on a CPU."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e6


class Machine:
    """One device with its timer and its cache.

    Args:
        device: "cuda", "cuda:1", "cpu" ...; a CUDA device becomes the current one.
    """

    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.timer: Callable[[Callable[[], object]], float] = cpu_wall_clock_us
        self.l2 = 0  # bytes
        if self.cuda:
            if self.device.index is not None:
                torch.cuda.set_device(self.device)
            self.device = torch.device("cuda", torch.cuda.current_device())
            self.l2 = torch.cuda.get_device_properties(self.device).L2_cache_size
            self.timer = EventTimer()
            self._swept = torch.ones(L2_MULTIPLE * self.l2 // 4, device=self.device)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def settle(self, idle: bool) -> None:
        """Sweeps the L2. `idle`: waits for the end of it, so that a launch-bound call finds an empty queue, as it would in a loop.

        Without `idle` the sweep still runs while the host enqueues what comes next, which hides a graph's launch latency.
        """
        if self.cuda:
            self._swept.sum()
            if idle:
                self.synchronize()

    def alive(self) -> bool:
        """False once the device has failed for good (an illegal access, say): nothing more can be measured in this process."""
        try:
            self.synchronize()
            return float(torch.ones(1, device=self.device).item()) == 1.0
        except RuntimeError:
            return False

    def sets_and_calls(self, set_bytes: int, least_bytes: int) -> tuple[int, int]:
        """(input sets, calls a measurement): sets past the L2, calls for about 2 ms at 4 TB/s, both from 2 to 64, calls a multiple."""
        sets = min(max(-(-L2_MULTIPLE * self.l2 // set_bytes), 2), MOST_CALLS)
        calls = min(max(8_000_000_000 // least_bytes, sets), MOST_CALLS) if self.cuda else sets
        return sets, calls // sets * sets


class Job(NamedTuple):
    """What one measurement runs."""

    run: Callable[[], object]
    calls: int  # calls in one run
    before: Callable[[], object]  # outside the time


def cycle(call: Callable[..., object], sets: Sequence[tuple], calls: int) -> Callable[[], None]:
    """`calls` calls over `sets` in turn. As many results as there are sets stay alive: no two neighbours write the same lines of the L2."""

    def run() -> None:
        held: deque = deque(maxlen=len(sets))
        for i in range(calls):
            held.append(call(*sets[i % len(sets)]))

    return run


def interleaved(
    jobs: dict[str, Job], timer: Callable[[Callable[[], object]], float], rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Microseconds a call of each job, `rounds` of them; entry i of every list is from round i."""
    names = list(jobs)
    if not names:
        return {}
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            job = jobs[name]
            job.before()
            taken = timer(job.run) / job.calls
            if number >= 0:
                times[name].append(taken)
    return times


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median over the rounds of theirs / ours: above 1, ours is faster."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def captured(run: Callable[[], object], pool) -> torch.cuda.CUDAGraph:
    """`run` as a CUDA graph, after warm-ups on a side stream. Graphs that share `pool` overwrite each other's results.

    The last warm-up raises RuntimeError where `run` waits for the device: inside a capture that would leave the process unusable.
    """
    before = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        run()
        run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    before.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    try:
        with torch.cuda.graph(graph, pool=pool):
            run()
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own stream current
    graph.instantiate()
    return graph


def graph_nodes(graph: torch.cuda.CUDAGraph) -> int:
    """Kernels, copies and memsets of one replay, counted by the CUDA runtime."""
    runtime = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.split('.')[0]}")  # the one that torch has loaded
    count = ctypes.c_size_t()
    code = runtime.cudaGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    if code != 0:
        raise RuntimeError(f"cudaGraphGetNodes answered {code}")
    return count.value


def profiled_launches(call: Callable[[], object]) -> int:
    """Kernels, copies and memsets that one call puts on the device, counted by torch.profiler."""
    for _ in range(2):  # a first session may miss what runs while the profiler starts
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
    on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    count = sum(not e.is_user_annotation for e in on_device)
    if count == 0:
        raise RuntimeError("torch.profiler saw nothing on the device; are its counters readable on this machine?")
    return count


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """Device memory that one call adds at its peak to what was allocated before it, its results included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


def host_us(machine: Machine, call: Callable[[], object], calls: int = 200, rounds: int = 5) -> Spread:
    """Host microseconds a call over `calls` calls without waiting for the device: what issuing the work costs."""

    def run() -> None:
        for _ in range(calls):
            call()

    taken = []
    for _ in range(rounds + 1):
        machine.synchronize()
        taken.append(cpu_wall_clock_us(run) / calls)
    machine.synchronize()
    return spread(taken[1:])


def copy_gb_per_s(machine: Machine, size: int, rounds: int = 25) -> Spread:
    """GB/s of a device copy of `size` bytes of random numbers, bytes read and bytes written both counted."""
    source = torch.randn(size // 4, device=machine.device)
    target = torch.empty_like(source)
    job = Job(lambda: [target.copy_(source) for _ in range(4)], 4, lambda: machine.settle(idle=False))
    times = interleaved({"copy": job}, machine.timer, rounds, warmup=10)["copy"]
    return spread([2 * source.numel() * 4 / us / 1e3 for us in times])


def matmul_tflop_per_s(machine: Machine, side: int, rounds: int = 25) -> Spread:
    """TFLOP/s of a bf16 product of two random [side, side] matrices."""
    a, b = (torch.randn(side, side, device=machine.device, dtype=torch.bfloat16) for _ in range(2))
    job = Job(lambda: torch.mm(a, b), 1, lambda: machine.settle(idle=False))
    times = interleaved({"matmul": job}, machine.timer, rounds, warmup=10)["matmul"]
    return spread([2 * side**3 / us / 1e6 for us in times])
