"""The modules: their reductions, their options, and that they travel with a model."""

from __future__ import annotations

import pytest
import torch

from fastssl.kernels import (
    BalancedMarginCrossEntropy,
    ConsistencyLoss,
    PseudoLabelLoss,
    consistency_loss,
    cross_entropy,
    pseudo_label_loss,
)

REDUCED = {"mean": torch.Tensor.mean, "sum": torch.Tensor.sum, "none": torch.Tensor.clone}


@pytest.mark.parametrize("reduction", REDUCED)
def test_reductions(reduction: str, normal) -> None:
    student, teacher, margin = normal(0, 2, 6, 4), normal(1, 6, 4), normal(2, 4).abs()
    target, weight = torch.arange(6) % 4, normal(3, 6).abs()
    by_hand = REDUCED[reduction]
    got = PseudoLabelLoss(threshold=0.4, margin=margin, smoothing=0.1, reduction=reduction)(student, teacher)
    rows = pseudo_label_loss(student, teacher, threshold=0.4, margin=margin, smoothing=0.1).loss
    assert 0 < (rows > 0).sum() < 12  # the mean is over all rows, kept or not
    torch.testing.assert_close(got, by_hand(rows))
    got = BalancedMarginCrossEntropy(smoothing=0.2, reduction=reduction)(student[0], target, margin)
    torch.testing.assert_close(got, by_hand(cross_entropy(student[0], target, margin=margin, smoothing=0.2)))
    got = ConsistencyLoss("kl", temperature=2.0, reduction=reduction)(student[0], teacher, weight)
    torch.testing.assert_close(got, by_hand(consistency_loss(student[0], teacher, kind="kl", temperature=2.0, sample_weight=weight)))


def test_mean_is_the_default_and_0_without_rows() -> None:
    for loss in (PseudoLabelLoss(), ConsistencyLoss()):
        assert loss(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0
    loss = BalancedMarginCrossEntropy()
    assert loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(3)).item() == 0
    assert loss(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64), torch.zeros(3)).item() == pytest.approx(1.0986, abs=1e-4)


def test_options_of_the_call_go_before_fixed_ones(normal) -> None:
    student, teacher, judge = normal(0, 6, 4), normal(1, 6, 4), normal(2, 6, 4)
    loss = PseudoLabelLoss(threshold=0.95, weighting="step")
    wanted = pseudo_label_loss(student, teacher, threshold=0.3, weighting="step", judge=judge).loss.mean()
    assert wanted > 0
    torch.testing.assert_close(loss(student, teacher, judge=judge, threshold=0.3), wanted)


def test_tensor_options_follow_the_module_and_stay_out_of_its_state() -> None:
    loss = PseudoLabelLoss(threshold=torch.full((3,), 0.5), margin=torch.ones(3), power=2.0)
    assert loss.to("meta").margin.device.type == loss.threshold.device.type == "meta"
    assert loss(torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, device="meta")).device.type == "meta"
    assert not loss.state_dict() and not list(loss.parameters())
    assert repr(loss) == "PseudoLabelLoss(power=2.0, threshold=[3], margin=[3], reduction='mean')"


def test_one_teacher_gradient_switch(normal) -> None:
    student, teacher = normal(0, 3, 4).requires_grad_(), normal(1, 3, 4).requires_grad_()
    ConsistencyLoss("mse", teacher_grad=True)(student, teacher).backward()
    assert teacher.grad.abs().sum() > 0
    probabilities = ConsistencyLoss("ce", teacher_is="probabilities")(student, teacher.softmax(1))
    torch.testing.assert_close(probabilities, ConsistencyLoss("ce")(student, teacher))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PseudoLabelLoss(treshold=0.9), "PseudoLabelLoss has no option 'treshold'; did you mean threshold?"),
        (lambda: PseudoLabelLoss(zzz=0.9), "PseudoLabelLoss has no option 'zzz'; known: threshold, weighting"),
        (lambda: PseudoLabelLoss()(torch.zeros(1, 2), torch.zeros(1, 2), marginn=1), "did you mean margin"),
        (lambda: PseudoLabelLoss(reduction="batchmean"), "reduction must be one of mean, sum, none; got 'batchmean'"),
        (lambda: BalancedMarginCrossEntropy(reduction="avg"), "reduction must be one of"),
        (lambda: BalancedMarginCrossEntropy(smoothing=1.0), "smoothing must be a number from 0 to below 1"),
        (lambda: ConsistencyLoss("l2"), "kind must be one of mse, kl, ce; got 'l2'"),
        (lambda: ConsistencyLoss(temperature=-1.0), "temperature must be a number above 0"),
        (lambda: ConsistencyLoss(teacher_is="x"), "teacher_is must be one of"),
        (lambda: ConsistencyLoss(reduction=None), "reduction must be one of"),
    ],
)
def test_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make()
