"""Smooth Pseudo-Labeling, and the options that all thresholded methods share, against a float64 calculation over ten steps."""

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.pipelines.errors import DataError
from tests.fastssl.methods import oracle

SHARED = [
    {"weighting": "step"},
    {"weighting": "smooth"},
    {"weighting": "smooth", "power": 2.0, "lambda_u": 1.1},
    {"weighting": "smooth", "power": 0.5},
    {"weighting": "sigmoid", "align": "labelled"},
    {"weighting": "confidence"},
    {"weighting": "none"},
    {"align": "uniform"},
    {"align": "labelled"},
    {"align": "predicted"},
    {"align": "uniform", "align_memory": "queue"},
    {"align": "labelled", "align_memory": "queue", "weighting": "smooth"},
    {"align": "predicted", "align_memory": "queue"},
    {"logit_adjustment": 1.0},
    {"logit_adjustment": 0.5, "align": "predicted", "weighting": "smooth", "power": 2.0},
]


@pytest.mark.parametrize("options", SHARED, ids=str)
def test_ten_steps_of_fixmatch_with_every_shared_option(toy, options):
    options = {"threshold": 0.6, **options}
    m = toy.method("fixmatch", **options)
    oracle.follow(m, toy, oracle.Step(m, **options), mixed=options.get("weighting") != "none")


@pytest.mark.parametrize("options", [{}, {"power": 2.0}, {"power": 0.5, "align": "uniform"}, {"weighting": "sigmoid"}], ids=str)
def test_ten_steps_of_spl(toy, options):
    m = toy.method("spl", threshold=0.55, **options)
    oracle.follow(m, toy, oracle.Step(m, **{"threshold": 0.55, "weighting": "smooth", **options}))


def confident(c, classes=3):
    """[n, C] logits of the given confidences, class 0."""
    rest = (1 - np.asarray(c)) / (classes - 1)
    return torch.from_numpy(np.log(np.stack([np.asarray(c), *[rest] * (classes - 1)], axis=1)))


@pytest.mark.parametrize(("power", "half"), [(1.0, 0.5), (2.0, 0.25), (0.5, 0.7071)])
def test_phi_is_0_at_the_threshold_and_1_at_certainty(toy, power, half):
    """Anchors: tau = 0.95; a confidence of 0.975 weighs 1/2, 1/4 and 0.7071."""
    m = toy.method("spl", power=power)
    z = torch.cat([confident([0.95, 0.975]), torch.tensor([[50.0, 0.0, 0.0]], dtype=torch.float64)])
    weight = m.pseudo_labels(torch.zeros(3, 3, dtype=torch.float64), z, {"threshold": 0.95}).weight
    assert weight.tolist() == pytest.approx([0, half, 1], abs=2e-4 if power == 0.5 else 1e-7)  # the root magnifies rounding at tau
    step = toy.method("fixmatch").pseudo_labels(torch.zeros(2, 3, dtype=torch.float64), z[1:], {"threshold": z[1].softmax(0).max()})
    assert step.weight.tolist() == [1, 1], "FixMatch keeps a row at the very threshold"


def test_small_powers_tend_to_fixmatch(toy):
    b = toy.batch(toy.method("spl").views)
    soft = toy.method("spl", threshold=0.5, power=1e-9).loss(b, toy.clock()).total
    assert soft.item() == pytest.approx(toy.method("fixmatch", threshold=0.5).loss(b, toy.clock()).total.item(), rel=1e-7)


@pytest.mark.parametrize("weak_pass", ["separate", "joint"])
def test_phi_carries_no_gradient(toy, weak_pass):
    """The weak view's gradient is none, though its confidence weighs the loss: were Phi differentiated, it would not be."""
    m = toy.method("spl", threshold=0.3, weak_pass=weak_pass)
    b = toy.batch(m.views)
    weak, strong = (v.clone().requires_grad_() for v in b.unlabelled)
    terms = m.loss(b._replace(unlabelled=(weak, strong)), toy.clock())
    terms.total.backward()
    assert terms.metrics["kept"] > 0 and strong.grad.abs().sum() > 0
    assert weak.grad is None or weak.grad.abs().sum() == 0
    with torch.no_grad():
        m.network.encoder.layers[1].weight.mul_(3)
        moved = m.loss(b, toy.clock()).metrics["loss_unlabelled"]
    assert moved != terms.metrics["loss_unlabelled"]


@pytest.mark.parametrize("name", ["fixmatch", "spl", "flexmatch", "freematch", "adamatch", "debiaspl", "layermatch"])
def test_no_confident_row_means_no_unlabelled_loss(toy, name):
    # A class that has no captures keeps FlexMatch's threshold at 0, and FreeMatch's thresholds start low: both are held up here.
    options = {"freematch": {"least_threshold": 1.0}, "adamatch": {"threshold": 1.0}}.get(name, {"threshold": 1.0})
    m = toy.method(name, **options)
    if name == "flexmatch":
        m.learned.counts.copy_(torch.tensor([8, 8, 8, 8, 8, 0]))
    for step in range(3):
        b = toy.batch(m.views_of(m.config), seed=step)
        if name == "adamatch":  # sure of its labelled images, and of no other
            b = b._replace(unlabelled=tuple(0 * v for v in b.unlabelled))
            m.network.head.weight.data.copy_(torch.eye(5, 7))
            m.network.encoder.layers[3].bias.data.fill_(1.0)
        terms = m.step(b, toy.clock(step + 30), lambda total: total.backward())
        assert terms.metrics["kept"] == 0 and terms.metrics["loss_unlabelled"] == 0
        assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)
        assert torch.isfinite(terms.total) and all(v.isfinite().all() for v in m.state_dict().values())


def test_one_unlabelled_row_and_rows_that_repeat(toy):
    names = ("fixmatch", "spl", "flexmatch", "freematch", "softmatch", "adamatch", "debiaspl", "layermatch", "zeromatch", "pl_feature")
    cases = [(name, {}) for name in names] + [("layermatch", {"averaging": "outputs"}), ("layermatch", {"averaging": "centres"})]
    for name, options in cases:
        m = toy.method(name, **options)
        b = toy.batch(m.views_of(m.config))
        for rows in (slice(0, 1), [0, 0, 0, 1, 1, 0]):
            part = b._replace(
                unlabelled=tuple(v[rows] for v in b.unlabelled),
                unlabelled_index=b.unlabelled_index[rows],
                hidden_label=b.hidden_label[rows],
            )
            terms = m.step(part, toy.clock(1), lambda total: total.backward())
            assert torch.isfinite(terms.total) and all(v.isfinite().all() for v in m.state_dict().values()), name


def test_labelled_shares_need_counts(toy):
    import dataclasses

    kind, spec = find("spl"), dataclasses.replace(toy.spec(), labelled_counts=())
    for options in ({"align": "labelled"}, {"logit_adjustment": 1.0}):
        with pytest.raises(DataError, match="how many labels"):
            kind(kind.Config(**options), toy.network(), spec)


def test_logit_adjustment_of_the_specification(toy):
    """pi (0.9, 0.1), z (1, 0), tau 1: the loss of class 1 is log(1 + 9 e) = 3.2373."""
    import dataclasses

    kind, spec = find("fixmatch"), dataclasses.replace(toy.spec(), classes=("a", "b"), labelled_counts=(9, 1))
    m = kind(kind.Config(logit_adjustment=1.0), toy.network(), spec).double()
    b = toy.batch(m.views)._replace(label=torch.tensor([1]), weight=torch.ones(1))
    assert m.supervised([torch.tensor([[1.0, 0.0]], dtype=torch.float64)], b).item() == pytest.approx(3.2373, abs=5e-5)
