"""`pseudo_label_loss` and its one-launch form by Triton: every option against plain Python float64 numbers, gradients included."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastssl.kernels import PseudoLabel, _launch, pseudo_label_loss, pseudo_label_loss_and_grad, reference

spec = importlib.util.spec_from_file_location("fastssl_pseudo_label_cases", Path(__file__).parents[1] / "test_pseudo_label_values.py")
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)  # the cases, and what plain Python numbers make of them

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
EPS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def on(device: str, value):
    if isinstance(value, PseudoLabel):
        return PseudoLabel(*(on(device, t) for t in value))
    return value.to(device) if isinstance(value, torch.Tensor) else value


def tensors(*values) -> list[torch.Tensor]:
    flat = [t for v in values for t in (v if isinstance(v, tuple) else v.values() if isinstance(v, dict) else [v])]
    return [t for t in flat if isinstance(t, torch.Tensor)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@SETTINGS
@given(case=shared.cases(), classes=st.sampled_from([2, 5, 10, 33, 70]), scale=st.sampled_from(["number", "[]", "[N]"]))
def test_values_and_gradients(oracle, device: str, tiles: str, dtype: torch.dtype, case: dict, classes: int, scale: str) -> None:
    case = case | {"size": min(case["size"], 5.0), "classes": classes}
    student, teacher, options = shared.build(case, dtype)
    if isinstance(teacher, PseudoLabel):
        teacher = PseudoLabel(*(t.float() if t.is_floating_point() else t for t in teacher))
    wanted = shared.expected(oracle, student, teacher, options)
    # A confidence at its threshold within rounding may fall on either side of it in float32 and float64.
    moved = [
        shared.expected(oracle, student, teacher, options | {"threshold": shared.moved(options["threshold"], by)}) for by in (-1e-5, 1e-5)
    ]
    clear = (moved[0]["weight"] - moved[1]["weight"]).abs() < 0.05

    student, teacher, options = on(device, student), on(device, teacher), {k: on(device, v) for k, v in options.items()}
    before = [t.clone() for t in tensors(student, teacher, options)]
    leaf = student.clone().requires_grad_()
    got = pseudo_label_loss(leaf, teacher, **options)
    if not torch.equal(got.label.cpu(), wanted["label"]):
        shared.assert_tied(on("cpu", teacher), got.label.cpu(), wanted["label"], {k: on("cpu", v) for k, v in options.items()})
        return
    assert got.loss.dtype == got.confidence.dtype == got.weight.dtype == torch.float32 and got.label.dtype == torch.int64
    assert [t.requires_grad for t in got] == [True, False, False, False]
    rough = 2e-3 if case["weighting"] == "smooth" and case["power"] < 1 else 1e-4
    shared.near(got.confidence.cpu(), wanted["confidence"], 1e-5)
    shared.near(got.weight.cpu()[clear], wanted["weight"][clear], rough)
    shared.near(got.loss.detach().cpu()[clear], wanted["loss"][clear], rough * 5)

    rows = clear.reshape(student.shape[:-1])
    upstream = torch.linspace(-2, 3, got.loss.numel(), device=device)
    (slope,) = torch.autograd.grad(got.loss, leaf, upstream)
    exact = wanted["gradient"] * upstream.double().cpu().reshape(student.shape[:-1])[..., None]
    near = max(EPS[dtype], rough) * max(1.0, exact.abs().max().item() if exact.numel() else 0.0)
    torch.testing.assert_close(slope.double().cpu()[rows], exact[rows], rtol=EPS[dtype], atol=near)

    by_row = torch.linspace(-2, 3, case["rows"], device=device)
    factor = {"number": 0.25, "[]": torch.tensor(0.25, device=device), "[N]": by_row}[scale]
    at_once, gradient = pseudo_label_loss_and_grad(student, teacher, scale=factor, **options)
    for ours, theirs in zip(at_once, got, strict=True):
        assert torch.equal(ours, theirs)
    exact = wanted["gradient"] * (by_row.double().cpu()[:, None] if scale == "[N]" else 0.25)
    near = max(EPS[dtype], rough) * max(1.0, exact.abs().max().item() if exact.numel() else 0.0)
    torch.testing.assert_close(gradient.double().cpu()[rows], exact[rows], rtol=EPS[dtype], atol=near)
    assert gradient.dtype == dtype and gradient.shape == student.shape
    for now, then in zip(tensors(student, teacher, options), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("classes", [256, 300, 301, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [None, 3])
def test_long_rows_that_start_anywhere(
    normal, device: str, tiles: str, classes: int, dtype: torch.dtype, views: int | None, monkeypatch
) -> None:
    """Read and written by 16-byte granules where rows start at no border: every element once, nothing of a neighbour."""
    rows = 3
    if tiles == "looped":
        monkeypatch.setattr(_launch, "STEP", _launch.STEP._replace(classes=128))
    student = normal(1, *([views] if views else []), rows, classes, size=3.0, dtype=dtype).to(device)
    teacher = normal(2, rows, classes, size=9.0, dtype=dtype).to(device)
    teacher[0, classes - 1], teacher[1, 0] = 60.0, 60.0
    options = {"threshold": 0.3, "weighting": "confidence", "judge": normal(3, rows, classes, size=9.0, dtype=dtype).to(device)}
    options["judge"][:, 5] = 50.0
    for more in ({}, {"smoothing": 0.1}, {"temperature": 0.5}):
        got, gradient = pseudo_label_loss_and_grad(student, teacher, scale=2.0, **options, **more)
        wanted, slope = reference.pseudo_label_loss_and_grad(student.double(), teacher.double(), scale=2.0, **options, **more)
        assert torch.equal(got.label, wanted.label) and got.label[:2].tolist() == [classes - 1, 0]
        for ours, theirs in zip(got[2:], wanted[2:], strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got.loss.double(), wanted.loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), slope, rtol=EPS[dtype], atol=1e-6)
        leaf = student.clone().requires_grad_()
        pseudo_label_loss(leaf, teacher, **options, **more).loss.mul(2.0).sum().backward()
        torch.testing.assert_close(leaf.grad.double(), slope, rtol=EPS[dtype], atol=1e-6)


def test_divergence_shows_and_dead_rows_are_exactly_zero(device: str, tiles: str) -> None:
    nan, inf = math.nan, math.inf
    student = torch.zeros(7, 20, device=device)
    teacher = torch.zeros(7, 20, device=device)
    teacher[:, 2] = 9.0
    teacher[1], teacher[2, 4], teacher[3, 5], teacher[4], teacher[5] = nan, inf, -inf, -inf, nan
    student[0, 3], student[6] = nan, nan
    teacher[6] = 0.0
    sample = torch.tensor([1.0, 1, 1, 1, 1, 0, 1], device=device)
    student.requires_grad_()
    got = pseudo_label_loss(student, teacher, threshold=0.9, sample_weight=sample)
    assert got.loss.isnan().tolist() == [True, True, True, False, True, False, False]
    assert got.loss[3].item() == pytest.approx(math.log(20)) and got.loss[5:].tolist() == [0.0, 0.0]
    assert bool(((got.label >= 0) & (got.label < 20)).all()) and got.label[3] == 2
    assert got.weight.tolist()[3] == 1 and got.weight.isnan().tolist() == [False, True, True, False, True, False, False]
    got.loss[3:].nansum().backward()
    assert torch.equal(student.grad[5:], torch.zeros(2, 20, device=device)) and student.grad[3].abs().sum() > 0
    _, gradient = pseudo_label_loss_and_grad(student.detach(), teacher, scale=1.0, threshold=0.9, sample_weight=sample)
    assert gradient.isnan().any(1).tolist() == [True, True, True, False, True, False, False]
    assert torch.equal(gradient[5:], torch.zeros(2, 20, device=device))


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e37])
def test_extreme_logits(normal, device: str, tiles: str, offset: float) -> None:
    student = normal(1, 4, 40, size=3.0, dtype=torch.float32).to(device) + offset
    teacher = normal(2, 4, 40, size=3.0, dtype=torch.float32).to(device) - offset
    student[2], student[2, 7] = -1.5e38, 1.5e38
    student[3, 1] = -math.inf
    teacher[0, 3] = -math.inf
    for options in ({}, {"smoothing": 0.1}, {"temperature": 0.5}, {"temperature": 2.0}):
        got, gradient = pseudo_label_loss_and_grad(student, teacher, scale=1.0, weighting="none", **options)
        wanted, slope = reference.pseudo_label_loss_and_grad(student.double(), teacher.double(), scale=1.0, weighting="none", **options)
        torch.testing.assert_close(got.confidence.double(), wanted.confidence, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got.loss.double(), wanted.loss.float().double(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-6)


def test_any_strides(normal, device: str, tiles: str) -> None:
    wide = normal(2, 6, 2, 34, dtype=torch.float32).to(device) * 4
    vector = torch.arange(68.0, device=device)[::2] / 50
    teachers = [wide[:, 1], wide[:, 0].t().contiguous().t(), wide[:1, 0].expand(6, 34), wide.flip(0)[:, 1].double().float()[:, :]]
    students = [
        wide[:, 0],
        wide.permute(1, 0, 2),
        wide[:, 0].t().contiguous().t(),
        wide[:1, :1].expand(3, 6, 34),
        wide.reshape(-1)[1:205].view(6, 34),
    ]
    for student in students:
        for teacher in teachers:
            options = {
                "threshold": vector[:6, None] / 4,
                "margin": vector,
                "adjust": vector,
                "sample_weight": vector[1:13:2],
                "judge": teacher,
            }
            got, gradient = pseudo_label_loss_and_grad(student, teacher, scale=vector[:6], **options)
            wanted, slope = reference.pseudo_label_loss_and_grad(student, teacher, scale=vector[:6], **options)
            torch.testing.assert_close(got, wanted)
            torch.testing.assert_close(gradient, slope)


def test_the_second_call_takes_the_labels_of_the_first(normal, device: str, tiles: str) -> None:
    """FineSSL's auxiliary loss: label, and confidence against another threshold, without another look at the logits."""
    teacher, student = (normal(i, 8, 12, size=4.0, dtype=torch.float32).to(device) for i in (1, 2))
    first = pseudo_label_loss(student, teacher, threshold=0.8, weighting="confidence")
    second = pseudo_label_loss(student * 2, PseudoLabel(*first), threshold=0.6, weighting="smooth")
    again = pseudo_label_loss(student * 2, teacher, threshold=0.6, weighting="smooth")
    for ours, theirs in zip(second, again, strict=True):
        assert torch.equal(ours, theirs)
    outside = PseudoLabel(first.loss, torch.full_like(first.label, 12), first.confidence, first.weight)
    if device == "cuda":
        assert pseudo_label_loss(student, outside).loss.isnan().all()
    else:
        with pytest.raises(ValueError, match="teacher.label must hold labels from 0 to 11; got 12 in row 0"):
            pseudo_label_loss(student, outside)


def test_the_same_bits_in_twenty_runs(normal, device: str, tiles: str) -> None:
    student, teacher = (normal(i, 5, 50, size=4.0, dtype=torch.float32).to(device) for i in (1, 2))
    first = None
    for _ in range(20):
        found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=0.1, temperature=0.7, threshold=0.5)
        bits = torch.cat([found.loss, found.weight, gradient.flatten()]).view(torch.int32)
        first = bits if first is None else first
        assert torch.equal(bits, first)


def test_only_the_first_derivative(normal, device: str) -> None:
    student = normal(1, 4, 5, dtype=torch.float32).to(device).requires_grad_()
    loss = pseudo_label_loss(student, student.detach(), threshold=0.1).loss.sum()
    with pytest.raises(RuntimeError, match="differentiable once; for a second derivative call fastssl.kernels.reference.pseudo_label_loss"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_no_gradient_asked_for_none_kept(normal, device: str) -> None:
    student = normal(1, 4, 5, dtype=torch.float32).to(device)
    with_graph = pseudo_label_loss(student.clone().requires_grad_(), student, threshold=0.3).loss
    assert torch.equal(pseudo_label_loss(student, student, threshold=0.3).loss, with_graph)
    with torch.no_grad():
        assert not pseudo_label_loss(student.clone().requires_grad_(), student, threshold=0.3).loss.requires_grad
