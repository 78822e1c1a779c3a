"""SoftMatch against a float64 calculation over ten steps."""

import numpy as np
import pytest
import torch

from tests.fastssl.methods import oracle


class Oracle(oracle.Step):
    """Marginals, then mean and variance, then the weight; the label is that of the raw prediction."""

    own = {"align": "uniform", "align_start": "uniform", "statistics": "raw", "momentum": 0.999, "sigmas": 2.0}

    def __init__(self, m, **options):
        super().__init__(m, **options)
        self.mean, self.variance = 1 / oracle.CLASSES, 1.0

    def judged(self, z, p):
        q = self.aligned(p)
        c = q.max(axis=1)
        seen = c if self.o.statistics == "aligned" else p.max(axis=1)
        m = self.o.momentum
        self.mean = m * self.mean + (1 - m) * seen.mean()
        self.variance = m * self.variance + (1 - m) * seen.var(ddof=1)
        d = np.minimum(c - self.mean, 0)
        return p.argmax(axis=1), c, np.exp(-(d**2) / (2 * self.variance / self.o.sigmas**2))

    def state(self):
        return super().state() | {"mean": self.mean, "variance": self.variance}


CASES = [
    {},
    {"statistics": "aligned"},
    {"statistics": "aligned", "align_start": "batch"},
    {"align": "predicted", "align_start": "batch", "sigmas": 3.0},
    {"align": "labelled", "align_memory": "queue", "sigmas": 1.0, "lambda_u": 0.5},
    {"align": "none", "statistics": "aligned"},
    {"momentum": 0.0, "logit_adjustment": 1.0},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    options = {"momentum": 0.5, **options}  # so that mean and variance reach the confidences within ten steps
    m = toy.method("softmatch", **options)
    expected = Oracle(m, **options)
    oracle.follow(m, toy, expected, mixed=False)
    weights = np.concatenate(expected.weights)
    assert (weights == 1).mean() > 0.1 and (weights < 0.9).mean() > 0.1, "confidences must lie on both sides of the mean"


def test_label_is_that_of_the_raw_prediction(toy):
    """Alignment may turn the largest class; SoftMatch lets it judge the weight alone."""
    m = toy.method("softmatch", align_start="batch")
    b = toy.batch(m.views)
    with torch.no_grad():
        raw = m.network(b.unlabelled[0]).logits
        m.alignment.begun.fill_(True)
        m.alignment.marginal.copy_(torch.tensor([0.96, 0.01, 0.01, 0.01, 0.01]))
    terms = m.loss(b, toy.clock())
    aligned = oracle.softmax(raw.numpy()) * (0.2 / np.array([0.96, 0.01, 0.01, 0.01, 0.01]))
    assert terms.memory["label"].tolist() == raw.argmax(1).tolist() != aligned.argmax(axis=1).tolist()


def test_weight_of_the_specification(toy):
    """Anchor: mean 0.9, variance 0.01: confidence 0.8 weighs exp(-2) = 0.1353, 0.9 and more weighs 1."""
    m = toy.method("softmatch", align="none", momentum=1.0)
    m.mean.fill_(0.9), m.variance.fill_(0.01)
    p = torch.tensor([[0.8, 0.2], [0.9000001, 0.0999999], [0.99, 0.01]], dtype=torch.float64)
    options, _ = m.standard(p.log(), p.log(), None, None)
    assert m.pseudo_labels(p, p.log(), options).weight.tolist() == pytest.approx([np.exp(-2), 1, 1], rel=1e-5)


def test_a_batch_of_one_row_leaves_the_variance_alone(toy):
    m = toy.method("softmatch", momentum=0.9).float()
    b = toy.batch(m.views)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for step in range(2000):
            views = tuple(torch.randn(1, 3, 3, 3, generator=g) for _ in b.unlabelled)
            one = b._replace(
                labelled=tuple(v.float() for v in b.labelled),
                unlabelled=views,
                unlabelled_index=b.unlabelled_index[:1],
                hidden_label=b.hidden_label[:1],
            )
            terms = m.loss(one, toy.clock(step))
            m.remember(one, terms, toy.clock(step))
    assert m.variance == 1 and torch.isfinite(terms.total) and 0.2 < m.mean < 1


def test_a_variance_of_nothing_is_no_nan(toy):
    """Rows all alike: the variance falls to 0, rows below the mean weigh nothing, the others 1."""
    m = toy.method("softmatch", momentum=0.0)
    b = toy.batch(m.views)
    b = b._replace(unlabelled=tuple(v[:1].expand(6, 3, 3, 3) for v in b.unlabelled))
    terms = m.step(b, toy.clock(), lambda total: total.backward())
    assert torch.isfinite(terms.total) and m.variance < 1e-20
    assert all(torch.isfinite(p.grad).all() for p in m.parameters())
