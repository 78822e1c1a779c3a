"""The CPU's closed form against the reference and plain numbers, over options, layouts, broken values and sizes of chunk."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastssl.kernels import PseudoLabel, _closed_form, _closed_form_rows, reference

NAN, INF = math.nan, math.inf
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BROKEN = st.lists(st.tuples(st.sampled_from(["student", "teacher", "judge"]), st.sampled_from([NAN, INF, -INF])), max_size=4)


@pytest.fixture(params=["whole", "in chunks"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small inputs on the way of small ones, and on the way of large ones in chunks of a few rows."""
    if request.param == "in chunks":
        monkeypatch.setattr(_closed_form_rows, "SMALL", 0)
        monkeypatch.setattr(_closed_form_rows, "CHUNK", 80)
    return request.param


@st.composite
def pseudo_label_cases(draw) -> dict:
    soft = draw(st.booleans())
    ready = not soft and draw(st.booleans())
    return {
        "seed": draw(st.integers(0, 2**20)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "views": draw(st.sampled_from([None, 1, 2, 3])),
        "rows": draw(st.integers(0, 9)),
        "classes": draw(st.sampled_from([2, 3, 10, 31, 32, 40, 67])),
        "spread": draw(st.sampled_from([0.5, 3.0, 40.0, 200.0])),
        "threshold": draw(st.sampled_from(["number", "[]", "[C]", "[N, 1]"])),
        "weighting": draw(st.sampled_from(["step", "step", "smooth", "gaussian", "confidence", "none"])),
        "judge": draw(st.booleans()),
        "temperature": draw(st.sampled_from([0.4, 1.0, 2.0])) if soft else None,
        "align": None if ready else draw(st.sampled_from([None, "both", "weight"])),
        "margin": not soft and draw(st.booleans()),
        "adjust": draw(st.booleans()),
        "smoothing": 0.0 if soft else draw(st.sampled_from([0.0, 0.0, 0.3])),
        "sample_weight": draw(st.booleans()),
        "ready": ready,
        "plain": draw(st.booleans()),  # FixMatch's own call: nothing but a threshold
        "broken": draw(BROKEN),
        "scale": draw(st.sampled_from(["number", "[]", "[N]"])),
        "strided": draw(st.booleans()),
    }


class Maker:
    """Tensors of a case's seed, dtype and layout."""

    def __init__(self, case: dict):
        self.g = torch.Generator().manual_seed(case["seed"])
        self.case = case

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.g, dtype=torch.float64).to(self.case["dtype"])

    def logits(self, whose: str, *shape: int) -> torch.Tensor:
        x = (torch.randn(shape, generator=self.g, dtype=torch.float64) * self.case["spread"]).to(self.case["dtype"])
        for name, value in self.case["broken"]:
            if name == whose and x.numel():
                x.view(-1)[torch.randint(x.numel(), (1,), generator=self.g)] = value
        if self.case["strided"]:
            x = torch.stack((x, torch.full_like(x, NAN)), dim=-1).flatten(-2)[..., ::2]
        return x


def build(case: dict) -> tuple[torch.Tensor, torch.Tensor | PseudoLabel, dict]:
    make, rows, classes = Maker(case), case["rows"], case["classes"]
    student = make.logits("student", *([] if case["views"] is None else [case["views"]]), rows, classes)
    teacher = make.logits("teacher", rows, classes)
    if case["plain"]:
        return student, teacher, {"threshold": 0.6}
    options = {name: case[name] for name in ("weighting", "smoothing", "temperature")}
    threshold = make.uniform(*{"number": (), "[]": (), "[C]": (classes,), "[N, 1]": (rows, 1)}[case["threshold"]]) * 0.8
    options["threshold"] = float(threshold) if case["threshold"] == "number" else threshold
    if case["judge"]:
        options["judge"] = make.logits("judge", rows, classes)
    if case["weighting"] == "gaussian":
        options["variance"] = make.uniform() + 0.05
    if case["align"]:
        options |= {"align": make.uniform(classes) + 0.2, "align_for": case["align"]}
    options |= {name: make.uniform(classes) * 3 for name in ("margin", "adjust") if case[name]}
    if case["sample_weight"]:
        options["sample_weight"] = make.uniform(rows) * (make.uniform(rows) > 0.3)
    if case["ready"]:
        teacher = reference.pseudo_label_loss(torch.zeros_like(teacher), teacher, weighting="none")
    return student, teacher, options


def near(got: torch.Tensor, wanted: torch.Tensor, scale: float = 1.0) -> None:
    """Equal up to a few roundings of the dtype in which it was computed, and of its own; NaN where NaN is wanted."""
    computed = 1e-11 if wanted.dtype == torch.float64 else 2e-5
    own = torch.finfo(wanted.dtype).eps
    torch.testing.assert_close(got, wanted, rtol=max(computed, 2 * own), atol=scale * computed, equal_nan=True)


def by_autograd(function, leaf: torch.Tensor, *args, upstream: torch.Tensor, **options):
    leaf = leaf.detach().requires_grad_()
    found = function(leaf, *args, **options)
    loss = found.loss if isinstance(found, PseudoLabel) else found
    return found, torch.autograd.grad(loss, leaf, upstream.to(loss.dtype))[0]


@SETTINGS
@given(case=pseudo_label_cases())
def test_pseudo_label_loss_is_the_reference(size: str, case: dict) -> None:
    student, teacher, options = build(case)
    before = [t.clone() for t in (student, *(v for v in options.values() if isinstance(v, torch.Tensor)))]
    upstream = torch.rand(student.shape[:-1].numel(), generator=Maker(case).g, dtype=torch.float64) * 4 - 1
    scale = {"number": 0.3, "[]": torch.tensor(1.7), "[N]": torch.linspace(-1, 2, case["rows"])}[case["scale"]]
    for name in ("pseudo_label_loss", "pseudo_label_loss_and_grad"):
        ours, theirs = getattr(_closed_form, name), getattr(reference, name)
        if name == "pseudo_label_loss":
            got, gradient = by_autograd(ours, student, teacher, upstream=upstream, **options)
            wanted, its = by_autograd(theirs, student, teacher, upstream=upstream, **options)
            assert got.loss.requires_grad and not any(t.requires_grad for t in got[1:])
        else:
            got, gradient = ours(student, teacher, scale=scale, **options)
            wanted, its = theirs(student, teacher, scale=scale, **options)
        assert torch.equal(got.label, wanted.label)
        for ours, theirs in zip((got.loss, got.confidence, got.weight), (wanted.loss, wanted.confidence, wanted.weight), strict=True):
            near(ours, theirs)
            assert ours.dtype == theirs.dtype
        near(gradient, its, 4.0)
        dead = (wanted.weight == 0).reshape(student.shape[:-1])
        assert (got.loss.reshape(dead.shape)[dead] == 0).all() and (gradient[dead] == 0).all()
    assert gradient.is_contiguous()
    with torch.no_grad():
        free = _closed_form.pseudo_label_loss(student, teacher, **options)
    assert torch.equal(free.loss.nan_to_num(), got.loss.nan_to_num()) and not free.loss.requires_grad
    after = (student, *(v for v in options.values() if isinstance(v, torch.Tensor)))
    torch.testing.assert_close(after, tuple(before), rtol=0, atol=0, equal_nan=True)


@st.composite
def cross_entropy_cases(draw) -> dict:
    soft = draw(st.booleans())
    return {
        "seed": draw(st.integers(0, 2**20)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "rows": draw(st.integers(0, 9)),
        "classes": draw(st.sampled_from([2, 3, 10, 40])),
        "spread": draw(st.sampled_from([0.5, 40.0, 200.0])),
        "soft": soft,
        "index": draw(st.sampled_from([torch.int64, torch.int32, torch.uint8])),
        "margin": not soft and draw(st.booleans()),
        "smoothing": 0.0 if soft else draw(st.sampled_from([0.0, 0.0, 0.4])),
        "class_weight": draw(st.booleans()),
        "adjust": draw(st.booleans()),
        "sample_weight": draw(st.booleans()),
        "broken": draw(BROKEN),
        "strided": draw(st.booleans()),
    }


@SETTINGS
@given(case=cross_entropy_cases())
def test_cross_entropy_is_the_reference(size: str, case: dict) -> None:
    make, rows, classes = Maker(case), case["rows"], case["classes"]
    logits = make.logits("student", rows, classes)
    options = {"smoothing": case["smoothing"]}
    options |= {name: make.uniform(classes) * 3 for name in ("margin", "adjust") if case[name]}
    if case["class_weight"]:
        options["class_weight"] = make.uniform(classes) * (make.uniform(classes) > 0.3)
    if case["sample_weight"]:
        options["sample_weight"] = make.uniform(rows) * (make.uniform(rows) > 0.3)
    if case["soft"]:
        target = make.uniform(rows, classes) * (make.uniform(rows, classes) > 0.3)
    else:
        target = torch.randint(classes, (rows,), generator=make.g)
        if case["sample_weight"]:
            target[options["sample_weight"] == 0] = 200
        target = target.to(case["index"])
    upstream = torch.rand(rows, generator=make.g, dtype=torch.float64) * 4 - 1
    got, gradient = by_autograd(_closed_form.cross_entropy, logits, target, upstream=upstream, **options)
    wanted, its = by_autograd(reference.cross_entropy, logits, target, upstream=upstream, **options)
    assert got.dtype == wanted.dtype and gradient.dtype == logits.dtype
    near(got, wanted, 10.0)
    near(gradient, its, 20.0)
    assert torch.equal(_closed_form.cross_entropy(logits, target, **options).nan_to_num(), got.detach().nan_to_num())


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 7),
    classes=st.sampled_from([2, 10, 33]),
    smoothing=st.sampled_from([0.0, 0.2]),
    weighting=st.sampled_from(["step", "smooth", "confidence", "none"]),
    margin=st.booleans(),
    align=st.sampled_from([None, "both", "weight"]),
)
def test_pseudo_label_loss_is_the_formula(oracle, size: str, seed, rows, classes, smoothing, weighting, margin, align) -> None:
    """Against plain Python numbers that share nothing with fastssl."""
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(2, rows, classes, generator=g, dtype=torch.float64) * 4
    teacher = torch.randn(rows, classes, generator=g, dtype=torch.float64) * 4
    options = {"threshold": 0.7, "weighting": weighting, "smoothing": smoothing}
    if margin:
        options["margin"] = torch.rand(classes, generator=g, dtype=torch.float64) * 4
    if align:
        options |= {"align": torch.rand(classes, generator=g, dtype=torch.float64) + 0.2, "align_for": align}
    plain = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    wanted = oracle.pseudo_label_loss(student.tolist(), teacher.tolist(), **plain)
    got, gradient = _closed_form.pseudo_label_loss_and_grad(student, teacher, scale=1.0, **options)
    for name in ("loss", "label", "confidence", "weight"):
        torch.testing.assert_close(getattr(got, name).double(), torch.tensor(wanted[name], dtype=torch.float64), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, torch.tensor(wanted["gradient"], dtype=torch.float64), rtol=1e-10, atol=1e-10)


@SETTINGS
@given(
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 9),
    classes=st.sampled_from([2, 10, 31, 32, 67]),
    spread=st.sampled_from([0.5, 4.0, 200.0]),
    threshold=st.sampled_from([None, "number", "[]", "[C]", "[N, 1]"]),
    broken=st.lists(st.tuples(st.just("teacher"), st.sampled_from([NAN, INF, -INF])), max_size=2),
    strided=st.booleans(),
)
def test_class_statistics_is_the_reference(size: str, seed, dtype, rows, classes, spread, threshold, broken, strided) -> None:
    make = Maker({"seed": seed, "dtype": dtype, "spread": spread, "broken": broken, "strided": strided})
    teacher = make.logits("teacher", rows, classes)
    if threshold:
        numbers = make.uniform(*{"number": (), "[]": (), "[C]": (classes,), "[N, 1]": (rows, 1)}[threshold])
        threshold = float(numbers) if threshold == "number" else numbers
    got = _closed_form.class_statistics(teacher, threshold=threshold)
    wanted = reference.class_statistics(teacher, threshold=threshold)
    assert torch.equal(got.histogram, wanted.histogram)
    for ours, theirs in zip((got[0], *got[2:]), (wanted[0], *wanted[2:]), strict=True):
        assert ours.dtype == theirs.dtype
        near(ours, theirs)
