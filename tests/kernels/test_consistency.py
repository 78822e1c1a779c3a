"""`consistency_loss` against plain Python numbers, and its rules for broken, dead and impossible entries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastssl.kernels import consistency_loss

NAN, INF = math.nan, math.inf
KINDS = ("mse", "kl", "ce")
SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
CASES = {
    "seed": st.integers(0, 2**20),
    "rows": st.integers(0, 6),
    "classes": st.sampled_from([2, 3, 10, 13]),
    "kind": st.sampled_from(KINDS),
    "temperature": st.sampled_from([0.5, 1.0, 3.0]),
    "weighted": st.booleans(),
    "teacher_is": st.sampled_from(["logits", "probabilities"]),
}


def build(seed: int, rows: int, classes: int, weighted: bool, teacher_is: str, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, classes, generator=g, dtype=torch.float64) * 2 for _ in range(2))
    if teacher_is == "probabilities":
        teacher = teacher.softmax(1)
    weight = torch.rand(rows, generator=g, dtype=torch.float64) * (torch.rand(rows, generator=g) > 0.3)
    return student.to(dtype), teacher.to(dtype), weight.to(dtype) if weighted else None


def row_loss(oracle, student: list[float], teacher: list[float], kind: str, temperature: float, teacher_is: str) -> float:
    q = oracle.sharpen(teacher, temperature) if teacher_is == "probabilities" else oracle.softmax([z / temperature for z in teacher])
    return oracle.consistency_row(student, q, kind, temperature)


@SETTINGS
@given(**CASES)
def test_values(oracle, seed, rows, classes, kind, temperature, weighted, teacher_is) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)):
        student, teacher, weight = build(seed, rows, classes, weighted, teacher_is, dtype)
        if dtype != torch.float64 and teacher_is == "probabilities":
            teacher = teacher.double().div(teacher.double().sum(1, keepdim=True)).float()
        rows_of = zip(student.double().tolist(), teacher.double().tolist(), strict=True)
        wanted = torch.tensor([row_loss(oracle, a, b, kind, temperature, teacher_is) for a, b in rows_of], dtype=torch.float64)
        if weight is not None:
            wanted = wanted * weight.double()
        options = {"kind": kind, "temperature": temperature, "sample_weight": weight, "teacher_is": teacher_is}
        got = consistency_loss(student, teacher, **options)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(**CASES)
def test_gradients_of_both_branches(seed, rows, classes, kind, temperature, weighted, teacher_is) -> None:
    student, teacher, weight = build(seed, rows, classes, weighted, teacher_is)
    options = {"kind": kind, "temperature": temperature, "sample_weight": weight, "teacher_is": teacher_is}
    student.requires_grad_(), teacher.requires_grad_()
    torch.autograd.gradcheck(lambda s: consistency_loss(s, teacher.detach(), **options), (student,))
    torch.autograd.gradcheck(lambda s, t: consistency_loss(s, t, teacher_grad=True, **options), (student, teacher))
    torch.autograd.gradgradcheck(lambda s: consistency_loss(s, teacher.detach(), **options), (student,))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_hand_with_an_upstream_gradient(kind: str, normal) -> None:
    """kl, ce: u * (p - q) / T. mse: u * 2 / (C T) * p * (d - sum p d), d = p - q."""
    student, teacher, temperature = normal(0, 4, 3).requires_grad_(), normal(1, 4, 3), 2.0
    p, q = (student / temperature).softmax(1).detach(), (teacher / temperature).softmax(1)
    upstream = torch.tensor([-1.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    consistency_loss(student, teacher, kind=kind, temperature=temperature).backward(upstream)
    d = p - q
    slope = 2 / 3 * p * (d - (p * d).sum(1, keepdim=True)) if kind == "mse" else d
    torch.testing.assert_close(student.grad, upstream[:, None] * slope / temperature)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_a_constant_unless_asked(kind: str, normal) -> None:
    student, teacher = normal(0, 4, 3).requires_grad_(), normal(1, 4, 3).requires_grad_()
    consistency_loss(student, teacher, kind=kind).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    consistency_loss(student, teacher, kind=kind, teacher_grad=True).sum().backward()
    assert teacher.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_a_prediction_is_consistent_with_itself(kind: str, normal) -> None:
    logits = normal(0, 4, 3)
    assert consistency_loss(logits, logits, kind=kind).abs().max() < 1e-15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher_is", ["logits", "probabilities"])
@pytest.mark.parametrize("row", [[NAN, 0.0], [0.0, NAN], [INF, 0.0]])
def test_a_broken_teacher_shows_and_a_sample_weight_of_0_wins(row: list[float], teacher_is: str, kind: str) -> None:
    student, teacher = torch.zeros(3, 2, requires_grad=True), torch.tensor([row, row, [0.25, 0.75]], requires_grad=True)
    options = {"sample_weight": torch.tensor([1.0, 0.0, 1.0]), "kind": kind, "teacher_is": teacher_is, "teacher_grad": True}
    loss = consistency_loss(student, teacher, **options)
    loss.sum().backward()
    assert not loss[0].isfinite() and loss[1] == 0 and loss[2] > 0
    assert teacher_is == "probabilities" or loss[0].isnan()
    for gradient in (student.grad, teacher.grad):
        assert torch.equal(gradient[1], torch.zeros(2)) and gradient[2].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [[NAN, 0.0], [INF, 0.0], [-INF, -INF]])
def test_a_broken_student_shows_and_a_sample_weight_of_0_wins(row: list[float], kind: str) -> None:
    student = torch.tensor([row, row], requires_grad=True)
    loss = consistency_loss(student, torch.zeros(2, 2), kind=kind, sample_weight=torch.tensor([1.0, 0.0]))
    loss.sum().backward()
    assert loss[0].isnan() and loss[1] == 0 and torch.equal(student.grad[1], torch.zeros(2))


@pytest.mark.parametrize("kind", KINDS)
def test_minus_infinity_is_an_impossible_class(kind: str) -> None:
    """On both sides it changes nothing but the mean over classes of mse; gradients stay finite, the teacher's too."""
    student = torch.tensor([[1.0, 2.0, -INF]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.5, -INF]], requires_grad=True)
    loss = consistency_loss(student, teacher, kind=kind, teacher_grad=True)
    wanted = consistency_loss(student.detach()[:, :2], teacher.detach()[:, :2], kind=kind)
    torch.testing.assert_close(loss, wanted * (2 / 3 if kind == "mse" else 1))
    loss.sum().backward()
    for gradient in (student.grad, teacher.grad):
        assert gradient.isfinite().all() and gradient[0, 2] == 0


def test_the_teachers_mass_on_an_impossible_class_costs_infinity() -> None:
    student, teacher = torch.tensor([[0.0, -INF]]), torch.zeros(1, 2)
    assert consistency_loss(student, teacher, kind="kl").item() == consistency_loss(student, teacher, kind="ce").item() == INF


@pytest.mark.parametrize("kind", KINDS)
def test_certain_probabilities(kind: str) -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    loss = consistency_loss(student, torch.tensor([[1.0, 0.0]]), kind=kind, teacher_is="probabilities")
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.25 if kind == "mse" else math.log(2))
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_stay_as_they_are_and_any_layout_serves(kind: str, normal) -> None:
    student, teacher = normal(0, 10, 4).t()[:, ::2], normal(1, 1, 5).expand(4, 5)
    before = student.clone(), teacher.clone()
    got = consistency_loss(student, teacher, kind=kind, temperature=2.0)
    torch.testing.assert_close(got, consistency_loss(*before, kind=kind, temperature=2.0))
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])
