"""`pseudo_label_loss` and its closed-form gradient against plain Python numbers, over shapes and combinations of options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastssl.kernels import PseudoLabel, pseudo_label_loss, pseudo_label_loss_and_grad

WEIGHTINGS = ("step", "smooth", "gaussian", "confidence", "none")
SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def cases(draw) -> dict:
    """A seed, a shape and options by name; tensors are made from the seed by `build`."""
    soft = draw(st.booleans())
    return {
        "seed": draw(st.integers(0, 2**20)),
        "views": draw(st.sampled_from([None, 1, 2, 3])),
        "rows": draw(st.integers(0, 7)),
        "classes": draw(st.sampled_from([2, 3, 5, 10, 13])),
        "size": draw(st.sampled_from([0.5, 3.0, 40.0])),
        "threshold": draw(st.sampled_from(["number", "[]", "[C]", "[N, 1]"])),
        "weighting": draw(st.sampled_from(WEIGHTINGS)),
        "power": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "variance": draw(st.sampled_from(["number", "[]"])),
        "judge": draw(st.booleans()),
        "temperature": draw(st.sampled_from([0.4, 1.0, 2.0])) if soft else None,
        "align": draw(st.sampled_from([None, "both", "weight"])),
        "margin": not soft and draw(st.booleans()),
        "adjust": draw(st.booleans()),
        "smoothing": 0.0 if soft else draw(st.sampled_from([0.0, 0.1, 0.5])),
        "sample_weight": draw(st.booleans()),
        "ready": draw(st.booleans()),
    }


def build(case: dict, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor | PseudoLabel, dict]:
    g = torch.Generator().manual_seed(case["seed"])
    rows, classes = case["rows"], case["classes"]

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return (torch.rand(shape, generator=g, dtype=torch.float64) * (high - low) + low).to(dtype)

    def logits(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=g, dtype=torch.float64) * case["size"]).to(dtype)

    shape = (rows, classes) if case["views"] is None else (case["views"], rows, classes)
    student, teacher = logits(*shape), logits(rows, classes)
    threshold = uniform(*{"number": (), "[]": (), "[C]": (classes,), "[N, 1]": (rows, 1)}[case["threshold"]], low=0.2)
    options = {
        "threshold": float(threshold) if case["threshold"] == "number" else threshold,
        "weighting": case["weighting"],
        "power": case["power"],
        "variance": 0.05 if case["variance"] == "number" else torch.tensor(0.05, dtype=dtype),
        "smoothing": case["smoothing"],
    }
    if case["judge"]:
        options["judge"] = logits(rows, classes)
    if case["margin"]:
        options["margin"] = uniform(classes, high=4.0)
    if case["adjust"]:
        options["adjust"] = logits(classes)
    if case["sample_weight"]:
        options["sample_weight"] = uniform(rows, high=2.0) * (uniform(rows) > 0.3)
    if case["ready"] and case["temperature"] is None:
        label = torch.randint(classes, (rows,), generator=g)
        teacher = PseudoLabel(uniform(rows), label, uniform(rows, low=1 / classes), uniform(rows))
    else:
        options["temperature"] = case["temperature"]
        if case["align"] is not None:
            options |= {"align": uniform(classes, low=0.2, high=3.0), "align_for": case["align"]}
    return student, teacher, options


def plain(value):
    """Tensors as nested lists of Python floats."""
    return value.double().tolist() if isinstance(value, torch.Tensor) else value


def expected(oracle, student, teacher, options) -> dict[str, torch.Tensor]:
    views = (student if student.dim() == 3 else student[None]).double().tolist()
    ready = (teacher.label.tolist(), plain(teacher.confidence)) if isinstance(teacher, PseudoLabel) else plain(teacher)
    out = oracle.pseudo_label_loss(views, ready, **{name: plain(value) for name, value in options.items()})
    gradient = torch.tensor(out.pop("gradient"), dtype=torch.float64).reshape(student.shape)
    dtypes = {"label": torch.int64}
    return {"gradient": gradient, **{k: torch.tensor(v, dtype=dtypes.get(k, torch.float64)) for k, v in out.items()}}


def near(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=tolerance, atol=tolerance)


@SETTINGS
@given(case=cases())
def test_values_and_gradients(oracle, case: dict) -> None:
    student, teacher, options = build(case)
    wanted = expected(oracle, student, teacher, options)
    student.requires_grad_()
    got = pseudo_label_loss(student, teacher, **options)
    for name in PseudoLabel._fields:
        near(getattr(got, name), wanted[name], 1e-10)
    assert got.loss.dtype == got.weight.dtype == got.confidence.dtype == torch.float64 and got.label.dtype == torch.int64
    assert not (got.label.requires_grad or got.confidence.requires_grad or got.weight.requires_grad)

    # An upstream gradient that is neither 1 nor the same for all rows.
    upstream = torch.linspace(-2, 3, got.loss.numel(), dtype=torch.float64)
    (slope,) = torch.autograd.grad(got.loss, student, upstream)
    near(slope, wanted["gradient"] * upstream.reshape(student.shape[:-1])[..., None], 1e-10)


@SETTINGS
@given(case=cases(), scale=st.sampled_from(["number", "[]", "[N]"]))
def test_loss_and_gradient_at_once(oracle, case: dict, scale: str) -> None:
    student, teacher, options = build(case)
    wanted = expected(oracle, student, teacher, options)
    rows = torch.linspace(-2, 3, case["rows"], dtype=torch.float64)
    factor = {"number": 0.25, "[]": torch.tensor(0.25), "[N]": rows}[scale]
    got, gradient = pseudo_label_loss_and_grad(student, teacher, scale=factor, **options)
    for name in PseudoLabel._fields:
        near(getattr(got, name), wanted[name], 1e-10)
    near(gradient, wanted["gradient"] * (rows[:, None] if scale == "[N]" else 0.25), 1e-10)
    assert gradient.shape == student.shape and gradient.dtype == student.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@SETTINGS
@given(case=cases())
def test_lower_precisions_are_computed_in_float32(oracle, dtype: torch.dtype, case: dict) -> None:
    case = case | {"size": min(case["size"], 3.0)}
    student, teacher, options = build(case, dtype)
    if isinstance(teacher, PseudoLabel):
        teacher = PseudoLabel(*(t.float() if t.is_floating_point() else t for t in teacher))
    # Where a confidence meets its threshold within rounding, or two classes tie, float32 and float64 may rightly differ.
    wanted = expected(oracle, student, teacher, options)
    twice = [expected(oracle, student, teacher, options | {"threshold": moved(options["threshold"], by)}) for by in (-1e-5, 1e-5)]
    clear = (twice[0]["weight"] - twice[1]["weight"]).abs() < 0.05
    student.requires_grad_()
    got = pseudo_label_loss(student, teacher, **options)
    if not torch.equal(got.label, wanted["label"]):
        assert_tied(teacher, got.label, wanted["label"], options)
        return
    near(got.confidence, wanted["confidence"], 1e-5)
    near(got.loss[clear], wanted["loss"][clear], 2e-3 if case["weighting"] == "smooth" and case["power"] < 1 else 2e-4)
    assert got.loss.dtype == got.weight.dtype == torch.float32
    got.loss.sum().backward()
    assert student.grad.dtype == dtype
    at_once, gradient = pseudo_label_loss_and_grad(student.detach(), teacher, scale=1.0, **options)
    near(at_once.loss, got.loss.detach(), 1e-5)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), student.grad.double(), rtol=2 * step, atol=max(2 * step, 1e-5))
    rows = clear.reshape(student.shape[:-1])
    near(gradient[rows], wanted["gradient"][rows], max(8 * step, 2e-3))


def moved(threshold, by: float):
    return threshold + by if isinstance(threshold, float) else threshold.double() + by


def assert_tied(teacher: torch.Tensor, got: torch.Tensor, wanted: torch.Tensor, options: dict) -> None:
    logits = teacher.double()
    if options.get("align") is not None and options["align_for"] == "both":
        logits = logits + options["align"].double().log()
    torch.testing.assert_close(logits.gather(1, got[:, None]), logits.gather(1, wanted[:, None]), rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases())
def test_gradcheck(case: dict) -> None:
    student, teacher, options = build(case | {"size": 1.0})
    student.requires_grad_()
    torch.autograd.gradcheck(lambda z: pseudo_label_loss(z, teacher, **options).loss, (student,))
    torch.autograd.gradgradcheck(lambda z: pseudo_label_loss(z, teacher, **options).loss, (student,))


def test_the_oracle_agrees_with_finite_differences(oracle) -> None:
    student, teacher, options = build(
        {"seed": 3, "views": 2, "rows": 3, "classes": 4, "size": 1.0, "threshold": "number", "weighting": "none", "power": 1.0}
        | {"variance": "[]", "judge": False, "temperature": None, "align": None, "margin": True, "adjust": True, "smoothing": 0.3}
        | {"sample_weight": True, "ready": False}
    )
    wanted = expected(oracle, student, teacher, options)["gradient"]
    step = 1e-6
    for place in torch.cartesian_prod(*(torch.arange(n) for n in student.shape)).tolist():
        ends = []
        for sign in (1, -1):
            near_by = student.clone()
            near_by[tuple(place)] += sign * step
            ends.append(expected(oracle, near_by, teacher, options)["loss"].sum())
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), wanted[tuple(place)], rtol=1e-6, atol=1e-8)
