"""Which of many labels are likely right: those of small loss, by a mixture of two Gaussians (Li et al. 2020, section 3.1)."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Mixture(NamedTuple):
    """What was found of [n] losses."""

    posterior: np.ndarray  # [n] float64 in [0, 1]: how likely a loss is of the component with the smaller mean
    means: tuple[float, float]  # of the components, the smaller one first; equal where there was nothing to tell apart, NaN without losses


def normalised(losses: np.ndarray) -> np.ndarray:
    """[n] -> [n] float64 from 0, the smallest, to 1, the largest; NaN where a loss is not finite, 0 where all are equal.

    One outlier presses all the others together: that is the method's.
    """
    losses = np.asarray(losses, np.float64)
    sound = np.isfinite(losses)
    found = np.full(len(losses), np.nan)
    if sound.any():
        least, most = losses[sound].min(), losses[sound].max()
        found[sound] = (losses[sound] - least) / (most - least) if most > least else 0.0
    return found


def two_gaussians(losses: np.ndarray, *, seed: int = 0) -> Mixture:
    """Fits scikit-learn's mixture (10 iterations, tolerance 0.01, covariances kept up by 5e-4, as DivideMix's code has it).

    A loss that is not finite has posterior 0 and takes no part in the fit. Equal losses, or a single one, tell nothing apart: all that are
    finite then have posterior 1.

    Args:
        losses: [n], normalised to [0, 1]; the constants above are of that scale.
        seed: of the k-means that the fit starts from; in one dimension it hardly matters.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    losses = np.asarray(losses, np.float64)
    sound = np.isfinite(losses)
    x, posterior = losses[sound], np.zeros(len(losses))
    if not len(x) or x.min() == x.max():
        posterior[sound] = 1.0
        mean = float(x[0]) if len(x) else float("nan")
        return Mixture(posterior, (mean, mean))
    model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are what is wanted, converged or not
        posterior[sound] = model.fit(x[:, None]).predict_proba(x[:, None])[:, model.means_[:, 0].argmin()]
    low, high = np.sort(model.means_[:, 0])
    return Mixture(posterior, (float(low), float(high)))


class Verdicts(nn.Module):
    """What each of several judges, by its losses, thinks of each label of a set.

    Args:
        judges: J. rows: N, of the data set. history: epochs whose losses are averaged.
    """

    guards_itself = True  # a step never writes it
    w: Tensor
    losses: Tensor
    looks: Tensor

    def __init__(self, judges: int, rows: int, history: int):
        super().__init__()
        self.register_buffer("w", torch.full((judges, rows), -1.0))  # posteriors, -1 of rows that were not judged
        self.register_buffer("losses", torch.zeros(judges, history, rows))  # normalised, a ring of epochs
        self.register_buffer("looks", torch.zeros(judges, dtype=torch.int64))

    def judge(self, judge: int, index: Tensor, loss: Tensor) -> tuple[Mixture, np.ndarray]:
        """Takes [n] losses of rows [n], and forgets what was thought of all others; their mixture, and [n] the normalised losses, averaged
        over the last epochs, that it is of."""
        history, looks = self.losses.shape[1], int(self.looks[judge])
        new = torch.from_numpy(normalised(loss.double().cpu().numpy()))
        self.losses[judge, looks % history, index] = new.to(self.losses)
        kept = self.losses[judge, : looks + 1, index].double().mean(0).cpu().numpy()
        found = two_gaussians(kept)
        self.w[judge].fill_(-1)
        self.w[judge, index] = torch.from_numpy(found.posterior).to(self.w)
        self.looks[judge] += 1
        return found, kept
