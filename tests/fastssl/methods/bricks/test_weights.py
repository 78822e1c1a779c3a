"""The S-shaped weight."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks.weights import sigmoid_weight
from tests.fastssl.methods import oracle


def logits(c):
    c = np.asarray(c)
    return torch.from_numpy(np.log(np.stack([c, (1 - c) / 2, (1 - c) / 2], axis=1)))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
def test_values(threshold):
    c = np.linspace(0.34, 0.9999, 200)
    weight = sigmoid_weight(logits(c), threshold).numpy()
    np.testing.assert_allclose(weight, oracle.weigh("sigmoid", c, threshold), rtol=1e-7, atol=1e-9)
    assert (np.diff(weight) >= 0).all() and (weight[c < threshold] == 0).all() and weight.max() <= 1


def test_it_starts_at_0_ends_at_1_and_is_a_half_between():
    z = torch.cat([logits([0.95, 0.975]), torch.tensor([[60.0, 0, 0]], dtype=torch.float64)])
    assert sigmoid_weight(z, 0.95).tolist() == pytest.approx([0, 0.5, 1], abs=1e-9)


def test_thresholds_by_label_and_as_a_tensor():
    z = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]], dtype=torch.float64)
    c = oracle.softmax(z.numpy()).max(axis=1)
    own = np.array([0.1, 0.5, 0.9])
    assert sigmoid_weight(z, torch.from_numpy(own)).tolist() == pytest.approx(oracle.weigh("sigmoid", c, own).tolist(), rel=1e-9)
    assert torch.equal(sigmoid_weight(z, torch.tensor(0.5, dtype=torch.float64)), sigmoid_weight(z, 0.5))


def test_alignment_changes_the_confidence_that_is_judged():
    z, ratio = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), np.array([5.0, 1.0, 0.2])
    q = oracle.normalised(oracle.softmax(z.numpy()) * ratio)
    weight = sigmoid_weight(z, 0.5, torch.from_numpy(ratio))
    np.testing.assert_allclose(weight, oracle.weigh("sigmoid", q.max(axis=1), 0.5), rtol=1e-7, atol=1e-12)


def test_nan_shows_and_half_precision_is_computed_in_float32():
    z = logits([0.6, 0.99]).float()
    z[0, 1] = torch.nan
    weight = sigmoid_weight(z, 0.5)
    assert weight[0].isnan() and weight[1] > 0.9 and weight.dtype == torch.float32
    assert sigmoid_weight(z.bfloat16(), 0.5).dtype == torch.float32


def test_a_threshold_of_1_is_the_step():
    z = torch.tensor([[200.0, 0, 0], [0, 5.0, 0], [torch.nan, 0, 0]])
    for threshold in (1.0, torch.tensor(1.0), torch.tensor([1.0, 1.0, 0.5])):
        weight = sigmoid_weight(z, threshold)
        assert weight[:2].tolist() == [1, 0] and weight[2].isnan()
    assert sigmoid_weight(z, torch.tensor([1.0, 0.5, 1.0]))[0] == 1 and 0.99 < sigmoid_weight(z, torch.tensor([1.0, 0.5, 1.0]))[1] < 1
    assert sigmoid_weight(z, 1.1)[:2].tolist() == [0, 0] and sigmoid_weight(z, torch.tensor(torch.nan)).isnan().all()
