"""`consistency_loss` by Triton where something traces: the custom operators, one graph under torch.compile; and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fastssl.kernels import consistency, reference

KINDS = ("mse", "kl", "ce")


def inputs(normal, device: str, teacher_is: str = "logits") -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = (normal(i, 5, 12, size=2.0, dtype=torch.float32).to(device) for i in (1, 2))
    return student, teacher.softmax(1) if teacher_is != "logits" else teacher


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher_is", ["logits", "probabilities", "powers"])
@pytest.mark.parametrize("both", [False, True])
def test_the_operators_are_sound(normal, device: str, kind: str, teacher_is: str, both: bool) -> None:
    student, teacher = inputs(normal, device, teacher_is)
    student.requires_grad_(), teacher.requires_grad_(both)
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], device=device)
    options = (weight if both else None, 2.0 if teacher_is != "probabilities" else 1.0, kind, teacher_is, both)
    torch.library.opcheck(consistency.forward_op, (student, teacher, *options, True))
    with torch.no_grad():
        _, stats = consistency.forward_op(student, teacher, *options, True)
        arguments = (student.detach(), teacher.detach(), stats, weight, *options, True)
        torch.library.opcheck(consistency.backward_op, arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"teacher_is": "probabilities"}, {"teacher_is": "probabilities", "temperature": 0.5}], ids=str)
def test_compiled_equals_eager(normal, device: str, kind: str, options: dict) -> None:
    student, teacher = inputs(normal, device, options.get("teacher_is", "logits"))
    weight = torch.tensor([1.0, 0.0, 0.5, 3.0, 1.0], device=device)

    def call(s: torch.Tensor, t: torch.Tensor, both: bool) -> torch.Tensor:
        return consistency.consistency_loss(s, t, kind=kind, sample_weight=weight, teacher_grad=both, **options)

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for both in (False, True):
        leaves = [student.clone().requires_grad_(), teacher.clone().requires_grad_()]
        wanted, got = call(*leaves, both), compiled(*leaves, both)
        assert torch.equal(got, wanted) and got.requires_grad
        upstream = torch.linspace(-1, 2, 5, device=device)
        slopes = [torch.autograd.grad(loss, leaves[: 1 + both], upstream) for loss in (got, wanted)]
        assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True)) and all(a.any() for a in slopes[0])
        assert not compiled(student, teacher, both).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_serves_any_number_of_rows(normal, device: str, kind: str) -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(consistency.consistency_loss, fullgraph=True, backend=counter, dynamic=True)
    for rows in (3, 6, 9):
        student, teacher = (normal(i, rows, 12, dtype=torch.float32).to(device) for i in (1, 2))
        options = {"kind": kind, "temperature": 1.5}
        assert torch.equal(compiled(student, teacher, **options), consistency.consistency_loss(student, teacher, **options))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("student", "teacher", "options"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), {}),
        (torch.zeros(2, 3), torch.zeros(1, 3), {}),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3), {}),
        (torch.zeros(2, 1), torch.zeros(2, 1), {}),
        (torch.zeros(2, 3), None, {}),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"kind": "l1"}),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"teacher_is": "log"}),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"temperature": 0}),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"temperature": math.nan}),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"temperature": True}),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"sample_weight": torch.ones(3)}),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"sample_weight": torch.ones(2, requires_grad=True)}),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), {}),
    ],
)
def test_refused_as_by_the_reference(student, teacher, options: dict) -> None:
    with pytest.raises(ValueError) as wanted:
        reference.consistency_loss(student, teacher, **options)
    with pytest.raises(ValueError) as got:
        consistency.consistency_loss(student, teacher, **options)
    assert str(got.value) == str(wanted.value)
