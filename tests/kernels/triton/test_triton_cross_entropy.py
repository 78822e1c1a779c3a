"""`cross_entropy` by Triton: values against plain Python float64 numbers, gradients against the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastssl.kernels import cross_entropy, reference

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
EPS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@st.composite
def cases(draw) -> dict:
    soft = draw(st.booleans())
    return {
        "seed": draw(st.integers(0, 2**20)),
        "rows": draw(st.integers(0, 9)),
        "classes": draw(st.sampled_from([2, 3, 10, 17, 40, 101])),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        "size": draw(st.sampled_from([0.5, 5.0, 40.0])),
        "soft": soft,
        "index": draw(st.sampled_from([torch.int64, torch.int32, torch.uint8])),
        "smoothing": 0.0 if soft else draw(st.sampled_from([0.0, 0.2])),
        "margin": not soft and draw(st.booleans()),
        "adjust": draw(st.booleans()),
        "class_weight": draw(st.booleans()),
        "sample_weight": draw(st.booleans()),
    }


def build(case: dict, device: str) -> tuple[torch.Tensor, torch.Tensor, dict]:
    g = torch.Generator().manual_seed(case["seed"])
    rows, classes = case["rows"], case["classes"]
    logits = (torch.randn(rows, classes, generator=g) * case["size"]).to(case["dtype"])
    if case["soft"]:
        target = torch.rand(rows, classes, generator=g) * (torch.rand(rows, classes, generator=g) > 0.3)
    else:
        target = torch.randint(classes, (rows,), generator=g).to(case["index"])
    options = {"smoothing": case["smoothing"]}
    if case["margin"]:
        options["margin"] = torch.rand(classes, generator=g) * 4
    if case["adjust"]:
        options["adjust"] = torch.randn(classes, generator=g)
    if case["class_weight"]:
        options["class_weight"] = torch.rand(classes, generator=g) * (torch.rand(classes, generator=g) > 0.2)
    if case["sample_weight"]:
        options["sample_weight"] = torch.rand(rows, generator=g) * (torch.rand(rows, generator=g) > 0.3)
    return logits.to(device), target.to(device), {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def expected(oracle, logits, target, options) -> tuple[torch.Tensor, torch.Tensor]:
    plain = {k: v.double().tolist() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    weight = plain.pop("sample_weight", [1.0] * len(logits))
    smoothing = plain.pop("smoothing")
    losses, slopes = [], []
    for n, row in enumerate(logits.double().tolist()):
        soft = target.dim() == 2
        label = None if soft else int(target[n])
        q = target[n].double().tolist() if soft else oracle.hard_target(label, len(row), smoothing)
        loss, slope = oracle.cross_entropy_row(row, q, label=label, **plain)
        losses.append(weight[n] * loss)
        slopes.append([weight[n] * g for g in slope])
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64).reshape(logits.shape)


@pytest.mark.usefixtures("poisoned")
@SETTINGS
@given(case=cases())
def test_values_and_gradients(oracle, device: str, tiles: str, case: dict) -> None:
    logits, target, options = build(case, device)
    wanted, slope = expected(oracle, logits, target, options)
    logits.requires_grad_()
    before = [t.clone() for t in (logits, target, *options.values()) if isinstance(t, torch.Tensor)]
    loss = cross_entropy(logits, target, **options)
    assert loss.dtype == torch.float32 and loss.shape == (case["rows"],)
    torch.testing.assert_close(loss.double().cpu(), wanted, rtol=2e-5, atol=2e-5)
    upstream = torch.linspace(-2, 3, case["rows"], device=device)
    (gradient,) = torch.autograd.grad(loss, logits, upstream)
    assert gradient.dtype == logits.dtype and gradient.shape == logits.shape
    wanted = slope * upstream.double().cpu()[:, None]
    near = max(EPS[case["dtype"]] * wanted.abs().max().item(), 1e-5) if wanted.numel() else 0.0
    torch.testing.assert_close(gradient.double().cpu(), wanted, rtol=EPS[case["dtype"]], atol=near)
    for now, then in zip([t for t in (logits, target, *options.values()) if isinstance(t, torch.Tensor)], before, strict=True):
        assert torch.equal(now, then)
    # Without a gradient to keep, the same loss bit for bit.
    assert torch.equal(cross_entropy(logits.detach(), target, **options), loss)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("classes", [300, 301])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_rows_that_start_anywhere(normal, device: str, tiles: str, classes: int, dtype: torch.dtype) -> None:
    """Odd class counts are read and written by 16-byte granules: every element once, nothing of a neighbour."""
    logits = normal(1, 5, classes, size=3.0, dtype=dtype).to(device).requires_grad_()
    target = torch.tensor([0, classes - 1, 7, 8, 200], device=device)
    loss = cross_entropy(logits, target, smoothing=0.1)
    upstream = torch.linspace(1, 2, 5, device=device)
    (gradient,) = torch.autograd.grad(loss, logits, upstream)
    double = logits.detach().double().requires_grad_()
    wanted = reference.cross_entropy(double, target, smoothing=0.1)
    (slope,) = torch.autograd.grad(wanted, double, upstream.double())
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=EPS[dtype], atol=1e-6)


def test_rows_of_weight_zero_and_labels_outside(device: str, tiles: str) -> None:
    logits = torch.zeros(5, 20, device=device)
    logits[1], logits[2, 3], logits[4, 0] = math.nan, -math.inf, math.inf
    logits.requires_grad_()
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], device=device)
    target = torch.tensor([1, 1, 3, 99, 1], device=device)
    loss = cross_entropy(logits, target, sample_weight=weight)
    assert loss.tolist() == [pytest.approx(math.log(20)), 0.0, math.inf, 0.0, 0.0]
    loss[:2].sum().backward()
    assert torch.equal(logits.grad[1:], torch.zeros(4, 20, device=device)) and logits.grad[0].abs().sum() > 0
    from fastssl.kernels import triton_cross_entropy

    call = triton_cross_entropy.Call(torch.tensor([1, 20, -1, 255, 0], device=device), None, None, None, None, weight, 0.0)
    loss = triton_cross_entropy.run_forward(torch.zeros(5, 20, device=device), call, False)[0]
    assert loss.isnan().tolist() == [False, False, True, False, False]


def test_any_strides(normal, device: str, tiles: str) -> None:
    wide = normal(2, 6, 2, 33, dtype=torch.float32).to(device)
    target = torch.arange(6, device=device)
    for logits in (wide[:, 1], wide[:, 0].t().contiguous().t(), wide[:1, 0].expand(6, 33), wide[::2, 0, ::3].repeat(2, 1)[:, :]):
        soft = wide.flip(0)[:, 1, : logits.shape[1]].softmax(1)
        vector = torch.arange(2.0 * logits.shape[1], device=device)[::2] / 50
        for chosen, options in ((target, {"margin": vector, "class_weight": vector}), (soft, {"adjust": vector})):
            leaf = logits.detach().requires_grad_()
            got = cross_entropy(leaf, chosen, **options)
            (gradient,) = torch.autograd.grad(got.sum(), leaf)
            double = logits.detach().double().requires_grad_()
            wanted = reference.cross_entropy(double, chosen, **options)
            torch.testing.assert_close(got.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(gradient.double(), torch.autograd.grad(wanted.sum(), double)[0], rtol=1e-5, atol=1e-5)
