"""`class_statistics` against plain Python numbers."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastssl.kernels import class_statistics

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 9),
    classes=st.sampled_from([2, 3, 10]),
    form=st.sampled_from([None, "number", "[]", "[C]", "[N, 1]"]),
)
def test_values(oracle, seed: int, rows: int, classes: int, form: str | None) -> None:
    g = torch.Generator().manual_seed(seed)
    teacher = torch.randn(rows, classes, generator=g, dtype=torch.float64) * 2
    shape = {"number": (), "[]": (), "[C]": (classes,), "[N, 1]": (rows, 1)}.get(form)
    threshold = None if form is None else torch.rand(shape, generator=g, dtype=torch.float64) * 0.6 + 0.3
    probabilities = [oracle.softmax(row) for row in teacher.tolist()]
    confidence, counts = [max(p) for p in probabilities], [0] * classes
    for n, p in enumerate(probabilities):
        label = oracle.first_argmax(p)
        limit = -1.0 if threshold is None else oracle.threshold_of(threshold.tolist(), n, label)
        counts[label] += confidence[n] >= limit
    got = class_statistics(teacher, threshold=float(threshold) if form == "number" else threshold)
    assert got.histogram.tolist() == counts and got.histogram.dtype == torch.int64
    for ours, wanted in (
        (got.mean_probability, [math.fsum(column) / rows for column in zip(*probabilities, strict=True)]),
        (got.confidence_mean, statistics.fmean(confidence)),
        (got.confidence_var, statistics.variance(confidence) if rows > 1 else 0.0),
    ):
        torch.testing.assert_close(ours, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions_are_computed_in_float32(dtype: torch.dtype, normal) -> None:
    teacher = normal(0, 64, 5, size=3, dtype=dtype)
    got, wanted = class_statistics(teacher, threshold=0.8), class_statistics(teacher.double(), threshold=0.8)
    assert torch.equal(got.histogram, wanted.histogram) and 0 < got.histogram.sum() < 64
    for ours, theirs in ((got.mean_probability, wanted.mean_probability), (got.confidence_mean, wanted.confidence_mean)):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-7)


def test_variance_of_confidences_that_lie_close_to_1() -> None:
    """Differences of 1e-4 around 0.9999: E[c^2] - E[c]^2 in float32 would be nothing but rounding."""
    c = torch.tensor([0.9998, 0.9999] * 50, dtype=torch.float64)
    teacher = torch.stack([c.logit(), torch.zeros_like(c)], dim=1).float()
    assert class_statistics(teacher).confidence_var.item() == pytest.approx(c.var().item(), rel=0.01)


def test_a_broken_row_shows_in_the_means_and_is_not_counted() -> None:
    got = class_statistics(torch.tensor([[math.nan, 0.0], [9.0, 0.0], [math.inf, 0.0]]))
    assert got.histogram.tolist() == [1, 0]
    assert got.mean_probability.isnan().all() and got.confidence_mean.isnan() and got.confidence_var.isnan()


def test_nothing_carries_gradient_and_the_teacher_stays(normal) -> None:
    teacher = normal(0, 14, 6).t()[:, ::2].requires_grad_()
    before = teacher.detach().clone()
    got, wanted = class_statistics(teacher), class_statistics(before)
    assert not any(t.requires_grad for t in got)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(teacher, before)


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (torch.zeros(0, 3), {}, "at least one row"),
        (torch.zeros(3), {}, r"teacher must be a floating-point tensor \[N, C\]; got float32 \[3\]"),
        (torch.zeros(2, 3, dtype=torch.int64), {}, "got int64"),
        (torch.zeros(2, 3), {"threshold": torch.zeros(2)}, r"threshold must .* \[C\] = \[3\] or \[N, 1\] = \[2, 1\]; got float32 \[2\]"),
        (torch.zeros(2, 3), {"threshold": math.nan}, "threshold must be a number"),
    ],
)
def test_errors(teacher, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_statistics(teacher, **options)
