"""What the losses promise, checked on the device that will be timed: their values, and the laws of a captured step.

Checks that need CUDA are reported as skipped elsewhere, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.kernels import pseudo_label_loss, pseudo_label_loss_and_grad, reference

from . import loss_peers, value_checks
from ._timing import captured, peak_extra_bytes

CLASSES = (2, 3, 10, 100, 1000, 1001, 4097, 21841, 65537)


class Skip(Exception):
    """A check that cannot be made on this machine; the text says why."""


class Outcome(NamedTuple):
    name: str
    status: str  # ok, failed, skipped
    detail: str
    seconds: float


def both_forms(student: Tensor, teacher: Tensor) -> list[Tensor]:
    found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=1 / len(student))
    given = student.detach().requires_grad_()
    rows = pseudo_label_loss(given, teacher)
    rows.loss.mean().backward()
    return [*found, gradient, *(t.detach() for t in rows), given.grad]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def deterministic(device: torch.device, classes: tuple[int, ...]) -> str:
    for c in classes:
        student, teacher = loss_peers.inputs(256, c, torch.bfloat16, device, c)
        first = both_forms(student, teacher)
        assert all(same(first, both_forms(student, teacher)) for _ in range(19)), f"other bits at C={c}"
    return f"20 runs, same bits, {len(classes)} class counts"


def inputs_unmodified(device: torch.device, classes: tuple[int, ...]) -> str:
    for c in classes:
        tensors = loss_peers.inputs(64, c, torch.float32, device, c)
        before = [t.clone() for t in tensors]
        both_forms(*tensors)
        assert same(before, list(tensors)), f"changed at C={c}"
    return "bitwise"


def compiled(device: torch.device, classes: tuple[int, ...]) -> str:
    student, teacher = loss_peers.inputs(64, classes[-1], torch.float32, device, 0)
    loss = torch.compile(loss_peers.our_loss, fullgraph=True, dynamic=False)
    plain, traced = loss_peers.with_gradient(loss_peers.our_loss)(student, teacher), loss_peers.with_gradient(loss)(student, teacher)
    torch.testing.assert_close(traced, plain)
    return "fullgraph, loss and gradient as eager"


def need_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise Skip("needs CUDA")


def no_host_sync(device: torch.device, classes: tuple[int, ...]) -> str:
    need_cuda(device)
    for c in classes:
        tensors = loss_peers.inputs(64, c, torch.float32, device, c)
        both_forms(*tensors)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            both_forms(*tensors)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return f"{len(classes)} class counts"


def graph_replay(device: torch.device, classes: tuple[int, ...]) -> str:
    need_cuda(device)
    for c in classes[::2]:
        student, teacher = loss_peers.inputs(64, c, torch.float32, device, 1)
        results: list[Tensor] = []
        graph = captured(lambda s=student, t=teacher, r=results: r.__setitem__(slice(None), both_forms(s, t)), None)
        for seed in (2, 3):
            for static, fresh in zip((student, teacher), loss_peers.inputs(64, c, torch.float32, device, seed), strict=True):
                static.copy_(fresh)
            graph.replay()
            assert same(results, both_forms(student, teacher)), f"a replay differs at C={c}"
    return "replayed with changed data, same bits"


def other_streams(device: torch.device, classes: tuple[int, ...]) -> str:
    need_cuda(device)
    tensors = loss_peers.inputs(512, classes[-1], torch.float32, device, 0)
    want = both_forms(*tensors)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # The inputs come late on the side stream: a launch on the default stream would read them before they are there.
        late = [torch.empty_like(t) for t in tensors]
        torch.cuda._sleep(20_000_000)
        for there, here in zip(late, tensors, strict=True):
            there.copy_(here)
        found = both_forms(*late)
    torch.cuda.synchronize()
    assert same(want, found), "another result on a stream of its own"
    return "late inputs on a side stream"


def second_device(device: torch.device, classes: tuple[int, ...]) -> str:
    need_cuda(device)
    if torch.cuda.device_count() < 2:
        raise Skip("one CUDA device")
    other = torch.device("cuda", (device.index + 1) % torch.cuda.device_count())
    tensors = loss_peers.inputs(64, classes[-1], torch.float32, device, 0)
    want = both_forms(*tensors)
    found = both_forms(*(t.to(other) for t in tensors))
    assert all(t.device == other for t in found) and same([t.cpu() for t in want], [t.cpu() for t in found])
    return f"{other} while {device} is current"


def peak_memory(device: torch.device, classes: tuple[int, ...]) -> str:
    need_cuda(device)
    student, teacher = loss_peers.inputs(4096, 1000, torch.float32, device, 0)
    one = student.numel() * student.element_size()
    for name, call in (("at once", loss_peers.our_loss_and_gradient), ("autograd", loss_peers.with_gradient(loss_peers.our_loss))):
        call(student, teacher)
        extra = peak_extra_bytes(lambda call=call: call(student, teacher))
        assert extra <= one + 2**20, f"{name}: {extra / one:.2f} gradient buffers"
    return "one gradient buffer, (4096, 1000)"


def beyond_int32(device: torch.device, classes: tuple[int, ...]) -> str:
    """Row offsets past 2**31 elements; 13 GB in bf16, rows of the end looked at."""
    need_cuda(device)
    rows, c = 32_800, 65_536
    student = torch.empty(rows, c, dtype=torch.bfloat16, device=device).normal_()
    teacher = torch.zeros_like(student)
    label = torch.randint(c, (rows, 1), device=device)
    teacher.scatter_(1, label, 20.0)
    found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=1.0)
    for last in (slice(-16, None), slice(0, 16)):
        want, slope = reference.pseudo_label_loss_and_grad(student[last].double(), teacher[last].double(), scale=1.0)
        assert torch.equal(found.label[last], label[last, 0]) and value_checks.away(found.loss[last], want.loss) < 1e-4
        assert value_checks.away(gradient[last], slope) < loss_peers.GRADIENT_TOLERANCE[torch.bfloat16]
    return f"({rows}, {c}) bf16"


CHECKS: tuple[Callable[[torch.device, tuple[int, ...]], str], ...] = (
    value_checks.dtypes_and_classes,
    value_checks.options,
    value_checks.layouts,
    value_checks.other_losses,
    value_checks.dead_rows_and_nan,
    deterministic,
    inputs_unmodified,
    no_host_sync,
    graph_replay,
    other_streams,
    second_device,
    peak_memory,
    beyond_int32,
    compiled,
)


def run_checks(device: torch.device, classes: tuple[int, ...] = CLASSES, only: tuple[str, ...] = ()) -> Iterator[Outcome]:
    """Makes the checks (those named in `only`, or all), one outcome after the other; none stops the next."""
    for check in CHECKS:
        if only and check.__name__ not in only:
            continue
        start = time.perf_counter()
        try:
            status, detail = "ok", check(device, classes)
        except Skip as why:
            status, detail = "skipped", str(why)
        except Exception as error:  # a broken kernel may raise anything; the rest must still be checked
            status, detail = "failed", f"{type(error).__name__}: {error}"
        yield Outcome(check.__name__, status, detail[:2000], time.perf_counter() - start)
