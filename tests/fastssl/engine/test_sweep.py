"""Figures of evaluation against scikit-learn and hand calculations."""

import pytest
import torch

from fastssl.engine.sweep import expected_calibration_error, judge, reached


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_accuracy_and_recall_equal_scikit_learn(classes):
    from sklearn.metrics import accuracy_score, recall_score

    g = torch.Generator().manual_seed(classes)
    logits, label = torch.randn(200, classes, generator=g), torch.randint(classes, (200,), generator=g)
    found = judge(logits, label, classes)
    assert found.accuracy == pytest.approx(accuracy_score(label, logits.argmax(1)))
    assert found.per_class == pytest.approx(recall_score(label, logits.argmax(1), average=None).tolist())


def test_unknown_labels_are_left_out_and_missing_classes_have_none():
    found = judge(torch.tensor([[9.0, 0, 0], [0, 9, 0], [9, 0, 0]]), torch.tensor([0, 0, -1]), 3)
    assert found.accuracy == 0.5 and found.per_class == [0.5, None, None] and found.rows == 2
    assert judge(torch.zeros(2, 3), torch.tensor([-1, -1]), 3) is None


def test_logits_that_are_not_finite_count_as_wrong():
    found = judge(torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [9.0, -9.0]]), torch.tensor([0, 0, 0]), 2)
    assert found.accuracy == pytest.approx(1 / 3) and found.ece == pytest.approx(2 / 3, abs=1e-4)


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55], dtype=torch.float64)
    right = torch.tensor([True, False, True, True])
    # two bins: |0.5 - 0.95| over half the rows, |1 - 0.55| over the other
    assert expected_calibration_error(confidence, right) == pytest.approx(0.45)
    assert expected_calibration_error(torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.bool)) == 0


def test_reached_is_the_first_evaluation_at_the_share():
    assert reached([(10, 1.0, 0.5), (20, 2.0, 0.91), (30, 3.0, 0.85), (40, 4.0, 1.0)]) == (20, 2.0)
    assert reached([]) is None
