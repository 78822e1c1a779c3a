"""AdaMatch against a float64 calculation over ten steps, with and without batch-norm."""

import numpy as np
import pytest
import torch
from torch import nn

from fastssl.methods import find
from fastssl.models import Network
from fastssl.models.heads import LinearHead
from tests.fastssl.methods import oracle


class Oracle(oracle.Step):
    """Marginals move, then align label and weight; the threshold is relative to the labelled weak view's mean confidence."""

    own = {"align": "predicted", "align_memory": "queue", "threshold": 0.9, "ramp": True}

    def threshold(self, p):
        return self.o.threshold * self.p_known.max(axis=1).mean()

    def ramp(self):
        return 0.5 - 0.5 * np.cos(min(np.pi, 2 * np.pi * self.step / self.total)) if self.o.ramp else 1.0


CASES = [
    {},
    {"strong_labelled": False, "interpolate": False, "ramp": False, "align_memory": "ema", "threshold": 0.95},
    {"align": "uniform", "weighting": "smooth", "power": 2.0, "threshold": 0.7},
    {"align": "labelled", "weighting": "sigmoid", "align_memory": "ema", "logit_adjustment": 1.0, "threshold": 0.7},
    {"align": "none", "weighting": "confidence", "lambda_u": 0.5, "ramp": False},
    {"weighting": "none"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    m = toy.method("adamatch", **options)
    # Of 14 steps: the ramp is over after the seventh.
    oracle.follow(m, toy, Oracle(m, **options), total=14, mixed=options.get("weighting") != "none")


class Normed(nn.Module):
    num_features = 7

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(27, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 7))

    def forward(self, x):
        return self.layers(x)


class NormedOracle(Oracle):
    """Views together through batch-norm; labelled logits lie between that forward and one of the labelled images alone."""

    def __init__(self, m, apart, **options):
        super().__init__(m, **options)
        self.apart, self.running = apart, {"mean": np.zeros(9), "var": np.ones(9), "steps": 0}

    def together(self, views, count=False):
        v, at = self.values, "network.encoder.layers."
        h = torch.cat(views).flatten(1) @ v[f"{at}1.weight"].T + v[f"{at}1.bias"]
        mean, var = h.mean(0), h.var(0, unbiased=False)
        if count:
            self.running["mean"] = 0.9 * self.running["mean"] + 0.1 * mean.detach().numpy()
            self.running["var"] = 0.9 * self.running["var"] + 0.1 * h.var(0).detach().numpy()
            self.running["steps"] += 1
        h = v[f"{at}2.weight"] * (h - mean) / torch.sqrt(var + 1e-5) + v[f"{at}2.bias"]
        f = torch.tanh(h) @ v[f"{at}4.weight"].T + v[f"{at}4.bias"]
        sizes = [len(x) for x in views]
        return list(zip(oracle.head(v, f).split(sizes), f.split(sizes), strict=True))

    def outputs(self, batch):
        known, (weak, strong) = list(batch.labelled), batch.unlabelled
        self.index = batch.index
        self.alone = [z for z, _ in self.together(known)] if self.o.interpolate else []
        if not self.apart:
            out = self.together([*known, weak, strong], count=True)
            return out[: len(known)], out[len(known) :]
        out = self.together([*known, strong], count=True)
        return out[: len(known)], [self.together([weak])[0], out[-1]]

    def interpolated(self, known):
        if not self.o.interpolate:
            return known
        mixed = []
        for view, (joint, alone) in enumerate(zip(known, self.alone, strict=True)):
            u = self.m.noise(joint.detach(), view, self.index, self.clock(self.step, self.total))  # random numbers are an input
            mixed.append((1 - u) * joint + u * alone)
        return mixed

    def state(self):
        at = "network.encoder.layers.2."
        own = {"running_mean": self.running["mean"], "running_var": self.running["var"], "num_batches_tracked": self.running["steps"]}
        return super().state() | {f"{at}{key}": value for key, value in own.items()}


@pytest.mark.parametrize(
    ("apart", "interpolate", "strong"), [(False, True, True), (False, True, False), (False, False, True), (True, True, True)]
)
def test_ten_steps_with_batchnorm(toy, apart, interpolate, strong):
    torch.manual_seed(0)
    kind = find("adamatch")
    config = kind.Config(threshold=0.9, interpolate=interpolate, strong_labelled=strong)
    network = Network(Normed(), LinearHead(7, 5)).double()
    m = kind(config, network, toy.spec(), unlabelled_batch=6, weak_pass="separate" if apart else "joint").double()
    expected = NormedOracle(m, apart, interpolate=interpolate)
    expected.clock = toy.clock
    oracle.follow(m, toy, expected, total=14, sharpen=6.0)


def test_interpolation_is_uniform_and_of_its_own_for_each_step_view_and_seed(toy):
    m = toy.method("adamatch")
    z, rows = torch.zeros(400, 5, dtype=torch.float64), torch.arange(400)
    drawn = {(step, view): m.noise(z, view, rows, toy.clock(step)) for step in (0, 1) for view in (0, 1)}
    other = toy.clock(0)
    other.seed.fill_(1)
    drawn["seed"] = m.noise(z, 0, rows, other)
    assert torch.equal(drawn[0, 0], m.noise(z, 0, rows, toy.clock(0)))
    for u in drawn.values():
        assert u.min() >= 0 and u.max() < 1 and len(u.unique()) > 1990
        counts = torch.histc(u, 10, 0, 1)
        assert ((counts - 200) ** 2 / 200).sum() < 27.9, "chi-square, nine degrees of freedom, 0.1 %"
    together = torch.stack([u.flatten() for u in drawn.values()])
    assert (torch.corrcoef(together) - torch.eye(5)).abs().max() < 0.1


def test_threshold_and_ramp_of_the_specification(toy):
    """Anchors: labelled confidences 0.9 and 1.0 with tau 0.9 give 0.855; the ramp is 1/2 at a quarter, 1 from the half on."""
    m = toy.method("adamatch", align="none")
    known = torch.tensor([[0.9, 0.1], [1.0, 1e-30]], dtype=torch.float64).log()
    options, _ = m.standard(known, known, None, None)
    assert float(options["threshold"]) == pytest.approx(0.855, rel=1e-9)
    for step, value in ((0, 0), (25, 0.5), (50, 1), (99, 1)):
        assert float(m.weight(toy.clock(step, 100))) == pytest.approx(value, abs=1e-6)
    assert float(toy.method("adamatch", lambda_u=3.0).weight(toy.clock(25, 100))) == pytest.approx(1.5, rel=1e-6)
    assert toy.method("adamatch", ramp=False).weight(toy.clock(0)) == 1


def test_first_alignment_takes_the_batch_itself_for_its_marginal(toy):
    """USB's form: pi_u is the first batch's mean, so that labels of step 0 are spread over the classes as the target is."""
    m = toy.method("adamatch", align="uniform", align_memory="ema")
    b = toy.batch(m.views)
    with torch.no_grad():
        p = m.network(b.unlabelled[0]).logits.softmax(1)
    terms = m.loss(b, toy.clock())
    np.testing.assert_allclose(terms.memory["align_marginal"], p.mean(0), rtol=1e-6)
    q = oracle.normalised(p.numpy() * ((0.2 + 1e-6) / (p.mean(0).numpy() + 1e-6)))
    assert terms.memory["label"].tolist() == q.argmax(axis=1).tolist()
    np.testing.assert_allclose(terms.memory["confidence"], q.max(axis=1), rtol=1e-6)
