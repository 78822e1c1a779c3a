"""The losses on the CPU, forward and gradient, against the blocks that training loops write in eager PyTorch.

Each row first checks that both give the same numbers, then times them in turns, round by round in the same run, so that a busy machine
slows both alike. `extra_info["ratio"]` is the median over the rounds of their time divided by ours (above 1: ours is faster), `ratio_low`
and `ratio_high` its quartiles, `theirs_ms` the median of theirs. Rounds go over several sets of inputs, because a CPU that sees one set
again and again learns by heart where each row's maximum lies.

| row | ours | theirs |
|---|---|---|
| pseudo_label_loss, autograd | `pseudo_label_loss(...).loss.mean().backward()` | FixMatch's block |
| pseudo_label_loss, loss_and_grad | `pseudo_label_loss_and_grad` | FixMatch's block |
| cross_entropy | `cross_entropy(...).mean().backward()`, hard labels | `torch.nn.functional.cross_entropy` |
| class_counts | FlexMatch's shares of the classes last chosen for each sample, by what a batch changes | by a Counter on the host |

float32. Weak logits are spread so that about half of the rows are kept.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastssl.kernels import cross_entropy, pseudo_label_loss, pseudo_label_loss_and_grad
from fastssl.methods.bricks.last_labels import LastLabels

# (N, C): spread of the weak logits, rounds, sets of inputs
SHAPES = {(448, 10): (6.5, 400, 16), (448, 100): (12.0, 400, 16), (4096, 1000): (16.0, 20, 2)}
THRESHOLD = 0.95
SAMPLES = 49_600  # CIFAR's training set less 400 labelled images


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


def hard_cross_entropy(rows: Callable[[Tensor, Tensor], Tensor], logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = rows(logits, label).mean()
    loss.backward()
    return loss.detach(), logits.grad


def counted_by_counter(last: Tensor, index: Tensor, label: Tensor, classes: int) -> tuple[Tensor]:
    """Each class's count over the largest (the samples without a label, -1, count as one), as Python finds it."""
    last[index] = label
    counts = Counter(last.tolist())
    largest = max(counts.values())
    share = torch.zeros(classes)
    for c in range(classes):
        share[c] = counts[c] / largest
    return (share,)


def counted_by_moves(memory: LastLabels, index: Tensor, label: Tensor, classes: int) -> tuple[Tensor]:
    memory.update(index, label)
    return (memory.shares(),)


def seconds(call: Callable, inputs: tuple) -> float:
    start = time.perf_counter()
    call(*inputs)
    return time.perf_counter() - start


def compare(benchmark, ours: Callable, theirs: Callable, sets: list[tuple], rounds: int) -> None:
    """Check ours against theirs on the first set, then time both over all sets."""
    for got, wanted in zip(ours(*sets[0]), theirs(*sets[0]), strict=True):
        torch.testing.assert_close(got, wanted)
    pairs: list[tuple[float, float]] = []
    turn = 0

    def theirs_first() -> tuple[tuple, dict]:
        nonlocal turn
        turn += 1
        inputs = sets[turn % len(sets)]
        pairs.append((seconds(theirs, inputs), seconds(ours, inputs)))
        return inputs, {}

    for _ in range(2 * len(sets)):
        theirs_first()
    pairs.clear()
    benchmark.pedantic(ours, setup=theirs_first, rounds=rounds, warmup_rounds=0)
    low, middle, high = statistics.quantiles((their / our for their, our in pairs), n=4)
    benchmark.extra_info.update(ratio=middle, ratio_low=low, ratio_high=high)
    benchmark.extra_info["theirs_ms"] = statistics.median(their for their, _ in pairs) * 1e3
    benchmark.extra_info["threads"] = torch.get_num_threads()


@pytest.mark.parametrize("form", [autograd, at_once], ids=["autograd", "loss_and_grad"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_pseudo_label_loss(benchmark, shape: tuple[int, int], form: Callable) -> None:
    spread, rounds, sets = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator) * spread) for _ in range(sets)]
    kept = statistics.fmean((teacher.softmax(dim=-1).amax(dim=-1) >= THRESHOLD).float().mean().item() for _, teacher in inputs)
    assert 0.4 < kept < 0.6
    compare(benchmark, form, eager, inputs, rounds)
    benchmark.extra_info["kept"] = kept


@pytest.mark.parametrize("shape", [(64, 10), *SHAPES], ids=lambda shape: "x".join(map(str, shape)))
def test_cross_entropy(benchmark, shape: tuple[int, int]) -> None:
    _, rounds, sets = SHAPES.get(shape, (None, 400, 16))
    generator = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(*shape, generator=generator), torch.randint(shape[1], shape[:1], generator=generator)) for _ in range(sets)]

    def theirs(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return hard_cross_entropy(lambda z, y: functional.cross_entropy(z, y, reduction="none"), logits, label)

    compare(benchmark, lambda logits, label: hard_cross_entropy(cross_entropy, logits, label), theirs, inputs, rounds)


@pytest.mark.parametrize("classes", [10, 100])
def test_class_counts(benchmark, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    memory = LastLabels(SAMPLES, classes)
    last = torch.full((SAMPLES,), -1)
    first = torch.randperm(SAMPLES, generator=generator)[: SAMPLES // 2]
    label = torch.randint(classes, (len(first),), generator=generator)
    memory.update(first, label)
    last[first] = label
    batches = [
        (torch.randperm(SAMPLES, generator=generator)[:448], torch.randint(classes, (448,), generator=generator), classes) for _ in range(8)
    ]
    compare(benchmark, partial(counted_by_moves, memory), partial(counted_by_counter, last), batches, 50)
