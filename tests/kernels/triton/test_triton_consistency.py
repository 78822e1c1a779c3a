"""`consistency_loss` by Triton: values against plain Python float64 numbers, gradients of both sides against float64 autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastssl.kernels import _launch, consistency, reference

NAN, INF = math.nan, math.inf
KINDS = ("mse", "kl", "ce")
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
EPS = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def cases(draw) -> dict:
    return {
        "seed": draw(st.integers(0, 2**20)),
        "rows": draw(st.integers(0, 5)),
        "classes": draw(st.sampled_from([2, 3, 10, 17, 40])),
        "dtypes": (draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))),
        "size": draw(st.sampled_from([0.5, 3.0, 10.0])),
        "kind": draw(st.sampled_from(KINDS)),
        "temperature": draw(st.sampled_from([0.5, 1, 1.0, 3.0])),
        "weighted": draw(st.booleans()),
        "teacher_is": draw(st.sampled_from(["logits", "probabilities"])),
        "zeros": draw(st.booleans()),
    }


def build(case: dict, device: str) -> tuple[torch.Tensor, torch.Tensor, dict]:
    g = torch.Generator().manual_seed(case["seed"])
    shape = (case["rows"], case["classes"])
    student, teacher = (torch.randn(shape, generator=g) * case["size"] for _ in range(2))
    options = {"kind": case["kind"], "temperature": case["temperature"], "teacher_is": case["teacher_is"]}
    if case["teacher_is"] == "probabilities":
        # Some rows with classes of probability 0, and none that sums to one.
        teacher = teacher.div(3).softmax(1) * 1.25
        if case["zeros"] and case["classes"] > 2:
            teacher = teacher * (torch.rand(shape, generator=g) > 0.3)
            teacher[:, 0] = 0.5
    if case["weighted"]:
        options["sample_weight"] = (torch.rand(shape[0], generator=g) * (torch.rand(shape[0], generator=g) > 0.3)).to(device)
    return student.to(case["dtypes"][0]).to(device), teacher.to(case["dtypes"][1]).to(device), options


def expected(oracle, student: torch.Tensor, teacher: torch.Tensor, options: dict) -> torch.Tensor:
    temperature, losses = options["temperature"], []
    for a, b in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        if options["teacher_is"] == "logits":
            b = oracle.softmax([z / temperature for z in b])
        elif temperature != 1:
            b = oracle.sharpen(b, temperature)
        losses.append(oracle.consistency_row(a, b, options["kind"], temperature))
    weight = options.get("sample_weight", torch.ones(len(losses))).double().cpu()
    return torch.tensor(losses, dtype=torch.float64) * weight


def exact(student: torch.Tensor, teacher: torch.Tensor, options: dict, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(loss, student's gradient, teacher's gradient) in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (student, teacher)]
    loss = reference.consistency_loss(*leaves, teacher_grad=True, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves, upstream.double())


def run(student: torch.Tensor, teacher: torch.Tensor, options: dict, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same by the kernels."""
    leaves = [t.detach().requires_grad_() for t in (student, teacher)]
    loss = consistency.consistency_loss(*leaves, teacher_grad=True, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves, upstream)


def assert_near(got: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], near: float = 2e-5) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        finite = theirs[theirs.isfinite()].abs()
        eps = EPS[ours.dtype]
        theirs = theirs.to(ours.dtype).double()
        torch.testing.assert_close(
            ours.double(), theirs, rtol=eps, atol=near * max(1.0, finite.max().item() if len(finite) else 0.0), equal_nan=True
        )


@pytest.mark.usefixtures("poisoned")
@SETTINGS
@given(case=cases())
def test_values_and_gradients(oracle, device: str, tiles: str, case: dict) -> None:
    student, teacher, options = build(case, device)
    before = student.clone(), teacher.clone()
    upstream = torch.linspace(-2, 3, case["rows"], device=device)
    got = run(student, teacher, options, upstream)
    assert got[0].dtype == torch.float32 and [g.dtype for g in got[1:]] == list(case["dtypes"])
    wanted = expected(oracle, student, teacher, options)
    torch.testing.assert_close(got[0].double().cpu(), wanted, rtol=2e-5, atol=2e-5)
    assert_near(got, exact(student, teacher, options, upstream))
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])
    # A constant teacher: the same loss and gradient. No gradient wanted, no statistics kept: the same loss.
    leaf = student.detach().requires_grad_()
    loss = consistency.consistency_loss(leaf, teacher.detach().requires_grad_(), **options)
    torch.testing.assert_close((loss, *torch.autograd.grad(loss, leaf, upstream)), got[:2])
    torch.testing.assert_close(consistency.consistency_loss(student, teacher, **options), got[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradients_are_the_slopes_of_the_plain_numbers(oracle, normal, device: str, tiles: str, kind: str, temperature: float) -> None:
    student, teacher = (normal(i, 1, 20, dtype=torch.float32) for i in (1, 2))
    options = {"kind": kind, "temperature": temperature, "teacher_is": "logits"}
    _, by_student, by_teacher = run(student.to(device), teacher.to(device), options, torch.ones(1, device=device))
    for c in (0, 7, 19):
        step = torch.zeros(1, 20, dtype=torch.float64)
        step[0, c] = 1e-4
        for got, moved in ((by_student, (student + step, student - step)), (by_teacher, (teacher + step, teacher - step))):
            pairs = [(m, teacher) if got is by_student else (student, m) for m in moved]
            up, down = (expected(oracle, *pair, options).item() for pair in pairs)
            assert got[0, c].item() == pytest.approx((up - down) / 2e-4, rel=1e-3, abs=1e-6)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [300, 301])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_long_rows_that_start_anywhere(normal, device: str, tiles: str, dtypes: tuple, classes: int, kind: str, monkeypatch) -> None:
    """Read and written by 16-byte granules where rows start at no border: every element once, nothing of a neighbour."""
    if tiles == "looped":
        monkeypatch.setattr(_launch, "STEP", _launch.Blocks(1, 128, True, 4))
    student, teacher = (normal(i, 3, classes, size=4.0, dtype=dtype).to(device) for i, dtype in enumerate(dtypes))
    upstream = torch.tensor([1.0, -2.0, 0.5], device=device) * (classes if kind == "mse" else 1)
    for options in ({}, {"temperature": 2.0}, {"teacher_is": "probabilities"}):
        q = teacher.float().softmax(1).to(dtypes[1]) if options.get("teacher_is") else teacher
        assert_near(run(student, q, {"kind": kind} | options, upstream), exact(student, q, {"kind": kind} | options, upstream))


def odd_rows(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Fifteen rows of 40 classes, all but the last with something wrong or impossible on one side or both."""
    g = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(15, 40, generator=g) * 3 for _ in range(2))
    student[0], student[1, 5], student[2], student[3, 5] = NAN, NAN, -INF, INF
    teacher[4], teacher[5, 5], teacher[6], teacher[7, 5] = NAN, NAN, -INF, INF
    student[8, 20] = -INF  # the teacher's mass lies there
    student[9, 20] = teacher[9, 20] = -INF
    teacher[10, 3:30] = -INF
    student[11, [0, 16, 32]] = teacher[11, [0, 16, 32]] = torch.finfo(torch.float32).min
    # Impossible for the student, and for the teacher too once a later class of the same lane has come; in row 13 not quite.
    student[12, 0], teacher[12, 0], teacher[12, 16] = -INF, 0.0, 300.0
    student[13, 0], teacher[13, 0], teacher[13, 16] = -INF, 0.0, 60.0
    return student.to(device), teacher.to(device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("teacher_is", ["logits", "probabilities"])
def test_broken_and_impossible_entries_show_as_in_the_reference(
    device: str, tiles: str, kind: str, temperature: float, teacher_is: str
) -> None:
    student, teacher = odd_rows(device)
    if teacher_is == "probabilities":
        broken = ~teacher.isfinite() & (teacher != -INF)
        teacher = torch.where(broken, teacher, teacher.nan_to_num(posinf=0.0).softmax(1) * 0.9)
    options = {"kind": kind, "temperature": temperature, "teacher_is": teacher_is}
    upstream = torch.linspace(0.5, 2, 15, device=device)
    got = run(student, teacher, options, upstream)
    leaves = [t.clone().requires_grad_() for t in (student, teacher)]  # in float32: in float64 nothing would shrink to nothing
    loss = reference.consistency_loss(*leaves, teacher_grad=True, **options)
    wanted = (loss.detach(), *torch.autograd.grad(loss, leaves, upstream))
    assert loss.isfinite()[9:13].all() and loss[14].isfinite() and not loss[:8].isfinite().all()
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        keep = theirs.isfinite()
        torch.testing.assert_close(ours[keep], theirs[keep], rtol=1e-4, atol=1e-5)
    if teacher_is == "logits":
        assert torch.equal(got[0].isnan(), wanted[0].isnan())


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher_is", ["logits", "probabilities"])
def test_rows_of_weight_zero_are_exactly_zero(device: str, tiles: str, kind: str, teacher_is: str) -> None:
    student, teacher = odd_rows(device)
    weight = torch.zeros(15, device=device)
    weight[14] = 1.5
    teacher[14] = teacher[14].softmax(0)
    for temperature in (1.0, 2.0):
        options = {"kind": kind, "teacher_is": teacher_is, "temperature": temperature, "sample_weight": weight}
        upstream = torch.full((15,), INF, device=device)
        upstream[14] = 1.0
        loss, *gradients = run(student, teacher, options, upstream)
        assert torch.equal(loss[:14], torch.zeros(14, device=device)) and loss[14] > 0
        for gradient in gradients:
            assert torch.equal(gradient[:14], torch.zeros(14, 40, device=device)) and gradient[14].isfinite().all() and gradient[14].any()
    nan = {"kind": kind, "sample_weight": torch.tensor([NAN], device=device)}
    assert all(t.isnan().all() for t in run(student[14:], teacher[14:], nan, torch.ones(1, device=device)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [1e4, -1e4, 3e37])
def test_extreme_logits(normal, device: str, tiles: str, kind: str, offset: float) -> None:
    student, teacher = (normal(i, 3, 40, size=3.0, dtype=torch.float32).to(device) for i in (1, 2))
    student, teacher = student + offset, teacher - offset
    student[2], student[2, 7], teacher[2], teacher[2, 9] = -3e38, 3e38, -3e38, 3e38
    for temperature in (0.5, 1.0):
        options = {"kind": kind, "temperature": temperature}
        got, wanted = (call(student, teacher, options, torch.ones(3, device=device)) for call in (run, exact))
        rows = slice(None) if kind == "mse" else slice(2)  # 6e38 nats do not fit into float32
        torch.testing.assert_close(got[0][rows].double(), wanted[0][rows], rtol=1e-5, atol=1e-5)
        assert kind == "mse" or got[0][2] == INF
        torch.testing.assert_close(got[1].double(), wanted[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[2][:2].double(), wanted[2][:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_a_prediction_is_consistent_with_itself(normal, device: str, tiles: str, kind: str) -> None:
    logits = normal(0, 4, 40, size=5.0, dtype=torch.float32).to(device)
    for found in run(logits, logits, {"kind": kind}, torch.ones(4, device=device)):
        assert found.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_any_strides(normal, device: str, tiles: str, kind: str) -> None:
    wide = normal(2, 4, 2, 34, dtype=torch.float32).to(device) * 4
    weight = torch.arange(1.0, 9.0, device=device)[::2]
    layouts = [
        wide[:, 0],
        wide[:, 1].t().contiguous().t(),
        wide[:1, 0].expand(4, 34),
        wide.reshape(-1)[1:137].view(4, 34),
        wide[:, :, ::2].reshape(4, 34),
    ]
    upstream = torch.tensor(0.5, device=device).expand(4)
    for i, student in enumerate(layouts):
        for teacher in (layouts[i], layouts[i - 2]):
            options = {"kind": kind, "sample_weight": weight}
            assert_near(run(student, teacher, options, upstream), exact(student, teacher, options, upstream))


def test_granules_serve_only_two_of_a_kind(normal, device: str, tiles: str, monkeypatch) -> None:
    """One side lies in memory as granules want it, the other one does not."""
    if tiles == "looped":
        monkeypatch.setattr(_launch, "STEP", _launch.Blocks(1, 128, True, 4))
    straight, other = (normal(i, 3, 301, size=4.0, dtype=torch.float32).to(device) for i in (1, 2))
    for bent in (
        other[:1].expand(3, 301),
        other.t().contiguous().t(),
        other.repeat(1, 2)[:, 5:306],
        other.repeat(1, 2).flatten()[1:904].view(3, 301),
    ):
        for pair in ((straight, bent), (bent, straight)):
            upstream = torch.full((3,), 301.0, device=device)
            assert_near(run(*pair, {"kind": "mse"}, upstream), exact(*pair, {"kind": "mse"}, upstream))


def test_only_the_sides_that_want_a_gradient(normal, device: str, tiles: str) -> None:
    student, teacher = (normal(i, 4, 20, dtype=torch.float32).to(device) for i in (1, 2))
    both = run(student, teacher, {"kind": "kl"}, torch.ones(4, device=device))
    leaf = teacher.clone().requires_grad_()
    loss = consistency.consistency_loss(student, leaf, kind="kl", teacher_grad=True)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), leaf)[0], both[2])
    assert not consistency.consistency_loss(student, leaf, kind="kl").requires_grad
    with torch.no_grad():
        assert not consistency.consistency_loss(student, leaf, kind="kl", teacher_grad=True).requires_grad
    one = student.clone().requires_grad_()
    loss = consistency.consistency_loss(one, one, kind="ce", teacher_grad=True)
    double = student.double().requires_grad_()
    wanted = torch.autograd.grad(reference.consistency_loss(double, double, kind="ce", teacher_grad=True).sum(), double)[0]
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), one)[0].double(), wanted, rtol=1e-5, atol=1e-5)


def test_only_the_first_derivative(normal, device: str) -> None:
    student = normal(1, 4, 5, dtype=torch.float32).to(device).requires_grad_()
    loss = consistency.consistency_loss(student, student.detach() * 2).sum()
    with pytest.raises(RuntimeError, match="differentiable once; for a second derivative call fastssl.kernels.reference.consistency_loss"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_the_same_bits_in_twenty_runs(normal, device: str, tiles: str) -> None:
    student, teacher = (normal(i, 3, 40, size=4.0, dtype=torch.float32).to(device) for i in (1, 2))
    upstream = torch.ones(3, device=device)
    found = {torch.cat([t.flatten() for t in run(student, teacher, {"kind": "kl"}, upstream)]).cpu().numpy().tobytes() for _ in range(20)}
    assert len(found) == 1
