"""`cross_entropy` against plain Python numbers, torch's own, and the rules for dead rows and labels out of range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastssl.kernels import cross_entropy

NAN, INF = math.nan, math.inf
SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def cases(draw) -> dict:
    soft = draw(st.booleans())
    return {
        "seed": draw(st.integers(0, 2**20)),
        "rows": draw(st.integers(0, 7)),
        "classes": draw(st.sampled_from([2, 3, 10, 13])),
        "size": draw(st.sampled_from([0.5, 40.0])),
        "soft": soft,
        "index": draw(st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8])),
        "margin": not soft and draw(st.booleans()),
        "smoothing": 0.0 if soft else draw(st.sampled_from([0.0, 0.1, 0.9])),
        "class_weight": draw(st.booleans()),
        "adjust": draw(st.booleans()),
        "sample_weight": draw(st.booleans()),
    }


def build(case: dict, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, dict]:
    g = torch.Generator().manual_seed(case["seed"])
    rows, classes = case["rows"], case["classes"]

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=g, dtype=torch.float64).to(dtype)

    logits = (torch.randn(rows, classes, generator=g, dtype=torch.float64) * case["size"]).to(dtype)
    # A soft target need not sum to 1, and may hold zeros.
    target = uniform(rows, classes) * (uniform(rows, classes) > 0.3)
    if not case["soft"]:
        target = torch.randint(classes, (rows,), generator=g).to(case["index"])
    options = {"smoothing": case["smoothing"]}
    if case["margin"]:
        options["margin"] = uniform(classes) * 4
    if case["class_weight"]:
        options["class_weight"] = uniform(classes) * (uniform(classes) > 0.2)
    if case["adjust"]:
        options["adjust"] = uniform(classes) * 3
    if case["sample_weight"]:
        options["sample_weight"] = uniform(rows) * (uniform(rows) > 0.3)
    return logits, target, options


def expected(oracle, logits, target, options) -> tuple[torch.Tensor, torch.Tensor]:
    given_ = {name: value.double().tolist() for name, value in options.items() if isinstance(value, torch.Tensor)}
    sample_weight = given_.pop("sample_weight", [1.0] * len(logits))
    losses, slopes = [], []
    for row, t, w in zip(logits.double().tolist(), target.tolist(), sample_weight, strict=True):
        label, q = (None, t) if isinstance(t, list) else (t, oracle.hard_target(t, len(row), options["smoothing"]))
        loss, slope = oracle.cross_entropy_row(row, q, label=label, **given_)
        losses.append(w * loss)
        slopes.append([w * g for g in slope])
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64).reshape(logits.shape)


@SETTINGS
@given(case=cases())
def test_values_and_gradients(oracle, case: dict) -> None:
    logits, target, options = build(case)
    loss, slope = expected(oracle, logits, target, options)
    got = cross_entropy(logits.requires_grad_(), target, **options)
    assert got.dtype == torch.float64 and got.shape == loss.shape
    torch.testing.assert_close(got, loss, rtol=1e-10, atol=1e-10)
    upstream = torch.linspace(-2, 3, len(loss), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(got, logits, upstream)
    torch.testing.assert_close(gradient, slope * upstream[:, None], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@SETTINGS
@given(case=cases())
def test_lower_precisions_are_computed_in_float32(oracle, dtype: torch.dtype, case: dict) -> None:
    logits, target, options = build(case, dtype)
    loss, slope = expected(oracle, logits, target, options)
    got = cross_entropy(logits.requires_grad_(), target, **options)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), loss, rtol=1e-5, atol=1e-4)
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), slope, rtol=2 * torch.finfo(dtype).eps, atol=2e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases())
def test_gradcheck(case: dict) -> None:
    logits, target, options = build(case | {"size": 0.5})
    torch.autograd.gradcheck(lambda z: cross_entropy(z, target, **options), (logits.requires_grad_(),))
    torch.autograd.gradgradcheck(lambda z: cross_entropy(z, target, **options), (logits,))


def test_agrees_with_torch(normal) -> None:
    logits, target, weight = normal(0, 9, 5), torch.arange(9) % 5, normal(1, 5).abs()
    theirs = torch.nn.functional.cross_entropy
    torch.testing.assert_close(cross_entropy(logits, target), theirs(logits, target, reduction="none"))
    torch.testing.assert_close(cross_entropy(logits, target, class_weight=weight), theirs(logits, target, weight, reduction="none"))
    q = normal(2, 9, 5).softmax(1)
    torch.testing.assert_close(cross_entropy(logits, q, class_weight=weight), theirs(logits, q, weight, reduction="none"))
    # torch spreads eps over all C classes, we over the other C - 1: eps_torch = eps * C / (C - 1).
    ours = cross_entropy(logits, target, smoothing=0.4, class_weight=weight)
    torch.testing.assert_close(ours, theirs(logits, target, weight, label_smoothing=0.5, reduction="none"))


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.1}, {"margin": torch.ones(2)}, {"class_weight": torch.ones(2)}])
@pytest.mark.parametrize("row", [[NAN, 0.0], [INF, 0.0], [-INF, -INF]])
def test_a_row_of_weight_0_is_exactly_0(row: list[float], options: dict) -> None:
    logits = torch.tensor([row, [1.0, 2.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 1]), sample_weight=torch.tensor([0.0, 1.0]), **options)
    loss.sum().backward()
    assert loss[0] == 0 and torch.equal(logits.grad[0], torch.zeros(2)) and logits.grad[1].abs().sum() > 0


def test_a_class_of_weight_0_makes_dead_rows() -> None:
    logits = torch.tensor([[NAN, 0.0], [1.0, 2.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 1]), class_weight=torch.tensor([0.0, 1.0]))
    loss.sum().backward()
    assert loss[0] == 0 and torch.equal(logits.grad[0], torch.zeros(2)) and loss[1] > 0


def test_a_soft_target_of_weight_0_may_be_broken() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[NAN, 1.0], [0.25, 0.75]]), sample_weight=torch.tensor([0.0, 1.0]))
    loss.sum().backward()
    assert loss[0] == 0 and torch.equal(logits.grad, torch.tensor([[0.0, 0.0], [0.25, -0.25]]))


def test_minus_infinity_is_an_impossible_class() -> None:
    logits = torch.tensor([[1.0, 2.0, -INF]] * 2, requires_grad=True)
    wanted = cross_entropy(logits[:, :2].detach(), torch.tensor([0, 1]))
    for target in (torch.tensor([0, 1]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])):
        for class_weight in (None, torch.ones(3)):
            logits.grad = None
            loss = cross_entropy(logits, target, class_weight=class_weight)
            torch.testing.assert_close(loss, wanted)
            loss.sum().backward()
            assert logits.grad.isfinite().all() and torch.equal(logits.grad[:, 2], torch.zeros(2))
    # Forbidden by the adjustment instead.
    ruled_out = cross_entropy(torch.tensor([[1.0, 2.0, 7.0]] * 2), torch.tensor([0, 1]), adjust=torch.tensor([0.0, 0.0, -INF]))
    torch.testing.assert_close(ruled_out, wanted)
    assert cross_entropy(logits, torch.tensor([0, 1]), smoothing=0.1).tolist() == [INF, INF]
    spared = cross_entropy(logits, torch.tensor([0, 1]), smoothing=0.1, class_weight=torch.tensor([1.0, 1.0, 0.0]))
    assert spared.isfinite().all()


@pytest.mark.parametrize("label", [-1, 3, -100, 2**40])
def test_a_label_out_of_range_is_an_error_at_once_on_the_cpu(label: int) -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([0, label])
    with pytest.raises(ValueError, match=rf"target must hold labels from 0 to 2; got {label} in row 1"):
        cross_entropy(logits, target)
    assert cross_entropy(logits, target, sample_weight=torch.tensor([1.0, 0.0]))[1] == 0


@pytest.mark.parametrize("options", [{}, {"margin": torch.ones(3)}, {"smoothing": 0.1, "class_weight": torch.ones(3)}])
def test_a_label_out_of_range_is_nan_where_it_cannot_be_read(options: dict) -> None:
    """Compiled code has no labels to look at: NaN in loss and gradient, as on a GPU; a sample weight of 0 wins."""
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    logits = torch.zeros(4, 3, requires_grad=True)
    loss = compiled(logits, torch.tensor([0, -1, 3, 2**40]), sample_weight=torch.tensor([1.0, 1.0, 1.0, 0.0]), **options)
    loss.sum().backward()
    assert loss.isnan().tolist() == [False, True, True, False] and loss[3] == 0
    assert logits.grad.isnan().any(dim=1).tolist() == [False, True, True, False]


def test_inputs_stay_as_they_are_and_any_layout_serves(normal) -> None:
    logits, target = normal(0, 7, 5).t()[:, ::2], torch.tensor([2]).expand(5)
    before = logits.clone()
    got = cross_entropy(logits, target, margin=normal(1, 1).abs().expand(4), smoothing=0.1)
    torch.testing.assert_close(got, cross_entropy(before, target.contiguous(), margin=normal(1, 1).abs().repeat(4), smoothing=0.1))
    assert torch.equal(logits, before)
