"""The mixture over losses: scikit-learn's own numbers, an EM by hand, and losses that have no two parts."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from fastssl.methods.bricks.mixture import Verdicts, normalised, two_gaussians


def losses(seed=0, low=600, high=400):
    """Losses as they are early in training: a narrow heap near nothing, a wide one far from it."""
    rng = np.random.default_rng(seed)
    heaps = np.concatenate([rng.gamma(2, 0.15, low), rng.normal(3.0, 0.8, high).clip(0.5)])
    return normalised(rng.permutation(heaps))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_scikit_learns_mixture_as_the_code_asks_for_it(seed):
    x = losses(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = two_gaussians(x)
    model = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(x.reshape(-1, 1))
    small = model.means_.argmin()
    np.testing.assert_array_equal(found.posterior, model.predict_proba(x.reshape(-1, 1))[:, small])
    assert found.means == (model.means_.min(), model.means_.max()) and found.means[0] < 0.3 < found.means[1]
    for other in (1, 2, 3):
        np.testing.assert_allclose(two_gaussians(x, seed=other).posterior, found.posterior, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_rounds_of_em_by_hand_divide_alike(seed):
    x = losses(seed)
    r = (x < 0.4).astype(float)  # responsibility of the small component
    for _ in range(10):
        share = np.array([r.mean(), 1 - r.mean()])
        mean = np.array([(r * x).sum() / r.sum(), ((1 - r) * x).sum() / (1 - r).sum()])
        variance = np.array([(r * (x - mean[0]) ** 2).sum() / r.sum(), ((1 - r) * (x - mean[1]) ** 2).sum() / (1 - r).sum()]) + 5e-4
        density = share * np.exp(-((x[:, None] - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        r = density[:, 0] / density.sum(1)
    found = two_gaussians(x)
    assert ((found.posterior > 0.5) == (r > 0.5)).mean() > 0.99 and np.abs(found.posterior - r).mean() < 0.02
    np.testing.assert_allclose(found.means, mean, atol=0.02)


def test_losses_are_brought_between_0_and_1():
    assert normalised(np.array([2.0, 4.0, np.nan, 3.0, np.inf])).tolist()[:2] == [0, 1]
    np.testing.assert_array_equal(normalised(np.array([2.0, 4.0, np.nan, 3.0, np.inf])), [0, 1, np.nan, 0.5, np.nan])
    assert normalised(np.full(3, 7.0)).tolist() == [0, 0, 0] and np.isnan(normalised(np.full(2, np.nan))).all()
    assert len(normalised(np.zeros(0))) == 0


@pytest.mark.parametrize(
    ("x", "wanted"), [([0.0] * 5, [1] * 5), ([0.3], [1]), ([np.nan] * 3, [0] * 3), ([0.2, np.nan, 0.2], [1, 0, 1]), ([], [])]
)
def test_losses_without_two_parts_have_a_defined_outcome(x, wanted):
    found = two_gaussians(np.array(x))
    assert found.posterior.tolist() == wanted
    assert found.means[0] == found.means[1] if 1 in wanted else np.isnan(found.means).all()


def test_a_loss_that_is_not_finite_takes_no_part():
    x = losses()
    bare = two_gaussians(x)
    more = two_gaussians(np.concatenate([x, [np.nan, np.inf]]))
    np.testing.assert_array_equal(more.posterior, [*bare.posterior, 0, 0])
    assert more.means == bare.means


def test_two_losses_are_told_apart():
    assert (two_gaussians(np.array([0.0, 1.0])).posterior > 0.5).tolist() == [True, False]


@pytest.mark.parametrize("history", [1, 3])
def test_verdicts_average_the_last_epochs_losses(history):
    table, index, seen = Verdicts(2, 300, history), torch.arange(20, 220), []
    for epoch in range(5):
        raw = np.random.default_rng(epoch).gamma(2, 1, 200) + 5 * (np.arange(200) > 120)
        seen.append(((raw - raw.min()) / (raw.max() - raw.min())).astype(np.float32).astype(np.float64))
        found, kept = table.judge(1, index, torch.from_numpy(raw))
        np.testing.assert_allclose(kept, np.mean(seen[-history:], axis=0), rtol=1e-12)
        np.testing.assert_allclose(table.w[1, 20:220], two_gaussians(np.mean(seen[-history:], axis=0)).posterior, atol=1e-6)
        assert np.array_equal(found.posterior.astype(np.float32), table.w[1, 20:220])
    assert (table.w[0] == -1).all() and (table.w[1, :20] == -1).all() and (table.w[1, 220:] == -1).all()
    table.judge(1, index[:50], torch.linspace(0, 1, 50))
    assert (table.w[1, 70:] == -1).all(), "rows that are not judged again are forgotten"
