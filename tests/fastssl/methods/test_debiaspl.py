"""DebiasPL against a float64 calculation over ten steps."""

import numpy as np
import pytest
import torch

from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle


class Oracle(oracle.Step):
    """Labels by the marginal as it was; the marginal moves by the raw prediction; the loss takes it as it is now."""

    own = {"threshold": 0.8, "debias": 0.4, "momentum": 0.999}

    def __init__(self, m, **options):
        super().__init__(m, **options)
        self.marginal, self.turned = np.full(oracle.CLASSES, 1 / oracle.CLASSES), 0

    def judged(self, z, p):
        q = oracle.softmax(z - self.o.debias * np.log(self.marginal))
        self.marginal = self.o.momentum * self.marginal + (1 - self.o.momentum) * p.mean(axis=0)
        self.turned += (q.argmax(axis=1) != p.argmax(axis=1)).sum()
        c = q.max(axis=1)
        return q.argmax(axis=1), c, oracle.weigh(self.o.weighting, c, self.o.threshold, self.o.power)

    def shift(self):
        return self.o.debias * np.log(self.marginal)

    def state(self):
        return {"marginal": self.marginal}


CASES = [
    {},
    {"debias": 1.0, "momentum": 0.5},
    {"debias": 0.0},
    {"weighting": "smooth", "power": 2.0, "momentum": 0.9, "lambda_u": 10.0},
    {"weighting": "sigmoid", "logit_adjustment": 1.0},
    {"weighting": "confidence"},
    {"weighting": "none", "momentum": 0.0},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    options = {"momentum": 0.5, "threshold": 0.6, **options}
    m = toy.method("debiaspl", **options)
    expected = Oracle(m, **options)
    rate = 0.002 if options.get("lambda_u", 1) > 1 else 0.02
    oracle.follow(m, toy, expected, rate=rate, mixed=options.get("weighting") != "none")
    assert (expected.turned > 0) or not options.get("debias", 0.4) or options.get("momentum") == 0.9


def test_debiased_prediction_of_the_specification(toy):
    """Anchor: logits (1, 0), q (0.8, 0.2), tau 0.4: (0.7311, 0.2689) becomes (0.6096, 0.3904); and a margin goes into the loss."""
    m = toy.method("debiaspl")
    m.marginal = torch.tensor([0.8, 0.2], dtype=torch.float64)
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    options, memory = m.standard(z, z, None, None)
    assert options["teacher"].softmax(1)[0].tolist() == pytest.approx([0.6096, 0.3904], abs=5e-5)
    moved = 0.999 * np.array([0.8, 0.2]) + 0.001 * np.array([0.731059, 0.268941])
    assert memory["marginal"].tolist() == pytest.approx(moved, rel=1e-6)
    assert options["adjust"].tolist() == pytest.approx(0.4 * np.log(moved), rel=1e-6)


def test_step_0_labels_as_fixmatch_does(toy):
    debiased, plain = toy.method("debiaspl", threshold=0.5), toy.method("fixmatch", threshold=0.5)
    b = toy.batch(plain.views)
    ours, theirs = debiased.loss(b, toy.clock()), plain.loss(b, toy.clock())
    assert torch.equal(ours.memory["label"], theirs.memory["label"])
    assert torch.allclose(ours.memory["confidence"], theirs.memory["confidence"]) and ours.metrics["kept"] == theirs.metrics["kept"]


def test_a_class_never_predicted(toy):
    """Its marginal may come down to a plain 0, of which there is no logarithm."""
    m = toy.method("debiaspl", head="linear", momentum=0.0, threshold=0.0)
    with torch.no_grad():
        m.network.head.bias[2] = -1e4
    for step in range(3):
        terms = m.step(toy.batch(m.views, seed=step), toy.clock(step), lambda total: total.backward())
        assert torch.isfinite(terms.total) and all(torch.isfinite(p.grad).all() for p in m.parameters())
        assert not (terms.memory["label"] == 2).any()


def test_alignment_is_refused(toy):
    with pytest.raises(ConfigError, match="alignment already"):
        toy.method("debiaspl", align="uniform")
