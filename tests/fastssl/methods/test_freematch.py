"""FreeMatch against a float64 calculation over ten steps."""

import numpy as np
import pytest
import torch

from fastssl.methods.freematch import fairness
from tests.fastssl.methods import oracle


def self_adaptive_fairness(strong, kept, marginal, histogram):
    """+ sum a log(b + 1e-12) over the kept rows of [U, C] torch logits; 0 where none is kept."""
    n = int(kept.sum())
    if n == 0:
        return 0.0
    s = strong[torch.from_numpy(kept)]
    s = torch.exp(s - torch.logsumexp(s, 1, keepdim=True))
    h = np.bincount(s.detach().numpy().argmax(axis=1), minlength=strong.shape[1]) / n
    r = torch.from_numpy(np.divide(1, h, out=np.zeros_like(h), where=h > 0))
    b = s.mean(0) * r
    b = b / b.sum()
    a = oracle.normalised(np.divide(marginal, histogram, out=np.zeros_like(marginal), where=histogram > 0))
    return (torch.from_numpy(a) * torch.log(b + 1e-12)).sum()


class Oracle(oracle.Step):
    """All statistics move first, by the unaligned weak prediction, and are used then."""

    own = {"momentum": 0.999, "fairness_weight": 0.01, "least_threshold": 0.0, "most_threshold": 1.0}

    def __init__(self, m, **options):
        super().__init__(m, **options)
        c = oracle.CLASSES
        self.tau, self.marginal, self.histogram = 1 / c, np.full(c, 1 / c), np.full(c, 1 / c)
        self.clamped = self.fair = 0

    def threshold(self, p):
        m, rows = self.o.momentum, len(p)
        self.tau = m * self.tau + (1 - m) * p.max(axis=1).mean()
        self.marginal = m * self.marginal + (1 - m) * p.mean(axis=0)
        self.histogram = m * self.histogram + (1 - m) * np.bincount(p.argmax(axis=1), minlength=oracle.CLASSES) / rows
        free = self.tau * self.marginal / self.marginal.max()
        self.clamped += (free < self.o.least_threshold).sum() + (free > self.o.most_threshold).sum()
        return np.clip(free, self.o.least_threshold, self.o.most_threshold)

    def extra(self):
        fair = self_adaptive_fairness(self.student(), self.weight > 0, self.marginal, self.histogram)
        self.fair += bool(fair != 0)
        return self.o.fairness_weight * fair

    def state(self):
        return super().state() | {"confidence": self.tau, "marginal": self.marginal, "histogram": self.histogram}


CASES = [
    {"fairness_weight": 0.05},
    {"momentum": 0.999, "least_threshold": 0.6},
    {"fairness_weight": 0.0, "most_threshold": 0.5},
    {"momentum": 0.0, "fairness_weight": 1.0, "least_threshold": 0.55, "most_threshold": 0.65},
    {"weighting": "smooth", "power": 0.5, "align": "uniform", "fairness_weight": 0.5},
    {"weighting": "sigmoid", "align": "predicted", "align_memory": "queue", "logit_adjustment": 1.0, "lambda_u": 2.0},
    {"weighting": "confidence", "align": "labelled"},
    {"weighting": "none"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    options = {"momentum": 0.7, **options}  # so that thresholds come up from 1 / C within ten steps
    m = toy.method("freematch", **options)
    expected = Oracle(m, **options)
    oracle.follow(m, toy, expected, sharpen=1.5, mixed=options.get("weighting") != "none")
    assert expected.fair > 0 and (expected.clamped > 0) == any(k.endswith("threshold") for k in options)


def test_threshold_after_one_batch(toy):
    """Anchor: a mean confidence of 0.5 on ten classes moves 0.1 to 0.1004; here of 0.6 on five, 0.2 to 0.2004."""
    m = toy.method("freematch")
    p = torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.6, 0.1, 0.1, 0.1]], dtype=torch.float64)
    options, memory = m.standard(p.log(), p.log(), None, None)
    assert memory["mean_confidence"].item() == pytest.approx(0.2004, rel=1e-6)
    marginal = 0.1998 + 0.001 * np.array([0.35, 0.35, 0.1, 0.1, 0.1])
    assert options["threshold"].tolist() == pytest.approx(0.2004 * marginal / marginal.max(), rel=1e-6)
    assert memory["histogram"].tolist() == pytest.approx(0.1998 + 0.001 * np.array([0.5, 0.5, 0, 0, 0]), rel=1e-6)


def test_fairness_gradient_is_the_closed_form():
    """dL / dz_ij = s_ij (G_j - sum_c s_ic G_c) / n, G_c = r_c (g_c - sum_k g_k b_k) / M, g = a / (b + 1e-12), M = sum P r."""
    rng = np.random.default_rng(0)
    z, kept = rng.normal(size=(12, 5)) * 2, np.arange(12) % 3 > 0
    marginal, histogram = rng.dirichlet(np.ones(5), size=2)
    s = oracle.softmax(z[kept])
    n, p = len(s), s.mean(axis=0)
    h = np.bincount(s.argmax(axis=1), minlength=5) / n
    r = np.divide(1, h, out=np.zeros(5), where=h > 0)
    b, a = oracle.normalised(p * r), oracle.normalised(marginal / histogram)
    g = a / (b + 1e-12)
    big = r * (g - (g * b).sum()) / (p * r).sum()
    wanted = np.zeros_like(z)
    wanted[kept] = s * (big - (s * big).sum(axis=1, keepdims=True)) / n
    logits = torch.from_numpy(z).requires_grad_()
    loss = fairness(logits, torch.from_numpy(kept), torch.from_numpy(marginal), torch.from_numpy(histogram))
    loss.backward()
    assert loss.item() == pytest.approx((a * np.log(b + 1e-12)).sum(), rel=1e-9) and loss < 0
    np.testing.assert_allclose(logits.grad, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_fairness_of_no_row_and_of_a_class_never_predicted(kind):
    z = torch.randn(6, 5, dtype=kind, generator=torch.Generator().manual_seed(0))
    z[:, 2] = -1e4
    marginal = torch.tensor([0.25, 0.25, 0, 0.25, 0.25], dtype=kind)
    for kept in (torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)):
        logits = z.clone().requires_grad_()
        loss = fairness(logits, kept, marginal, marginal)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
        assert kept.any() or (loss == 0 and (logits.grad == 0).all())


def test_a_class_never_predicted(toy):
    """Its threshold falls with its share and nothing divides by it."""
    m = toy.method("freematch", head="linear", momentum=0.0, fairness_weight=1.0)
    with torch.no_grad():
        m.network.head.bias[2] = -1e4
    for step in range(3):
        terms = m.step(toy.batch(m.views, seed=step), toy.clock(step), lambda total: total.backward())
        assert torch.isfinite(terms.total) and all(torch.isfinite(p.grad).all() for p in m.parameters())
    assert m.histogram[2] == 0 and m.marginal[2] == 0
