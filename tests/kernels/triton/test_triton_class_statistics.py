"""`class_statistics` by Triton, against plain Python float64 numbers."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastssl.kernels import _launch, reference, triton_class_statistics
from fastssl.kernels.triton_class_statistics import class_statistics

NAN, INF = math.nan, math.inf
SETTINGS = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["as it is", "short rows", "long rows", "looped"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How rows are shared out: as a launch would choose, or several small tiles to a program, in each of the ways."""
    way = request.param
    if way != "as it is":
        monkeypatch.setattr(triton_class_statistics, "TILE", {False: 64, True: 64})
        monkeypatch.setattr(triton_class_statistics, "SHARE", {False: 1, True: 1})
        monkeypatch.setattr(triton_class_statistics, "GROUPS", {False: 2, True: 8})
        monkeypatch.setattr(triton_class_statistics, "FOLD_FROM", 1000 if way == "short rows" else 2)
        monkeypatch.setattr(triton_class_statistics, "COLUMNS", 16)
    if way == "looped":
        monkeypatch.setattr(_launch, "WHOLE", ())
        monkeypatch.setattr(_launch, "STEP", _launch.Blocks(1, 16, True, 4))
    return way


def expected(oracle, teacher: torch.Tensor, threshold) -> tuple[list[int], list[float], float, float, list[float]]:
    """(histogram, mean probabilities, mean and variance of the confidences, by how much each confidence is above its threshold)."""
    probabilities = [oracle.softmax(row) for row in teacher.double().tolist()]
    confidence, counts, above = [max(p) for p in probabilities], [0] * teacher.shape[1], []
    limit = threshold.double().tolist() if isinstance(threshold, torch.Tensor) else threshold
    for n, row in enumerate(teacher.double().tolist()):
        label = oracle.first_argmax(row)
        above.append(confidence[n] - (-1.0 if limit is None else oracle.threshold_of(limit, n, label)))
        counts[label] += above[-1] >= 0
    means = [math.fsum(column) / len(confidence) for column in zip(*probabilities, strict=True)]
    return counts, means, statistics.fmean(confidence), statistics.variance(confidence) if len(confidence) > 1 else 0.0, above


@pytest.mark.usefixtures("poisoned")
@SETTINGS
@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 24),
    classes=st.sampled_from([2, 3, 10, 33]),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from([None, "number", "[]", "[C]", "[N, 1]"]),
)
def test_values(oracle, device: str, shared: str, seed: int, rows: int, classes: int, dtype: torch.dtype, form: str | None) -> None:
    g = torch.Generator().manual_seed(seed)
    teacher = (torch.randn(rows, classes, generator=g) * 3).to(dtype)
    shape = {"number": (), "[]": (), "[C]": (classes,), "[N, 1]": (rows, 1)}.get(form)
    threshold = None if form is None else torch.rand(shape, generator=g) * 0.6 + 0.3
    counts, means, mean, variance, above = expected(oracle, teacher, threshold)
    assume(min(map(abs, above)) > 1e-6)
    asked = float(threshold) if form == "number" else threshold if threshold is None else threshold.to(device)
    on = teacher.to(device)
    got = class_statistics(on, threshold=asked)
    assert got.histogram.tolist() == counts and got.histogram.dtype == torch.int64 and torch.equal(on.cpu(), teacher)
    for ours, wanted in ((got.mean_probability, means), (got.confidence_mean, mean), (got.confidence_var, variance)):
        assert ours.dtype == torch.float32 and not ours.requires_grad
        torch.testing.assert_close(ours.double().cpu(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-7)


def near(got: tuple, wanted: tuple) -> None:
    assert torch.equal(got[1], wanted[1])
    for ours, theirs in zip((got[0], *got[2:]), (wanted[0], *wanted[2:]), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("classes", [256, 300, 301])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_long_rows_that_start_anywhere(normal, device: str, shared: str, classes: int, dtype: torch.dtype, monkeypatch) -> None:
    """Read by 16-byte granules, each row from another place of its first one; a program still adds the same class up in a lane."""
    if shared == "looped":
        monkeypatch.setattr(_launch, "STEP", _launch.Blocks(1, 128, True, 4))
        monkeypatch.setattr(triton_class_statistics, "COLUMNS", 64)
    teacher = normal(1, 19, classes, size=9.0, dtype=dtype).to(device)
    teacher[3, 0], teacher[4, classes - 1] = 90.0, 90.0
    for threshold in (None, torch.linspace(0, 1, classes, device=device)):
        got, wanted = (
            call(x, threshold=threshold) for call, x in ((class_statistics, teacher), (reference.class_statistics, teacher.double()))
        )
        near(got, wanted)
        assert got.histogram.sum() > 5


def test_broken_rows_show_in_the_means_and_are_not_counted(device: str, shared: str) -> None:
    teacher = torch.zeros(9, 40, device=device)
    teacher[:, 7], teacher[4, 30], teacher[5, 3:] = 9.0, -INF, -INF
    fine = class_statistics(teacher)
    near(fine, reference.class_statistics(teacher))
    assert fine.histogram.sum() == 9 and fine.histogram[0] == 1  # in row 5 the first of three
    for broken in (NAN, INF, -INF):
        for where in ((1, slice(None)), (1, 20), (1, 0)):
            if broken == -INF and where[1] != slice(None):
                continue
            rows = teacher.clone()
            rows[where] = broken
            for threshold in (None, torch.full((40,), 0.5, device=device)):
                got = class_statistics(rows, threshold=threshold)
                assert got.histogram.tolist() == reference.class_statistics(rows, threshold=threshold).histogram.tolist()
                assert got.mean_probability.isnan().all() and got.confidence_mean.isnan() and got.confidence_var.isnan()
    assert class_statistics(teacher, threshold=torch.full((40,), NAN, device=device)).histogram.sum() == 0
    alone = class_statistics(torch.full((1, 5), NAN, device=device))
    assert alone.confidence_mean.isnan() and alone.confidence_var == 0 and alone.histogram.sum() == 0


def test_variance_of_confidences_that_lie_close_to_1(device: str, shared: str) -> None:
    """Differences of 1e-4 around 0.9999: E[c^2] - E[c]^2 in float32 would be nothing but rounding."""
    c = torch.tensor([0.9998, 0.9999] * 50, dtype=torch.float64)
    teacher = torch.stack([c.logit(), torch.zeros_like(c)], dim=1).float().to(device)
    got = class_statistics(teacher)
    assert got.confidence_var.item() == pytest.approx(c.var().item(), rel=0.01)
    assert got.histogram.tolist() == [100, 0] and got.mean_probability.tolist() == pytest.approx([0.99985, 0.00015], abs=1e-6)


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e38])
def test_extreme_logits(normal, device: str, shared: str, offset: float) -> None:
    teacher = normal(1, 12, 40, size=3.0, dtype=torch.float32).to(device) + offset
    teacher[3] = -3e38
    teacher[3, 17] = 3e38
    near(class_statistics(teacher, threshold=0.2), reference.class_statistics(teacher.double(), threshold=0.2))


def test_any_strides_and_no_gradient(normal, device: str, shared: str) -> None:
    wide = normal(2, 10, 2, 34, dtype=torch.float32).to(device) * 4
    limits = torch.linspace(0, 1, 68, device=device)[::2]
    layouts = (wide[:, 1], wide[:, 0].t().contiguous().t(), wide[:1, 0].expand(10, 34), wide.flatten()[1:341].view(10, 34), wide[:, 1, ::2])
    for i, teacher in enumerate(layouts):
        threshold = (limits[: teacher.shape[1]], limits[:10, None], torch.tensor(0.4))[i % 3]  # the last one of the host, as torch allows
        got = class_statistics(teacher.detach().requires_grad_(), threshold=threshold)
        near(got, reference.class_statistics(teacher, threshold=threshold))
        assert not any(t.requires_grad for t in got)


@pytest.mark.parametrize("classes", [2, 10])
def test_many_rows(normal, device: str, classes: int) -> None:
    teacher = normal(3, 3000, classes, size=4.0, dtype=torch.float32).to(device)
    near(class_statistics(teacher, threshold=0.7), reference.class_statistics(teacher.double(), threshold=0.7))


def test_every_row_belongs_to_one_program_and_every_program_fits(device: str) -> None:
    for classes in (2, 10, 64, 256, 257, 301, 1000, 4096, 8191, 8192, 8193, 21841, 65536, 262145):
        for rows in (1, 7, 8, 9, 448, 4096, 32768, 3_000_001):
            how = triton_class_statistics.plan(torch.empty(rows, classes, dtype=torch.bfloat16, device="meta"))
            assert how.groups * how.steps * how.rows >= rows and how.groups % 8 == 0 and how.groups <= triton_class_statistics.MOST_GROUPS
            assert how.column_blocks * how.classes >= classes + how.wide - 1 and how.classes & (how.classes - 1) == 0
            assert how.wide == 1 or how.fold  # lanes of tiles that are not folded are one class each


def test_the_same_bits_in_twenty_runs(normal, device: str, shared: str) -> None:
    teacher = normal(1, 9, 40, size=4.0, dtype=torch.float32).to(device)
    runs = [class_statistics(teacher, threshold=0.5) for _ in range(20)]
    assert len({b"".join(t.cpu().numpy().tobytes() for t in found) for found in runs}) == 1


@pytest.mark.parametrize("threshold", [None, 0.5, "[]", "[C]", "[N, 1]"])
def test_traced(normal, device: str, threshold) -> None:
    teacher = normal(1, 30, 12, size=4.0, dtype=torch.float32).to(device)
    if isinstance(threshold, str):
        threshold = {"[]": torch.tensor(0.5), "[C]": torch.linspace(0, 1, 12), "[N, 1]": torch.linspace(0, 1, 30)[:, None]}[threshold].to(
            device
        )
    tensor = threshold if isinstance(threshold, torch.Tensor) else None
    torch.library.opcheck(triton_class_statistics.statistics_op, (teacher, tensor, 0.5))
    torch.compiler.reset()
    got = torch.compile(class_statistics, fullgraph=True, backend="aot_eager")(teacher.requires_grad_(), threshold=threshold)
    for ours, theirs in zip(got, class_statistics(teacher, threshold=threshold), strict=True):
        assert torch.equal(ours, theirs) and not ours.requires_grad


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        (torch.zeros(0, 3), {}),
        (torch.zeros(3), {}),
        (torch.zeros(3, 1), {}),
        (torch.zeros(2, 3, dtype=torch.int64), {}),
        (None, {}),
        (torch.zeros(2, 3), {"threshold": torch.zeros(2)}),
        (torch.zeros(2, 3), {"threshold": torch.zeros(3, requires_grad=True)}),
        (torch.zeros(2, 3), {"threshold": torch.zeros(3, device="meta")}),
        (torch.zeros(2, 3), {"threshold": NAN}),
        (torch.zeros(2, 3), {"threshold": True}),
    ],
)
def test_refused_as_by_the_reference(teacher, options: dict) -> None:
    with pytest.raises(ValueError) as wanted:
        reference.class_statistics(teacher, **options)
    with pytest.raises(ValueError) as got:
        class_statistics(teacher, **options)
    assert str(got.value) == str(wanted.value)
