"""One row of the step benchmark: entrants checked against each other by their first step, then timed in turns in one process.

A row notes into `extra_info`: `ours_ms` and `PEER_ms` (medians), `ratio_to_PEER` (median over the rounds of their time divided by ours;
above 1: ours is faster) with its quartiles `_low` and `_high`, `goal_PEER` where a goal is set, `rounds`, and the row's ceiling measured
in the same run: `ceiling_ms` is the time that the step's matrix products and convolutions would take at the best rate of a large one
(or its bytes at the rate of a large copy), `percent_of_ceiling` that time over ours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ._timing import Machine

LIMIT = 60.0  # seconds that the timed rounds of a row may take
LEAST_ROUNDS = 3


class Entrant(Protocol):
    """One implementation of a step."""

    def __call__(self) -> None: ...

    def loss(self) -> float: ...

    def trained(self) -> list[Tensor]: ...


def weights(entrant: Entrant) -> list[Tensor]:
    return [p.detach().to("cpu", torch.float64, copy=True) for p in entrant.trained()]


def distance(a: Entrant, b: Entrant, before: Sequence[Tensor]) -> tuple[float, float]:
    """(relative difference of the last losses; norm of the difference of both updates over the norm of b's)."""
    moved = [[now - old for now, old in zip(weights(e), before, strict=True)] for e in (a, b)]
    apart = sum(float((x - y).square().sum()) for x, y in zip(*moved, strict=True))
    size = sum(float(y.square().sum()) for y in moved[1])
    assert size > 0, "the step that is compared with moved no weight"
    return abs(a.loss() - b.loss()) / abs(b.loss()), (apart / size) ** 0.5


def agree(name: str, a: Entrant, b: Entrant, before: Sequence[Tensor], loss: float, update: float) -> dict[str, float]:
    """Holds a's first step to b's.

    Args:
        before: weights that both started from.
        loss, update: allowed distances.

    Raises:
        AssertionError: they differ by more, or by NaN.
    """
    off, away = distance(a, b, before)
    assert off <= loss, f"{name}: the loss of one step is off by {off:.1e} of its size, allowed {loss:.0e}"
    assert away <= update, f"{name}: the update of one step is off by {away:.1e} of its norm, allowed {update:.0e}"
    return {f"{name}_loss_off": off, f"{name}_update_off": away}


def seconds(machine: Machine, call: Callable[[], object], calls: int = 1) -> float:
    """Wall-clock seconds a call; the device is waited for at the end."""
    machine.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    machine.synchronize()
    return (time.perf_counter() - start) / calls


@contextmanager
def ieee(machine: Machine) -> Iterator[None]:
    """fp32 without TF32 inside: equal mathematics can then be told from other. Timings take torch's own settings."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if machine.cuda:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def race(
    benchmark: Any,
    machine: Machine,
    ours: Callable[[], object],
    others: dict[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int = 1,
    limit: float = LIMIT,
    checks: Callable[[], dict[str, float]] | None = None,
    goals: dict[str, float] | None = None,
    most: dict[str, int] | None = None,
) -> dict[str, list[float]]:
    """Times ours and the others in turns: a warm-up round, the checks on it, then `rounds` rounds, fewer where `limit` seconds end them.

    Args:
        benchmark: pytest-benchmark's fixture, or a Recorder.
        calls: steps of one measurement.
        checks: looks at the entrants after one call of each; what it returns is noted.
        goals: peer -> ratio that is aimed at.
        most: peer -> rounds that it takes part in, for a slow one; the first ones.

    Returns:
        Seconds a step of each entrant, round by round.
    """
    entrants = {"ours": ours, **others}
    with ieee(machine):
        first = {name: seconds(machine, call) for name, call in entrants.items()}
        if checks is not None:
            benchmark.extra_info.update(checks())
    if calls > 1:
        first = {name: seconds(machine, call, calls) * calls for name, call in entrants.items()}
    most = most or {}
    slow = sum(first[name] * count for name, count in most.items())
    each = sum(taken for name, taken in first.items() if name not in most)
    rounds = min(rounds, max(LEAST_ROUNDS, int((limit - slow) / each)))
    times: dict[str, list[float]] = {name: [] for name in entrants}
    names = list(others)

    def before_ours() -> None:
        turn = len(times["ours"]) % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            if len(times[name]) < most.get(name, rounds):
                times[name].append(seconds(machine, others[name], calls))

    def measured() -> None:
        times["ours"].append(seconds(machine, ours, calls))

    benchmark.pedantic(measured, setup=before_ours, rounds=rounds, iterations=1, warmup_rounds=0)
    note(benchmark.extra_info, times, goals or {})
    benchmark.extra_info.update(rounds=rounds, steps_a_round=calls, threads=torch.get_num_threads(), tf32=tf32(machine))
    return times


def note(info: dict[str, Any], times: dict[str, list[float]], goals: dict[str, float]) -> None:
    """Medians and paired ratios of a race."""
    for name, taken in times.items():
        info[f"{name}_ms"] = statistics.median(taken) * 1e3
        if name == "ours":
            continue
        ratios = [theirs / own for theirs, own in zip(taken, times["ours"], strict=False)]  # a slow peer leaves after its rounds
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        info.update({f"ratio_to_{name}": middle, f"ratio_to_{name}_low": low, f"ratio_to_{name}_high": high})
        if name in goals:
            info[f"goal_{name}"] = goals[name]


def ceiling(info: dict[str, Any], at_best: float, what: str) -> None:
    """Notes the least time that the row's work can take, in seconds, and what it is bounded by."""
    info.update(ceiling=what, ceiling_ms=at_best * 1e3, percent_of_ceiling=100 * at_best * 1e3 / info["ours_ms"])
    for name in [key.removeprefix("ratio_to_") for key in info if key.startswith("ratio_to_")]:
        if f"{name}_ms" in info:
            info[f"most_to_{name}"] = info[f"{name}_ms"] / (at_best * 1e3)


def flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of one eager step, which is taken."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak(machine: Machine, dtype: torch.dtype, tries: int = 8) -> float:
    """FLOP/s of the best of several large matrix products and convolutions of this dtype (TF32 as torch is set).

    Both, because on CPUs the two come from different libraries, of which either may be the faster.
    """
    side, images = (8192, 256) if machine.cuda else (2048, 32)
    channels, edge = 128, 32
    random = lambda *shape: torch.randn(*shape, device=machine.device).to(dtype)  # noqa: E731
    a, b = random(side, side), random(side, side)
    x, w = (t.to(memory_format=torch.channels_last) for t in (random(images, channels, edge, edge), random(channels, channels, 3, 3)))
    jobs = {
        2 * side**3: lambda: torch.mm(a, b),
        2 * images * edge**2 * channels**2 * 9: lambda: torch.nn.functional.conv2d(x, w, padding=1),
    }
    best = 0.0
    for work, job in jobs.items():
        job()
        best = max(best, work / min(seconds(machine, job) for _ in range(tries)))
    return best


def tf32(machine: Machine) -> str:
    if not machine.cuda:
        return "none on a CPU"
    word = {True: "on", False: "off"}
    return f"matmul {word[torch.backends.cuda.matmul.allow_tf32]}, convolutions {word[torch.backends.cudnn.allow_tf32]}"


def table_lines(name: str, info: dict[str, Any]) -> Iterator[str]:
    """One line for ours and its ceiling, one for each peer: its time, ratio with quartiles, goal, and what the ceiling leaves room for."""
    yield f"{name}: ours {info['ours_ms']:.2f} ms"
    if "ceiling_ms" in info:
        yield f"    ceiling {info['ceiling_ms']:.2f} ms ({info['percent_of_ceiling']:.0f} % of it reached): {info['ceiling']}"
    for key in [key for key in info if key.startswith("ratio_to_") and not key.endswith(("_low", "_high"))]:
        peer = key.removeprefix("ratio_to_")
        line = f"    {peer:<16} {info[f'{peer}_ms']:>10.2f} ms  {info[key]:>6.2f}x [{info[f'{key}_low']:.2f}, {info[f'{key}_high']:.2f}]"
        line += f"  goal {info[f'goal_{peer}']:.2f}" if f"goal_{peer}" in info else ""
        line += f"  at most {info[f'most_to_{peer}']:.2f}" if f"most_to_{peer}" in info else ""
        yield line
    told = {"ceiling", "ceiling_ms", "percent_of_ceiling", "ours_ms"}
    rest = {
        k: v for k, v in info.items() if k not in told and not k.startswith(("ratio_to_", "goal_", "most_to_")) and not k.endswith("_ms")
    }
    yield "    " + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items())


class Recorder:
    """Stands for pytest-benchmark's fixture where a row runs by itself."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, target: Callable[[], None], *, setup: Callable[[], None], rounds: int, **options: Any) -> None:
        for _ in range(rounds):
            setup()
            target()
