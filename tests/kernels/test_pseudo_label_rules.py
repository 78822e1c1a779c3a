"""The rules that a pseudo-label loss keeps for rows that are dead, broken or extreme, and for inputs of any layout."""

from __future__ import annotations

import math

import pytest
import torch

from fastssl.kernels import PseudoLabel, pseudo_label_loss, pseudo_label_loss_and_grad

NAN, INF = math.nan, math.inf
VARIANTS = {
    "plain": {},
    "margin": {"margin": torch.tensor([0.0, 1.0, 2.0]), "adjust": torch.tensor([0.5, -1.0, 0.0])},
    "smoothing": {"smoothing": 0.5},
    "soft": {"temperature": 0.5},
}


def both(student: torch.Tensor, teacher, **options) -> list[tuple[PseudoLabel, torch.Tensor]]:
    """(result, gradient of the loss's sum) by autograd and in closed form."""
    leaf = student.clone().requires_grad_()
    by_autograd = pseudo_label_loss(leaf, teacher, **options)
    (gradient,) = torch.autograd.grad(by_autograd.loss.sum(), leaf)
    return [(by_autograd, gradient), pseudo_label_loss_and_grad(student, teacher, scale=1.0, **options)]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("row", [[NAN, 0.0, 0.0], [INF, 0.0, 0.0], [-INF] * 3, [INF, -INF, NAN]])
def test_a_row_of_weight_0_is_exactly_0(row: list[float], options: dict) -> None:
    """Below its threshold, or by its sample weight: 0 loss and 0 gradient, and its neighbours do not notice."""
    teacher = torch.tensor([[0.1, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    student = torch.tensor([row, row, [1.0, 2.0, 3.0]])
    sample_weight = torch.tensor([1.0, 0.0, 1.0])
    alone = both(student[2:], teacher[2:], threshold=0.9, **options)
    for (got, gradient), (one, its) in zip(
        both(student, teacher, threshold=0.9, sample_weight=sample_weight, **options), alone, strict=True
    ):
        assert got.weight.tolist() == [0.0, 0.0, 1.0]
        assert torch.equal(got.loss[:2], torch.zeros(2)) and torch.equal(gradient[:2], torch.zeros(2, 3))
        assert torch.equal(got.loss[2:], one.loss) and torch.equal(gradient[2:], its)


@pytest.mark.parametrize("upstream", [NAN, INF])
def test_a_row_of_weight_0_stays_0_under_a_broken_upstream_gradient(upstream: float) -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    loss = pseudo_label_loss(student, torch.zeros(1, 2)).loss
    loss.backward(torch.tensor([upstream]))
    assert torch.equal(student.grad, torch.zeros(1, 2))


@pytest.mark.parametrize("weighting", ["step", "smooth", "gaussian", "confidence", "none"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("broken", [[NAN, 0.0, 0.0], [0.0, 0.0, NAN], [INF, 0.0, 0.0], [INF, -INF, 0.0], [-INF] * 3])
@pytest.mark.parametrize("whose", ["teacher", "judge"])
def test_a_broken_teacher_or_judge_shows(whose: str, broken: list[float], options: dict, weighting: str) -> None:
    """NaN loss and gradient, never a silent 0; a sample weight of 0 wins over it; the row beside stays whole."""
    whole = torch.tensor([[0.0, 9.0, 0.0]] * 3)
    rows = torch.tensor([broken, broken, [0.0, 9.0, 0.0]])
    teacher, judge = (rows, whole) if whose == "teacher" else (whole, rows)
    sample_weight = torch.tensor([1.0, 0.0, 1.0])
    student = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    settings = {"threshold": 0.5, "weighting": weighting, "variance": 0.1, "sample_weight": sample_weight, **options}
    for got, gradient in both(student, teacher, judge=judge, **settings):
        assert got.loss.isnan().tolist() == got.weight.isnan().tolist() == [True, False, False]
        assert gradient[0].isnan().all()
        assert got.loss[1] == 0 and torch.equal(gradient[1], torch.zeros(3))
        assert got.loss[2] > 0 and gradient[2].isfinite().all()
        assert got.confidence.isnan().tolist() == ([True, True, False] if whose == "teacher" else [False] * 3)


@pytest.mark.parametrize("align_for", ["both", "weight"])
def test_a_broken_alignment_shows(align_for: str) -> None:
    for got, _ in both(torch.zeros(1, 2), torch.tensor([[9.0, 0.0]]), align=torch.tensor([1.0, NAN]), align_for=align_for):
        assert got.loss.isnan().all()


@pytest.mark.parametrize("weighting", ["step", "smooth", "gaussian", "confidence"])
@pytest.mark.parametrize("threshold", [torch.tensor(NAN), torch.tensor([NAN, 0.5]), torch.tensor([[NAN]])])
def test_a_broken_threshold_shows(weighting: str, threshold: torch.Tensor) -> None:
    for got, _ in both(torch.zeros(1, 2), torch.tensor([[9.0, 0.0]]), threshold=threshold, weighting=weighting, variance=1.0):
        assert got.loss.isnan().all()


def test_a_broken_variance_shows_even_above_the_threshold() -> None:
    variance = torch.tensor(NAN)
    for got, _ in both(torch.zeros(1, 2), torch.tensor([[9.0, 0.0]]), threshold=0.5, weighting="gaussian", variance=variance):
        assert got.loss.isnan().all()


def test_a_broken_student_shows_where_it_counts() -> None:
    for got, gradient in both(torch.tensor([[NAN, 0.0], [INF, 0.0]]), torch.tensor([[9.0, 0.0]] * 2)):
        assert got.loss.isnan().all() and gradient.isnan().any(dim=1).all()


@pytest.mark.parametrize("options", [{}, {"margin": torch.tensor([1.0, 2.0, 3.0])}, {"temperature": 0.5}])
def test_minus_infinity_is_an_impossible_class(options: dict) -> None:
    """In teacher and student: same loss as without the class, finite gradient that is 0 there."""
    student, teacher = torch.tensor([[1.0, 2.0, -INF]]), torch.tensor([[3.0, 0.0, -INF]])
    narrow = {name: value[:2] if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    without = both(student[:, :2], teacher[:, :2], threshold=0.5, **narrow)
    for (got, gradient), (wanted, its) in zip(both(student, teacher, threshold=0.5, **options), without, strict=True):
        torch.testing.assert_close(got.loss, wanted.loss)
        torch.testing.assert_close(got.confidence, wanted.confidence)
        torch.testing.assert_close(gradient[:, :2], its)
        assert gradient[0, 2] == 0


def test_minus_infinity_under_smoothing_or_at_the_label_costs_infinity() -> None:
    teacher = torch.tensor([[9.0, 0.0, 0.0]])
    for student, smoothing in ((torch.tensor([[0.0, 0.0, -INF]]), 0.1), (torch.tensor([[-INF, 0.0, 0.0]]), 0.0)):
        for got, gradient in both(student, teacher, smoothing=smoothing):
            assert got.loss.item() == INF and gradient.isfinite().all()
    for got, _ in both(torch.tensor([[-INF, 0.0]]), teacher[:, :2], smoothing=0.5):
        assert got.loss.item() == INF


def test_smoothing_where_the_label_alone_is_possible() -> None:
    """All mass of the student on the label: only the smoothed rest costs, and that is infinite; without smoothing it costs nothing."""
    student, teacher = torch.tensor([[0.0, -INF]]), torch.tensor([[9.0, 0.0]])
    assert both(student, teacher)[0][0].loss.item() == 0
    assert both(student, teacher, smoothing=0.1)[0][0].loss.item() == INF


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_extreme_logits(size: float) -> None:
    student, teacher = torch.tensor([[size, 0.0, -size]]), torch.tensor([[-size, size, 0.0]])
    for got, gradient in both(student, teacher):
        assert got.label.item() == 1 and got.confidence.item() == 1
        torch.testing.assert_close(got.loss, torch.tensor([size]))
        assert gradient.tolist() == [[1.0, -1.0, 0.0]]


def test_confidence_does_not_lose_digits_in_large_logits() -> None:
    """exp(max - logsumexp) would be off by 1e-4 here, enough to move rows across a threshold."""
    teacher = torch.tensor([[2000.0, 1997.0]])
    got = pseudo_label_loss(torch.zeros(1, 2), teacher)
    assert got.confidence.item() == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-7)


def test_labels_follow_the_logits_where_probabilities_tie() -> None:
    teacher = torch.tensor([[0.0, 1e-9], [1e-9, 0.0], [0.0, 0.0]])
    assert pseudo_label_loss(torch.zeros(3, 2), teacher).label.tolist() == [1, 0, 0]


def test_a_pseudo_label_is_a_teacher_that_is_not_read_again(normal) -> None:
    """FineSSL's second call: the first call's labels and confidence under another threshold, weighting and student."""
    teacher, student = normal(0, 9, 4, size=2), normal(1, 2, 9, 4)
    first = pseudo_label_loss(student, teacher, threshold=0.0, weighting="confidence", judge=normal(2, 9, 4))
    second = pseudo_label_loss(student, first, threshold=0.5, smoothing=0.5)
    wanted = pseudo_label_loss(student, teacher, threshold=0.5, smoothing=0.5)
    assert 0 < wanted.weight.sum() < 18
    for got, want in zip(second, wanted, strict=True):
        assert torch.equal(got, want)
    judge = normal(3, 9, 4)
    judged = pseudo_label_loss(student, first, threshold=0.3, judge=judge, weighting="confidence")
    for got, want in zip(judged, pseudo_label_loss(student, teacher, threshold=0.3, judge=judge, weighting="confidence"), strict=True):
        assert torch.equal(got, want)


def test_a_broken_pseudo_label_shows_behind_a_whole_judge() -> None:
    first = pseudo_label_loss(torch.zeros(1, 2), torch.tensor([[NAN, 0.0]]))
    for got, _ in both(torch.zeros(1, 2), first, judge=torch.tensor([[9.0, 0.0]])):
        assert got.loss.isnan().all()


@pytest.mark.parametrize("as_first", [True, False])
def test_views_share_the_teacher_and_follow_each_other(normal, as_first: bool) -> None:
    student, teacher = normal(0, 3, 5, 4), normal(1, 5, 4)
    sample_weight = torch.arange(5.0)
    got = pseudo_label_loss(student, teacher, threshold=0.4, sample_weight=sample_weight, temperature=None if as_first else 0.5)
    for view in range(3):
        one = pseudo_label_loss(student[view], teacher, threshold=0.4, sample_weight=sample_weight, temperature=None if as_first else 0.5)
        assert torch.equal(got.loss[5 * view : 5 * view + 5], one.loss) and torch.equal(got.weight[5 * view : 5 * view + 5], one.weight)
        assert torch.equal(got.label, one.label) and torch.equal(got.confidence, one.confidence)


def test_inputs_stay_as_they_are_and_any_layout_serves(normal) -> None:
    wide, tall = normal(0, 6, 14), normal(1, 7, 6)
    student, teacher, judge = wide[:, ::2], tall.t(), normal(2, 1, 7).expand(6, 7)
    options = {"margin": normal(3, 14)[::2].abs(), "adjust": normal(4, 1).expand(7), "sample_weight": normal(5, 12)[::2].abs()}
    options |= {"threshold": torch.tensor([0.2], dtype=torch.float64).expand(7), "judge": judge}
    given = [student, teacher, *(v for v in options.values())]
    before = [t.clone() for t in given]
    straight = {name: value.contiguous() for name, value in options.items()}
    wanted = both(student.contiguous(), teacher.contiguous(), **straight)
    for (got, gradient), (want, its) in zip(both(student, teacher, **options), wanted, strict=True):
        for ours, theirs in zip((*got, gradient), (*want, its), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_loss_without_grad_is_the_same(normal) -> None:
    student, teacher = normal(0, 4, 3), normal(1, 4, 3)
    wanted = pseudo_label_loss(student.clone().requires_grad_(), teacher, threshold=0.4).loss
    assert torch.equal(pseudo_label_loss(student, teacher, threshold=0.4).loss, wanted)
    with torch.no_grad():
        assert torch.equal(pseudo_label_loss(student.clone().requires_grad_(), teacher, threshold=0.4).loss, wanted)


def test_backward_by_hand_reaches_the_parameters(normal) -> None:
    """logits.backward(gradient), as the engine does, equals backward through the loss."""
    features, teacher = normal(0, 6, 3), normal(1, 6, 4)
    weight = normal(2, 4, 3).requires_grad_()
    pseudo_label_loss(features @ weight.t(), teacher, threshold=0.4).loss.mean().backward()
    wanted, weight.grad = weight.grad, None
    logits = features @ weight.t()
    _, gradient = pseudo_label_loss_and_grad(logits, teacher, scale=1 / 6, threshold=0.4)
    logits.backward(gradient)
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(weight.grad, wanted)
