"""Rows of the GPU benchmark: what is timed against what, each entrant held to float64 first, records as plain dicts.

A record says: case, form, rows_n, classes, dtype, name, mode, status ("ok"; "failed" and "skipped" with their "why"). If ok: us (median)
and iqr_us a call, rounds, calls a measurement, sets, kept; for ours ratio_to (their time over ours, median over the rounds); gb_per_s on
the least bytes, moved_gb_per_s on the bytes that the form moves, unread_gb_per_s on these less the student rows of weight 0; launches of
a call; peak_extra_bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from . import finessl_block, loss_peers
from ._timing import Job, Machine, captured, cycle, graph_nodes, host_us, interleaved, peak_extra_bytes, profiled_launches, ratio, spread

MODES = ("un-captured", "captured")
FINESSL = (32, 100, 50_000)  # labelled batch (128 rows in all), classes, unlabelled set: CIFAR-100


class Case(NamedTuple):
    """One shape, dtype and form. `names`: the peers that it is timed against."""

    rows: int
    classes: int
    dtype: torch.dtype
    gradient: bool
    names: tuple[str, ...] = tuple(loss_peers.MAKERS)

    @property
    def title(self) -> str:
        return f"{self.rows}x{self.classes} {str(self.dtype)[6:]} {'loss and gradient' if self.gradient else 'loss'}"

    @property
    def form(self) -> str:
        return "loss and gradient" if self.gradient else "loss"


def cases() -> list[Case]:
    """In the order of what is wanted most, should the time run out."""
    both = (torch.float32, torch.bfloat16)
    large, small, rest = ((32768, 1000), (4096, 21841)), ((448, 10), (448, 100)), ((4096, 1000), (8192, 65536))
    listed = [Case(*shape, dtype, True) for shape in large + small for dtype in both]
    # The even twin of (4096, 21841): what the odd class count, whose rows start off every 16-byte line, costs.
    listed += [Case(4096, 21840, dtype, True, ("eager", "ours_autograd", "ours_at_once")) for dtype in both]
    listed += [Case(*shape, dtype, True) for shape in rest for dtype in both]
    return listed + [Case(*shape, dtype, False) for shape in large + small + rest for dtype in both]


class Entrant(NamedTuple):
    """What takes part in a row."""

    run: Callable[[], object]  # `calls` calls
    once: Callable[[], object]  # one call
    restore: Callable[[], object]  # before a measurement: puts inputs right that the last one wrote over
    capturable: bool
    ours: bool


def short(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def compete(machine: Machine, entrants: dict[str, Entrant], calls: int, rounds: int, modes: tuple[str, ...]) -> Iterator[dict]:
    """Records of all entrants in each mode: time, spread, ratios of ours to the others; peak memory un-captured, launches captured."""
    for mode in modes:
        jobs: dict[str, Job] = {}
        extra: dict[str, dict] = {}
        pool = torch.cuda.graph_pool_handle() if mode == "captured" else None
        for name, entrant in entrants.items():
            record = {"name": name, "mode": mode}
            if mode == "captured" and not entrant.capturable:
                yield record | {"status": "skipped", "why": "asks the device for values, so no graph can hold it"}
                continue
            try:
                if mode == "captured":
                    graph = captured(entrant.run, pool)
                    extra[name] = {"launches": graph_nodes(graph) / calls}
                    jobs[name] = Job(graph.replay, calls, lambda: machine.settle(idle=False))
                else:
                    entrant.restore()
                    extra[name] = {"peak_extra_bytes": peak_extra_bytes(entrant.once)} if machine.cuda else {}
                    jobs[name] = Job(entrant.run, calls, lambda e=entrant: (e.restore(), machine.settle(idle=True)))
            except Exception as error:
                yield record | {"status": "failed", "why": short(error)}
        times = interleaved(jobs, machine.timer, rounds)
        for name in jobs:
            time_us = spread(times[name])
            record = {"name": name, "mode": mode, "status": "ok", "us": time_us.median, "iqr_us": time_us.iqr}
            record |= {"rounds": rounds, "calls": calls} | extra[name]
            if entrants[name].ours:
                others = [other for other in jobs if not entrants[other].ours]
                record["ratio_to"] = {other: ratio(times[other], times[name]) for other in others}
            yield record


def measure(machine: Machine, case: Case, rounds: int = 21, modes: tuple[str, ...] = MODES) -> Iterator[dict]:
    """Records of one case. A peer whose result differs from float64 is not timed."""
    torch.compiler.reset()  # compiled code of earlier cases would count as recompilation
    facts = {"case": case.title, "form": case.form, "rows_n": case.rows, "classes": case.classes, "dtype": str(case.dtype)[6:]}
    passes = 3 if case.gradient else 2
    least = loss_peers.least_bytes(case.rows, case.classes, case.dtype.itemsize, passes)
    count, calls = machine.sets_and_calls(2 * case.rows * case.classes * case.dtype.itemsize, int(least))
    sets = [loss_peers.inputs(case.rows, case.classes, case.dtype, machine.device, seed) for seed in range(count)]
    share = loss_peers.kept(sets[0][1])
    if not 0.1 < share < 0.9:
        raise ValueError(f"wanted inputs of which 0.1 to 0.9 are kept; got {share}")

    entrants: dict[str, Entrant] = {}
    for name in case.names:
        try:
            peer = loss_peers.make(name)
            if not case.gradient and peer.loss is None:
                continue
            wrong = loss_peers.fault(peer, *sets[0], case.gradient)
            if wrong:
                raise AssertionError(wrong)
        except ImportError as error:
            yield facts | {"name": name, "mode": "", "status": "skipped", "why": str(error)}
            continue
        except Exception as error:
            yield facts | {"name": name, "mode": "", "status": "failed", "why": short(error)}
            continue
        entrants[name] = entrant_of(peer, sets, calls, case.gradient)
    pairs = [tuple(torch.randn(int(least) // 8, device=machine.device) for _ in range(2)) for _ in range(count)]
    copy = cycle(lambda target, source: target.copy_(source), pairs, calls)
    entrants["copy"] = Entrant(copy, copy, lambda: None, True, False)

    # Of the formulas: all rows read; 4 passes for ours by autograd; and with the student rows of weight 0 left unread.
    moved = {"ours_autograd": (4, 2 + 2 * share) if case.gradient else (2, 1 + share), "ours_at_once": (3, 2 + share)}
    for record in compete(machine, entrants, calls, rounds, modes):
        if record["status"] == "ok":
            record["gb_per_s"] = least / record["us"] / 1e3
            for key, part in zip(("moved_gb_per_s", "unread_gb_per_s"), moved.get(record["name"], ()), strict=False):
                record[key] = loss_peers.least_bytes(case.rows, case.classes, case.dtype.itemsize, part) / record["us"] / 1e3
        yield facts | {"kept": share, "sets": count} | record


def entrant_of(peer: loss_peers.Peer, sets: list[tuple], calls: int, gradient: bool) -> Entrant:
    call = peer.both if gradient else peer.loss
    if not (gradient and peer.spoils):
        return Entrant(cycle(call, sets, calls), lambda: call(*sets[0]), lambda: None, peer.capturable, peer.ours)
    # A copy of the logits for every call, written anew before each measurement: the cost of that copy stays outside the time.
    own = [(sets[i % len(sets)][0].clone(), sets[i % len(sets)][1]) for i in range(calls)]

    def restore() -> None:
        for i, (student, _) in enumerate(own):
            student.copy_(sets[i % len(sets)][0])

    return Entrant(cycle(call, own, calls), lambda: call(*own[0]), restore, peer.capturable, peer.ours)


def measure_finessl(machine: Machine, dtype: torch.dtype, rounds: int = 21, modes: tuple[str, ...] = MODES, size=FINESSL) -> Iterator[dict]:
    """Records of FineSSL's whole loss block."""
    torch.compiler.reset()
    batch, classes, unlabelled = size
    facts = {"case": f"finessl {4 * batch}x{classes} {str(dtype)[6:]}", "form": "finessl", "dtype": str(dtype)[6:]}
    facts |= {"rows_n": 4 * batch, "classes": classes}
    calls = 8
    steps = [finessl_block.make_step(batch, classes, unlabelled, dtype, machine.device, seed) for seed in range(calls)]
    entrants: dict[str, Entrant] = {}
    for name, (maker, capturable) in finessl_block.BLOCKS.items():
        memory = finessl_block.make_memory(classes, unlabelled, machine.device, 0)
        try:
            block = maker()
            wrong = finessl_block.fault(name, block, steps[0], memory)
            if wrong:
                raise AssertionError(wrong)
        except Exception as error:
            yield facts | {"name": name, "mode": "", "status": "failed", "why": short(error)}
            continue
        run = cycle(lambda step, b=block, m=memory: b(step, m), [(step,) for step in steps], calls)
        once = lambda b=block, m=memory: b(steps[0], m)  # noqa: E731
        entrants[name] = Entrant(run, once, lambda: None, capturable, name.startswith("ours"))
    for record in compete(machine, entrants, calls, rounds, modes):
        yield facts | record


def measure_host(
    machine: Machine, names: tuple[str, ...] = ("eager", "compile", "ours_autograd", "ours_at_once"), calls: int = 200
) -> Iterator[dict]:
    """Host time of issuing one un-captured call, loss and gradient, (448, 10) in fp32."""
    torch.compiler.reset()
    student, teacher = loss_peers.inputs(448, 10, torch.float32, machine.device, 0)
    for name in names:
        facts = {"case": "host time 448x10 float32", "form": "host", "name": name, "mode": "un-captured"}
        try:
            call = loss_peers.make(name).both
            call(student, teacher)
            time_us = host_us(machine, lambda call=call: call(student, teacher), calls)
            yield facts | {"status": "ok", "us": time_us.median, "iqr_us": time_us.iqr, "rounds": time_us.n, "calls": calls}
        except Exception as error:
            yield facts | {"status": "failed", "why": short(error)}


def measure_launches(machine: Machine, names: tuple[str, ...] = ("eager", "liger", "ours_autograd", "ours_at_once")) -> Iterator[dict]:
    """Kernels, copies and memsets of one un-captured call by torch.profiler, loss and gradient, (4096, 1000): graphs cannot count Liger's.

    Run last: the profiler's hooks stay in the process.
    """
    for dtype in (torch.float32, torch.bfloat16):
        sets = loss_peers.inputs(4096, 1000, dtype, machine.device, 0)
        for name in names:
            facts = {"case": f"launches 4096x1000 {str(dtype)[6:]}", "form": "launches", "name": name, "mode": "un-captured"}
            try:
                call = loss_peers.make(name).both
                call(*(t.clone() for t in sets))
                given = [t.clone() for t in sets]
                yield facts | {"status": "ok", "launches": profiled_launches(lambda call=call, given=given: call(*given))}
            except ImportError as error:
                yield facts | {"status": "skipped", "why": str(error)}
            except Exception as error:
                yield facts | {"status": "failed", "why": short(error)}
