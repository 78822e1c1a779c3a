"""Numbers that the papers' formulas give by hand (methods: pseudo-label and foundation notes)."""

from __future__ import annotations

import math

import pytest
import torch

from fastssl.kernels import PseudoLabel, class_statistics, cross_entropy, pseudo_label_loss


def weight_at(confidence: float, **options) -> float:
    """The weight of a row whose confidence is exactly this."""
    zero = torch.zeros(1, 10, dtype=torch.float64)
    ready = PseudoLabel(zero[:, 0], torch.zeros(1, dtype=torch.int64), torch.tensor([confidence], dtype=torch.float64), zero[:, 0])
    return pseudo_label_loss(zero, ready, **options).weight.item()


@pytest.mark.parametrize(
    ("confidence", "power", "weight"),
    [(0.95, 1.0, 0.0), (0.975, 1.0, 0.5), (0.975, 2.0, 0.25), (0.975, 0.5, 0.7071), (1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (0.5, 1.0, 0.0)],
)
def test_smooth_fixmatch(confidence: float, power: float, weight: float) -> None:
    assert weight_at(confidence, weighting="smooth", power=power) == pytest.approx(weight, abs=1e-4)


@pytest.mark.parametrize(("confidence", "weight"), [(0.95, 1.0), (math.nextafter(0.95, 0), 0.0), (1.0, 1.0)])
def test_fixmatch_keeps_a_row_at_its_threshold(confidence: float, weight: float) -> None:
    assert weight_at(confidence) == weight


@pytest.mark.parametrize("threshold", [1.0, torch.tensor(1.0), torch.ones(10), torch.ones(1, 1)], ids=["number", "[]", "[C]", "[N, 1]"])
def test_smooth_at_threshold_1_is_the_step(threshold) -> None:
    assert weight_at(1.0, weighting="smooth", threshold=threshold) == 1
    assert weight_at(0.999, weighting="smooth", threshold=threshold) == 0
    assert weight_at(1.0, weighting="smooth", threshold=threshold + 0.5) == 0


@pytest.mark.parametrize(("confidence", "weight"), [(0.8, math.exp(-2)), (0.9, 1.0), (0.95, 1.0)])
def test_softmatch(confidence: float, weight: float) -> None:
    for variance in (0.01, torch.tensor(0.01)):
        assert weight_at(confidence, weighting="gaussian", threshold=0.9, variance=variance) == pytest.approx(weight)


def test_softmatch_with_a_variance_that_has_vanished() -> None:
    zero = torch.tensor(0.0)
    assert weight_at(0.9, weighting="gaussian", threshold=0.9, variance=zero) == 1
    assert weight_at(0.8, weighting="gaussian", threshold=0.9, variance=zero) == 0


@pytest.mark.parametrize(("confidence", "weight"), [(0.5, 0.5), (0.499, 0.0)])
def test_finessl_confidence(confidence: float, weight: float) -> None:
    assert weight_at(confidence, weighting="confidence", threshold=0.5) == weight


@pytest.mark.parametrize(("confidence", "weight"), [(0.951, 0.0), (0.9513, 1.0)])
def test_dash_is_a_threshold_on_exp_of_minus_rho(confidence: float, weight: float) -> None:
    assert weight_at(confidence, threshold=math.exp(-0.05)) == weight


def test_finessl_margins() -> None:
    """beta = (1, .5, 0), alpha_0 = 8 give m = (0, 8/3, 8); a margin equals taking m_y off the label's logit."""
    beta = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    margin = 8 * (beta.max() - beta.min()) * (1 - beta) / (1 + beta)
    assert margin.tolist() == pytest.approx([0, 2.667, 8], abs=1e-3)
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 3, dtype=torch.float64)
    got = cross_entropy(logits, torch.arange(3), margin=margin)
    by_hand = torch.stack([(logits[y] - margin[y] * (torch.arange(3) == y)).logsumexp(0) - (logits[y, y] - margin[y]) for y in range(3)])
    torch.testing.assert_close(got, by_hand)
    # Written out for y = 2: log(e^(1+8) + e^(2+8) + e^3) - 3.
    assert got[2].item() == pytest.approx(math.log(math.exp(9) + math.exp(10) + math.exp(3)) - 3)


def test_lee_pseudo_label_is_minus_log_confidence() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)
    got = pseudo_label_loss(logits, logits, weighting="none")
    torch.testing.assert_close(got.loss, -got.confidence.log())


def test_alignment_by_hand() -> None:
    """p = (.6, .4) against ratio (1/3, 2) is (.2, .8): the label turns unless alignment is for the weight alone."""
    teacher = torch.tensor([[0.6, 0.4]], dtype=torch.float64).log()
    ratio = torch.tensor([1 / 3, 2.0], dtype=torch.float64)
    adamatch = pseudo_label_loss(torch.zeros(1, 2), teacher, align=ratio, threshold=0.75)
    softmatch = pseudo_label_loss(torch.zeros(1, 2), teacher, align=ratio, align_for="weight", threshold=0.75)
    assert (adamatch.label.item(), softmatch.label.item()) == (1, 0)
    for got in (adamatch, softmatch):
        assert got.confidence.item() == pytest.approx(0.8) and got.weight.item() == 1
    # Remixmatch: align first, then sharpen. (.2, .8) at T = 1/2 is (.04, .64) / .68; unaligned (.36, .16) / .52.
    student = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    log_p = student.log_softmax(1)[0]
    for align_for, q in (("both", (0.04 / 0.68, 0.64 / 0.68)), ("weight", (0.36 / 0.52, 0.16 / 0.52))):
        got = pseudo_label_loss(student, teacher, align=ratio, align_for=align_for, temperature=0.5, weighting="none")
        assert got.loss.item() == pytest.approx(-q[0] * log_p[0].item() - q[1] * log_p[1].item())


def test_flexmatch_thresholds_by_class() -> None:
    """N = 100, counts (40, 10), 50 unused: thresholds .95 * (.6667, .1111), looked up by the row's label."""
    beta = torch.tensor([0.8, 0.2], dtype=torch.float64)
    threshold = 0.95 * beta / (2 - beta)
    teacher = torch.tensor([[0.62, 0.38], [0.4, 0.6], [0.64, 0.36]], dtype=torch.float64).log()
    assert pseudo_label_loss(torch.zeros(3, 2), teacher, threshold=threshold).weight.tolist() == [0.0, 1.0, 1.0]


def test_freematch_statistics() -> None:
    """C = 10, mean confidence .5: tau moves from .1 to .1004."""
    p = torch.full((4, 10), 0.5 / 9, dtype=torch.float64)
    p[torch.arange(4), torch.tensor([0, 3, 3, 9])] = 0.5
    got = class_statistics(p.log())
    assert (0.999 * 0.1 + 0.001 * got.confidence_mean).item() == pytest.approx(0.1004)
    assert got.histogram.tolist() == [1, 0, 0, 2, 0, 0, 0, 0, 0, 1]
    torch.testing.assert_close(got.mean_probability, p.mean(0))
