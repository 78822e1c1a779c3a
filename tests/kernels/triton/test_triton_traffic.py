"""How many bytes the kernels ask for and in how many launches, counted in the interpreter: the table of docs/kernels.md."""

from __future__ import annotations

import pytest
import torch

from fastssl.kernels import (
    PseudoLabel,
    _launch,
    class_statistics,
    consistency_loss,
    cross_entropy,
    pseudo_label_loss,
    pseudo_label_loss_and_grad,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the interpreter loads and stores")
N, C = 8, 512
ROW = 8 * N  # what may come on top for each pass: labels, statistics, weights


class Traffic:
    """Bytes and launches since the last `take`."""

    def __init__(self) -> None:
        self.read = self.written = self.launches = 0

    def take(self) -> tuple[int, int, int]:
        found = (self.read, self.written, self.launches)
        self.__init__()
        return found


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    from triton.runtime.interpreter import InterpreterBuilder

    seen = Traffic()
    load, store, run = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store, _launch.Launch.run

    def counted_load(self, ptrs, mask, *rest):
        seen.read += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return load(self, ptrs, mask, *rest)

    def counted_store(self, ptrs, value, mask, *rest):
        seen.written += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return store(self, ptrs, value, mask, *rest)

    def counted_run(self, device):
        seen.launches += 1
        return run(self, device)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
    monkeypatch.setattr(_launch.Launch, "run", counted_run)
    return seen


def check(found: tuple[int, int, int], passes_read: float, passes_written: float, launches: int, size: int, classes: int = C) -> None:
    """Passes over an [N, C] matrix, with at most a few numbers a row beside them."""
    read, written, launched = found
    matrix = N * classes * size
    assert launched == launches
    assert passes_read * matrix <= read <= passes_read * matrix + 6 * ROW, read / matrix
    assert passes_written * matrix <= written <= passes_written * matrix + 6 * ROW, written / matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pseudo_label_loss(normal, traffic: Traffic, dtype: torch.dtype) -> None:
    size = torch.empty((), dtype=dtype).element_size()
    student, teacher = (normal(i, N, C, dtype=dtype) for i in (1, 2))
    teacher[: N // 2, 3] = 60.0  # half of the rows are kept
    pseudo_label_loss_and_grad(student, teacher, scale=1.0)
    check(traffic.take(), 1.5, 1, 1, size)  # teacher, and the kept rows of the student; the whole gradient
    leaf = student.clone().requires_grad_()
    loss = pseudo_label_loss(leaf, teacher).loss
    check(traffic.take(), 1.5, 0, 1, size)
    loss.sum().backward()
    check(traffic.take(), 0.5, 1, 1, size)
    pseudo_label_loss_and_grad(torch.stack([student] * 3), teacher, scale=1.0, threshold=0.0)
    check(traffic.take(), 1 + 3, 3, 1, size)  # three views share one read of the teacher
    pseudo_label_loss_and_grad(student, teacher, scale=1.0, threshold=0.0, temperature=0.5)
    check(traffic.take(), 2 + 1, 1, 1, size)  # the soft target is read where it is needed again, just after


def test_rows_longer_than_the_registers(normal, traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "WHOLE", ())
    monkeypatch.setattr(_launch, "STEP", _launch.Blocks(1, 128, True, 4))
    student, teacher = (normal(i, N, C, dtype=torch.float32) for i in (1, 2))
    pseudo_label_loss_and_grad(student, teacher, scale=1.0, threshold=0.0)
    check(traffic.take(), 1 + 2, 1, 1, 4)  # the second look at the student's row, at once after the first, finds it in the L2


def test_odd_rows_cost_no_more_than_their_borders(normal, traffic: Traffic) -> None:
    student, teacher = (normal(i, N, 513, dtype=torch.float32) for i in (1, 2))
    pseudo_label_loss_and_grad(student, teacher, scale=1.0, threshold=0.0)
    check(traffic.take(), 2, 1, 1, 4, classes=513)


def test_finessl_reads_each_logit_once(normal, traffic: Traffic) -> None:
    main, auxiliary, teacher, judge = (normal(i, N, C, dtype=torch.float32) for i in range(4))
    first, _ = pseudo_label_loss_and_grad(main, teacher, scale=1.0, threshold=0.0, weighting="confidence", judge=judge)
    check(traffic.take(), 3, 1, 1, 4)
    pseudo_label_loss_and_grad(auxiliary, PseudoLabel(*first), scale=1.0, threshold=0.0, smoothing=0.5)
    check(traffic.take(), 1, 1, 1, 4)


def test_cross_entropy(normal, traffic: Traffic) -> None:
    logits = normal(1, N, C, dtype=torch.float32).requires_grad_()
    loss = cross_entropy(logits, torch.arange(N), smoothing=0.1)
    check(traffic.take(), 1, 0, 1, 4)
    loss.sum().backward()
    check(traffic.take(), 1, 1, 1, 4)
    loss = cross_entropy(logits, normal(2, N, C, dtype=torch.float32).softmax(1))
    check(traffic.take(), 2, 0, 1, 4)
    loss.sum().backward()
    check(traffic.take(), 2, 1, 1, 4)


@pytest.mark.parametrize("kind", ["mse", "kl", "ce"])
def test_consistency_loss(normal, traffic: Traffic, kind: str) -> None:
    student, teacher = (normal(i, N, C, dtype=torch.float32).requires_grad_() for i in (1, 2))
    loss = consistency_loss(student, teacher, kind=kind)
    check(traffic.take(), 2, 0, 1, 4)
    loss.sum().backward()
    check(traffic.take(), 2, 1, 1, 4)
    consistency_loss(student, teacher, kind=kind, teacher_grad=True).sum().backward()
    check(traffic.take(), 4, 2, 2, 4)  # forward and backward together, with both gradients in one launch


def test_class_statistics(normal, traffic: Traffic) -> None:
    class_statistics(normal(1, N, C, dtype=torch.float32))
    read, _, launches = traffic.take()
    assert launches == 2 and N * C * 4 <= read
