"""A row a method: its training step, data left out, against FixMatch's in the same run, and what its counted passes explain of that.

`pytest bench/bench_methods.py --benchmark-only`; `-k adamatch` for one row. Correctness first: the step's loss is that of an eager call on
a twin, its weights moved and are finite, and the networks were given as many images as the case counts (method_cases.py). Then both steps
run in turns. A row notes

* `cost`: time of the method's step over FixMatch's, median of the paired rounds;
* `weighed`: the same by counted images alone, each forward 1 and each backward pass 2;
* `explained`: what these passes cost in this run. `as_many` is FixMatch's step on as many images as the method leads back (batches have
  their own price: fixed costs, caches), to which each image that is only forwarded adds a third of FixMatch's own time an image;
* `over`: cost over explained, whose limit is 1.15, and `mark`: "within" or "ABOVE". No test fails by a time.

| rows | setting |
|---|---|
| method_*_cpu | WRN-10-1, 8 + 56 images of 32 pixels, fp32, all views in one forward pass |
| method_*_cuda | WRN-28-2, 64 + 448, bf16, captured; bench.gpu_steps runs them |
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bench import method_cases, our_steps, step_rows
from bench._timing import Machine
from bench.method_cases import CASES

ALLOWED = 1.15  # of a step's time over what its counted passes explain
SAME = {"off": 1e-5, "bf16": 2e-2}  # of the step's loss against the eager one's


def row(
    benchmark: Any,
    machine: Machine,
    name: str,
    *,
    network: str,
    sizes: tuple[int, int],
    amp: str = "off",
    mode: str = "eager",
    rounds: int,
    calls: int = 1,
) -> None:
    """One method against FixMatch."""
    built = our_steps.wide_network(network, 10, machine.device)
    sizes = (sizes[0] * CASES[name].labelled, sizes[1])
    make = lambda which, sizes: method_cases.method_step(which, built, sizes, amp=amp)  # noqa: E731
    ours, fixmatch, twin = make(name, sizes), make("fixmatch", sizes), make(name, sizes)
    before = step_rows.weights(ours)
    given = method_cases.seen(twin.step.method, lambda: setattr(twin, "expected", twin.eager_loss()))
    assert given == ours.passes, f"{name} forwards {given}, and its case counts {ours.passes}"
    others = {"fixmatch": fixmatch.prepare(mode)}
    if ours.passes.graph != fixmatch.passes.graph:
        others["as_many"] = make("fixmatch", alike(ours.passes.graph, sizes)).prepare(mode)
    checks = lambda: check(name, ours, twin.expected, before, SAME[amp])  # noqa: E731
    times = step_rows.race(benchmark, machine, ours.prepare(mode), others, rounds=rounds, calls=calls, checks=checks)
    plain = ours.passes.plain / fixmatch.passes.work
    benchmark.extra_info.update(judged(times["ours"], times["fixmatch"], times.get("as_many", times["fixmatch"]), plain))
    benchmark.extra_info.update(weighed=ours.passes.work / fixmatch.passes.work, batch=f"{sizes[0]}+{sizes[1]}", network=network)
    benchmark.extra_info.update(passes=f"{ours.passes.graph} led back, {ours.passes.plain} not", amp=amp, mode=mode)


def alike(images: int, sizes: tuple[int, int]) -> tuple[int, int]:
    """(B, U) of a FixMatch step that forwards `images` images, in about the proportion of `sizes`."""
    unlabelled = images * sizes[1] // (sizes[0] + 2 * sizes[1])
    return images - 2 * unlabelled, unlabelled


def check(name: str, ours: method_cases.MethodStep, expected: float, before: list[torch.Tensor], same: float) -> dict[str, float]:
    """Holds the first step to the eager loss and to weights that moved. Raises AssertionError."""
    off = abs(ours.loss() - expected) / abs(expected)
    assert off <= same, f"{name}: the step's loss {ours.loss():.6g} is off the eager one {expected:.6g} by {off:.1e}, allowed {same:.0e}"
    after = step_rows.weights(ours)
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True)))
    assert 0 < moved < math.inf, f"{name}: the step moved the weights by {moved}"
    return {"loss_off": off, "moved": moved}


def judged(ours: list[float], fixmatch: list[float], as_many: list[float], plain: float) -> dict[str, float | str]:
    """cost, explained, over and mark, by the rounds' times. `plain`: weight of the images only forwarded, over that of FixMatch's step."""
    explained = [same + plain * whole for same, whole in zip(as_many, fixmatch, strict=True)]
    ratio = lambda a, b: statistics.median(x / y for x, y in zip(a, b, strict=True))  # noqa: E731
    over = ratio(ours, explained)
    found = {"cost": ratio(ours, fixmatch), "explained": ratio(explained, fixmatch), "over": over}
    return {**found, "limit": ALLOWED, "mark": "within" if over <= ALLOWED else "ABOVE"}


CPU = {"network": "wrn-10-1", "sizes": (8, 56), "rounds": 9}
CUDA = {"network": "wrn-28-2", "sizes": (64, 448), "amp": "bf16", "mode": "graph", "rounds": 10, "calls": 10}
ROWS: dict[str, Callable[[Any, Machine], None]] = {
    **{f"method_{name}_cpu": partial(row, name=name, **CPU) for name in CASES},
    **{f"method_{name}_cuda": partial(row, name=name, **CUDA) for name in CASES},
}


@pytest.mark.parametrize("row", ROWS)
def bench_methods(benchmark: Any, row: str) -> None:
    device = row.rpartition("_")[2]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"{row} is a row for a GPU, and torch sees no CUDA device here")
    ROWS[row](benchmark, Machine(device))
