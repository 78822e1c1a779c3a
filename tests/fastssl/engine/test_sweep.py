"""Figures of evaluation against scikit-learn and hand calculations."""

import pytest
import torch

from fastssl.engine.sweep import expected_calibration_error, judge, reached, thirds


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


def test_balanced_accuracy_and_geometric_mean_by_hand():
    from sklearn.metrics import balanced_accuracy_score

    guess, label = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 3]), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3])
    found = judge(torch.nn.functional.one_hot(guess, 5).double() * 9, label, 5)
    assert found.per_class == pytest.approx([1, 2 / 3, 0, 1, None])
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(label, guess)) == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    # A recall of zero counts as 1 / (100 C); the class without rows does not count.
    assert found.geometric_mean == pytest.approx((1 * 2 / 3 * (1 / 500) * 1) ** (1 / 4)) and found.thirds is None


def test_thirds_follow_the_labels_and_not_the_classes_order():
    recalls = [0.1, 0.9, 0.5, 0.7, None, 0.3, 0.2]
    assert thirds(recalls, [1, 50, 6, 40, 5, 7, 1]) == pytest.approx({"many": 0.8, "medium": 0.4, "few": 0.15})
    assert thirds([None, 0.4, 0.6], [1, 2, 3]) == {"many": 0.6, "medium": 0.4, "few": None}
    assert thirds([1.0] * 3, [3, 2, 2]) is None and thirds([1.0, 0.0], [90, 1]) is None, "balanced enough, and too few classes"
    assert thirds([1.0, 0.0, 0.0], [1, 0, 0]) == {"many": 1.0, "medium": 0.0, "few": 0.0}
    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 0, 9]])
    found = judge(logits, torch.tensor([0, 1, 2]), 3, trained_on=torch.tensor([0, 2, 2, 2, 1, 1]))
    assert found.thirds == {"many": 1.0, "medium": 0.0, "few": 1.0}
