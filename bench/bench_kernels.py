"""The pseudo-label loss on the CPU, forward and gradient, against FixMatch's loss block as a training loop writes it in eager PyTorch.

Each row first checks that both give the same loss and gradient, then times them in turns, round by round in the same run, so that a busy
machine slows both alike. `extra_info["ratio_to_eager"]` is the median over the rounds of eager's time divided by ours (above 1: ours is
faster); `eager_ms` is eager's median. float32, one input set a row, weak logits spread so that about half of the rows are kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastssl.kernels import pseudo_label_loss, pseudo_label_loss_and_grad

SHAPES = {(448, 10): (3.0, 60), (448, 100): (5.0, 60), (4096, 1000): (8.0, 8)}  # (N, C): (spread of the weak logits, rounds)
THRESHOLD = 0.95


def eager(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, gradient): softmax, max, mask, cross-entropy of every row, mean, backward."""
    student = student.detach().requires_grad_()
    confidence, label = teacher.softmax(dim=-1).max(dim=-1)
    mask = (confidence >= THRESHOLD).float()
    loss = (functional.cross_entropy(student, label, reduction="none") * mask).mean()
    loss.backward()
    return loss.detach(), student.grad


def autograd(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    loss = pseudo_label_loss(student, teacher, threshold=THRESHOLD).loss.mean()
    loss.backward()
    return loss.detach(), student.grad


def at_once(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=1 / len(student), threshold=THRESHOLD)
    return found.loss.mean(), gradient


def seconds(call: Callable, *inputs: Tensor) -> float:
    start = time.perf_counter()
    call(*inputs)
    return time.perf_counter() - start


@pytest.mark.parametrize("form", [autograd, at_once], ids=["autograd", "loss_and_grad"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_pseudo_label_loss(benchmark, shape: tuple[int, int], form: Callable) -> None:
    spread, rounds = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(*shape, generator=generator)
    teacher = torch.randn(*shape, generator=generator) * spread

    for ours, theirs in zip(form(student, teacher), eager(student, teacher), strict=True):
        torch.testing.assert_close(ours, theirs)
    kept = (teacher.softmax(dim=-1).amax(dim=-1) >= THRESHOLD).float().mean().item()
    assert 0.1 < kept < 0.9

    pairs: list[tuple[float, float]] = []

    def eager_first() -> None:
        pairs.append((seconds(eager, student, teacher), seconds(form, student, teacher)))

    for _ in range(2):
        eager_first()
    pairs.clear()
    benchmark.pedantic(form, args=(student, teacher), setup=eager_first, rounds=rounds, warmup_rounds=0)
    benchmark.extra_info["ratio_to_eager"] = statistics.median(theirs / ours for theirs, ours in pairs)
    benchmark.extra_info["eager_ms"] = statistics.median(theirs for theirs, _ in pairs) * 1e3
    benchmark.extra_info["kept"] = kept
    benchmark.extra_info["threads"] = torch.get_num_threads()
