"""FlexMatch against a float64 calculation over ten steps, with a dictionary as the bank."""

import numpy as np
import pytest
import torch

from tests.fastssl.methods import oracle


class Oracle(oracle.Step):
    """Thresholds of the bank as the step before left it; then rows that pass the fixed tau write their labels, in batch order."""

    own = {"mapping": "convex", "threshold_warmup": True}

    def __init__(self, m, **options):
        super().__init__(m, **options)
        self.bank, self.thresholds = {}, []

    def counts(self):
        return np.array([sum(label == k for label in self.bank.values()) for k in range(oracle.CLASSES)])

    def threshold(self, p):
        sigma = self.counts()
        most = sigma.max()
        if self.o.threshold_warmup:
            most = max(most, oracle.UNLABELLED - sigma.sum())
        x = sigma / most if most else 0.0 * sigma
        shape = {"convex": x / (2 - x), "linear": x, "concave": np.log(x + 1) / np.log(2)}[self.o.mapping]
        self.thresholds.append(self.o.threshold * shape)
        return self.thresholds[-1]

    def after(self):
        for row, label, c in zip(self.batch.unlabelled_index.tolist(), self.label, self.confidence, strict=True):
            if c >= self.o.threshold:
                self.bank[row] = label

    def state(self):
        last = np.array([self.bank.get(row, -1) for row in range(oracle.ROWS)])
        counts = np.append(self.counts(), oracle.UNLABELLED - len(self.bank))
        return super().state() | {"learned.last": last, "learned.counts": counts}


CASES = [
    {},
    {"mapping": "linear", "threshold_warmup": False},
    {"mapping": "concave", "weighting": "smooth", "power": 2.0},
    {"mapping": "linear", "weighting": "confidence", "align": "uniform", "lambda_u": 0.5},
    {"weighting": "sigmoid", "align": "predicted", "align_memory": "queue", "logit_adjustment": 1.0},
    {"threshold_warmup": False, "weighting": "none", "align": "labelled"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    options = {"threshold": 0.7, **options}
    m = toy.method("flexmatch", **options)
    expected = Oracle(m, **options)
    # Thresholds start at 0, where nothing is refused: twenty steps, so that they rise.
    oracle.follow(m, toy, expected, steps=20, mixed=options.get("weighting") != "none")
    assert (expected.thresholds[0] == 0).all() and len(np.unique(np.round(expected.thresholds, 9))) > 5
    assert 0 < len(expected.bank) < oracle.UNLABELLED


def with_counts(toy, counts, **options):
    m = toy.method("flexmatch", **options)
    m.learned.counts.copy_(torch.tensor(counts))
    return m


def test_thresholds_of_the_specification(toy):
    """Anchors: counts (40, 10) of 100, 50 unused: beta (0.8, 0.2), T / tau (0.6667, 0.1111); without warm-up beta (1, 0.25)."""
    counts = [40, 10, 0, 0, 0, 50]
    assert (with_counts(toy, counts).thresholds() / 0.95).tolist() == pytest.approx([2 / 3, 1 / 9, 0, 0, 0], rel=1e-6)
    assert (with_counts(toy, counts, threshold_warmup=False).thresholds() / 0.95).tolist() == pytest.approx([1, 1 / 7, 0, 0, 0], rel=1e-6)
    for warmup in (True, False):
        nothing = with_counts(toy, [0, 0, 0, 0, 0, 100], threshold_warmup=warmup)
        assert nothing.thresholds().tolist() == [0] * 5, "nothing learned: everything passes"
    half = {"convex": 1 / 3, "linear": 0.5, "concave": np.log(1.5) / np.log(2)}
    for mapping, value in half.items():
        m = with_counts(toy, [100, 50, 0, 0, 0, 0], mapping=mapping, threshold=1.0)
        assert m.thresholds().tolist() == pytest.approx([1, value, 0, 0, 0], rel=1e-6)


def test_step_0_uses_every_row(toy):
    m = toy.method("flexmatch")
    terms = m.step(toy.batch(m.views), toy.clock(), lambda total: total.backward())
    assert terms.metrics["kept"] == 1


def test_a_class_never_predicted_keeps_threshold_0(toy):
    m = toy.method("flexmatch", head="linear", threshold=0.3)
    with torch.no_grad():
        m.network.head.bias[2] = -1e4
    for step in range(5):
        terms = m.step(toy.batch(m.views, seed=step), toy.clock(step), lambda total: total.backward())
        assert torch.isfinite(terms.total)
    assert m.learned.counts[2] == 0 and m.thresholds()[2] == 0 and m.thresholds().max() > 0


def test_a_row_that_comes_twice_takes_its_last_sure_label(toy):
    m = toy.method("flexmatch", threshold=0.5)
    b = toy.batch(m.views)
    index = torch.tensor([9, 9, 9, 9, 10, 10])
    expected = Oracle(m, threshold=0.5)
    expected(b._replace(unlabelled_index=index), 0, 100)
    terms = m.loss(b._replace(unlabelled_index=index), toy.clock())
    m.remember(b._replace(unlabelled_index=index), terms, toy.clock())
    assert m.learned.last[9] == expected.bank.get(9, -1) and m.learned.last[10] == expected.bank.get(10, -1)
    assert m.learned.counts.sum() == oracle.UNLABELLED and m.learned.counts[:-1].sum() == len(expected.bank) > 0
