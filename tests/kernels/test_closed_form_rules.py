"""What the CPU's closed form promises beside its values: labels, confidence, thresholds, ranges, derivatives, memory, errors."""

from __future__ import annotations

import math

import pytest
import torch

from fastssl.kernels import PseudoLabel, _closed_form, _closed_form_rows, reference

NAN, INF = math.nan, math.inf


@pytest.fixture(params=["whole", "in chunks"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small inputs on the way of small ones, and on the way of large ones in chunks of a few rows."""
    if request.param == "in chunks":
        monkeypatch.setattr(_closed_form_rows, "SMALL", 0)
        monkeypatch.setattr(_closed_form_rows, "CHUNK", 80)
    return request.param


def by_autograd(function, leaf: torch.Tensor, *args, upstream: torch.Tensor, **options):
    leaf = leaf.detach().requires_grad_()
    found = function(leaf, *args, **options)
    loss = found.loss if isinstance(found, PseudoLabel) else found
    return found, torch.autograd.grad(loss, leaf, upstream.to(loss.dtype))[0]


@pytest.mark.parametrize("classes", [2, 10, 31, 32, 33, 100, 1000])
def test_the_label_is_the_first_maximum(classes: int, size: str, normal) -> None:
    """Ties, differences of one bit and of the smallest float, -inf, NaN and inf: always the index that argmax names."""
    rows = normal(classes, 40, classes, size=3, dtype=torch.float32)
    rows[:20] = rows[:20].round()
    rows[20] = 0.0
    rows[21, -1] = -0.0
    rows[22] = 0.0
    rows[22, -1] = 2.0**-149
    rows[23, :-1] = torch.nextafter(rows[23, -1], torch.tensor(-INF))
    rows[24, 1:] = -INF
    rows[25], rows[26, -1], rows[27, 0] = -INF, INF, NAN
    rows[28, -1], rows[28, 0] = NAN, INF
    label, confidence = _closed_form_rows.predictions(rows, torch.float32, None)
    assert torch.equal(label, rows.argmax(dim=1))
    assert confidence.isnan().nonzero().flatten().tolist() == [25, 26, 27, 28]


@pytest.mark.parametrize("classes", [2, 10, 32, 1000, 21841])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 8.0, 40.0, 2000.0])
def test_confidence_is_exact_to_a_millionth(classes: int, spread: float, normal) -> None:
    logits = normal(0, 64, classes, size=spread, dtype=torch.float32)
    _, confidence = _closed_form_rows.predictions(logits, torch.float32, None)
    torch.testing.assert_close(confidence.double(), logits.double().softmax(1).amax(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [3, 40])
def test_a_row_at_its_threshold_is_kept(classes: int, normal) -> None:
    """Thresholds that are confidences, their float32 neighbours, numbers between floats, and numbers out of (0, 1]."""
    teacher, student = normal(0, 50, classes, size=3, dtype=torch.float32), normal(1, 50, classes, dtype=torch.float32)
    teacher[0, 0], teacher[1] = NAN, torch.eye(classes)[0] * 1000
    confidence = reference.pseudo_label_loss(student, teacher).confidence
    numbers = [x for c in confidence[2:6].tolist() for x in (c, math.nextafter(c, 0), math.nextafter(c, 2), c - 1e-9, c + 1e-9, c - 6e-8)]
    kept = set()
    for threshold in (*numbers, 1.0, 1.0 + 1e-9, 1.1, 1e300, 0.0, -0.0, 1e-300, -3.0, INF, -INF):
        wanted = reference.pseudo_label_loss(student, teacher, threshold=threshold).weight
        got = _closed_form.pseudo_label_loss(student, teacher, threshold=threshold).weight
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
        kept.add(got.nansum().item())
    assert {0.0, 1.0, 49.0} < kept


@pytest.mark.parametrize("upstream", [NAN, INF, -INF])
@pytest.mark.parametrize("options", [{}, {"smoothing": 0.1}, {"temperature": 0.5}, {"margin": torch.tensor([1.0, 2.0, 3.0])}])
def test_a_broken_upstream_gradient_spares_rows_of_weight_0(size: str, upstream: float, options: dict) -> None:
    teacher, student = torch.tensor([[0.0, 0.0, 1.0], [9.0, 0.0, 0.0]]), torch.ones(2, 3)
    numbers = torch.tensor([upstream, 1.0])
    _, gradient = by_autograd(_closed_form.pseudo_label_loss, student, teacher, upstream=numbers, **options)
    assert torch.equal(gradient[0], torch.zeros(3)) and gradient[1].isfinite().all() and gradient[1].abs().sum() > 0
    _, gradient = _closed_form.pseudo_label_loss_and_grad(student, teacher, scale=numbers, **options)
    assert torch.equal(gradient[0], torch.zeros(3)) and gradient[1].isfinite().all()


@pytest.mark.parametrize("far", [60.0, 69.0, 70.0, 87.0, 104.0, 1e4, 3e38])
@pytest.mark.parametrize("classes", [2, 40])
def test_rows_out_of_the_range_of_exp(size: str, far: float, classes: int) -> None:
    """The label's logit lies far below the maximum, in one row among others, kept or not."""
    student = torch.zeros(9, classes)
    student[4, 1] = far
    teacher = torch.eye(classes)[0].repeat(9, 1) * 50
    for sample_weight in (torch.ones(9), torch.arange(9) % 2.0, (torch.arange(9) == 4).float()):
        wanted, its = reference.pseudo_label_loss_and_grad(student, teacher, scale=1.0, sample_weight=sample_weight)
        got, gradient = _closed_form.pseudo_label_loss_and_grad(student, teacher, scale=1.0, sample_weight=sample_weight)
        torch.testing.assert_close(got.loss, wanted.loss)
        torch.testing.assert_close(gradient, its)


@pytest.mark.parametrize(
    "options",
    [{}, {"smoothing": 0.3}, {"temperature": 0.5, "align": torch.tensor([1.0, 2.0, 0.5])}, {"margin": torch.tensor([0.0, 1.0, 2.0])}],
)
def test_derivatives_by_finite_differences(size: str, options: dict, normal) -> None:
    """The first, and the second through `create_graph`."""
    student, teacher = normal(0, 2, 4, 3).requires_grad_(), normal(1, 4, 3, size=2)
    sample_weight = torch.tensor([1.0, 0.0, 2.0, 0.5])

    def loss(z: torch.Tensor) -> torch.Tensor:
        return _closed_form.pseudo_label_loss(
            z, teacher, weighting="confidence", threshold=0.4, sample_weight=sample_weight, **options
        ).loss

    torch.autograd.gradcheck(loss, (student,))
    torch.autograd.gradgradcheck(loss, (student,))
    target = torch.tensor([0, 2, 1, 1])
    torch.autograd.gradgradcheck(lambda z: _closed_form.cross_entropy(z, target), (normal(2, 4, 3).requires_grad_(),))


def test_the_same_bits_every_time(size: str, normal) -> None:
    student, teacher = normal(0, 37, 40, dtype=torch.float32), normal(1, 37, 40, size=6, dtype=torch.float32)
    upstream = torch.linspace(-1, 1, 37)
    first = by_autograd(_closed_form.pseudo_label_loss, student, teacher, upstream=upstream)
    at_once = _closed_form.pseudo_label_loss_and_grad(student, teacher, scale=0.1)[1].clone()
    assert 5 < first[0].weight.sum() < 32
    loss, slope = first[0].loss.detach().clone(), first[1].clone()  # what memory is used again may be overwritten
    for _ in range(20):
        again = by_autograd(_closed_form.pseudo_label_loss, student, teacher, upstream=upstream)
        assert torch.equal(again[0].loss, loss) and torch.equal(again[1], slope)
        assert torch.equal(_closed_form.pseudo_label_loss_and_grad(student, teacher, scale=0.1)[1], at_once)


def test_backward_twice_over_a_kept_graph(size: str, normal) -> None:
    student, teacher = normal(0, 6, 5).requires_grad_(), normal(1, 6, 5, size=3)
    loss = _closed_form.pseudo_label_loss(student, teacher, threshold=0.5).loss
    first, second = (torch.autograd.grad(loss, student, torch.arange(6.0).double(), retain_graph=True)[0] for _ in range(2))
    assert first.abs().sum() > 0 and torch.equal(first, second)


@pytest.mark.parametrize("which", ["student", "weight"])
def test_what_the_backward_pass_needs_may_not_be_changed(size: str, which: str, normal) -> None:
    student = normal(0, 6, 5).requires_grad_()
    logits = student * 1
    found = _closed_form.pseudo_label_loss(logits, normal(1, 6, 5), weighting="none")
    (logits.detach() if which == "student" else found.weight).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.loss.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
def test_memory_is_one_gradient_and_chunks(dtype: torch.dtype, threshold: float, normal, monkeypatch) -> None:
    """Of all that is made, the gradient alone is as large as the logits; without a gradient nothing is."""
    monkeypatch.setattr(_closed_form_rows, "CHUNK", 2**12)
    monkeypatch.setattr(_closed_form_rows, "SMALL", 2**12)
    student, teacher = normal(0, 2, 128, 512, dtype=dtype), normal(1, 128, 512, size=3, dtype=dtype)

    class Large(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() > 4 * 2**14:
                storages.add(out.untyped_storage()._cdata)
            return out

    given_ = {student.untyped_storage()._cdata, teacher.untyped_storage()._cdata}
    storages: set[int] = set()
    with Large():
        _, gradient = _closed_form.pseudo_label_loss_and_grad(student, teacher, scale=1.0, threshold=threshold)
    assert storages - given_ == {gradient.untyped_storage()._cdata}
    storages = set()
    with Large():
        _closed_form.pseudo_label_loss(student, teacher, threshold=threshold)
    assert storages <= given_
    storages = set()
    student.requires_grad_()
    with Large():
        _closed_form.pseudo_label_loss(student, teacher, threshold=threshold).loss.sum().backward()
    assert storages - {*given_, student.untyped_storage()._cdata} == {student.grad.untyped_storage()._cdata}


X, LABEL = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
WRONG = {
    "student": ((torch.zeros(4), X), {}),
    "one class": ((torch.zeros(4, 1), torch.zeros(4, 1)), {}),
    "integers": ((LABEL[:, None], X), {}),
    "teacher shape": ((X, X[:3]), {}),
    "teacher dtype": ((X, X.long()), {}),
    "teacher grad": ((X, torch.zeros(4, 3, requires_grad=True)), {}),
    "teacher device": ((X, X.to("meta")), {}),
    "judge": ((X, X), {"judge": X[:3]}),
    "weighting": ((X, X), {"weighting": "soft"}),
    "align_for": ((X, X), {"align_for": "label"}),
    "threshold": ((X, X), {"threshold": NAN}),
    "threshold True": ((X, X), {"threshold": True}),
    "power": ((X, X), {"power": 0.0}),
    "power True": ((X, X), {"power": True}),
    "variance": ((X, X), {"variance": -1.0}),
    "smoothing": ((X, X), {"smoothing": 1.0}),
    "smoothing False": ((X, X), {"smoothing": False}),
    "temperature": ((X, X), {"temperature": 0.0}),
    "soft margin": ((X, X), {"temperature": 1.0, "margin": X[0]}),
    "sample_weight": ((X, X), {"sample_weight": LABEL}),
    "label": ((X, PseudoLabel(X[:, 0], LABEL + 3, X[:, 0], X[:, 0])), {}),
    "scale": ((X, X), {"scale": X}),
    "scale None": ((X, X), {"scale": None}),
    "scale nan": ((X, X), {"scale": NAN}),
}


@pytest.mark.parametrize(("args", "options"), WRONG.values(), ids=WRONG)
def test_errors_are_the_reference_s(args: tuple, options: dict) -> None:
    for name in ("pseudo_label_loss_and_grad", "pseudo_label_loss"):
        options = {"scale": 1.0, **options} if name.endswith("grad") else {k: v for k, v in options.items() if k != "scale"}
        if not options and name == "pseudo_label_loss" and args[0] is X and args[1] is X:
            continue
        with pytest.raises(ValueError) as wanted:
            getattr(reference, name)(*args, **options)
        with pytest.raises(ValueError) as got:
            getattr(_closed_form, name)(*args, **options)
        assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("target", "options"), [(LABEL + 3, {}), (LABEL[:3], {}), (X, {"smoothing": 0.1}), (LABEL, {"class_weight": LABEL})]
)
def test_errors_of_cross_entropy_are_the_reference_s(target: torch.Tensor, options: dict) -> None:
    with pytest.raises(ValueError) as wanted:
        reference.cross_entropy(X, target, **options)
    with pytest.raises(ValueError) as got:
        _closed_form.cross_entropy(X, target, **options)
    assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize("classes", [10, 40])
def test_inputs_made_in_inference_mode_serve(size: str, classes: int, normal) -> None:
    """Teachers and labels often are; torch saves none of them for a backward pass."""
    with torch.inference_mode():
        teacher, sample_weight = normal(0, 6, classes, size=3), torch.arange(6.0) % 3
        label, adjust = teacher.argmax(dim=1), normal(1, classes)
    student = normal(2, 6, classes)
    for options in ({}, {"temperature": 0.5, "adjust": adjust}, {"sample_weight": sample_weight}):
        _, gradient = by_autograd(_closed_form.pseudo_label_loss, student, teacher, upstream=torch.ones(6), weighting="none", **options)
        _, its = by_autograd(reference.pseudo_label_loss, student, teacher.clone(), upstream=torch.ones(6), weighting="none", **options)
        torch.testing.assert_close(gradient, its)
    for options in ({}, {"margin": adjust.abs()}, {"sample_weight": sample_weight}):
        _, gradient = by_autograd(_closed_form.cross_entropy, student, label, upstream=torch.ones(6), **options)
        _, its = by_autograd(reference.cross_entropy, student, label, upstream=torch.ones(6), **options)
        torch.testing.assert_close(gradient, its)


@pytest.mark.parametrize("which", ["pseudo_label_loss", "cross_entropy"])
def test_no_gradient_is_computed_where_none_is_asked_for(size: str, which: str, normal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args) -> None:
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(_closed_form_rows, "hard_gradient_", refuse)
    student, other = normal(0, 6, 5), normal(1, 6, 5, size=30) if which == "pseudo_label_loss" else torch.arange(6) % 5
    call = getattr(_closed_form, which)
    options = {"sample_weight": torch.ones(6), "margin": torch.ones(5)}
    call(student, other, **options)
    with torch.no_grad():
        call(student.clone().requires_grad_(), other, **options)
    with pytest.raises(AssertionError, match="a gradient was computed"):
        call(student.clone().requires_grad_(), other, **options)


def test_class_statistics_of_no_row_is_the_reference_s_error() -> None:
    with pytest.raises(ValueError, match="teacher needs at least one row"):
        _closed_form.class_statistics(torch.zeros(0, 3))
