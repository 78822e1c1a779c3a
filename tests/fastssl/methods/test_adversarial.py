"""Adversarial training against a float64 calculation over ten steps: both norms, units, clipping, batch-norm."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.apart_oracle import Apart, norms

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)


def column(values):
    return torch.tensor(values, dtype=torch.float64).view(3, 1, 1)


class Oracle(Apart):
    """In pixels: x_pix = x std + mean, the gradient there is that of x over std."""

    own = {"norm": "linf", "epsilon": None, "units": "pixels", "share": 0.5, "clip": False}

    def loss(self, batch):
        x, mean, std = batch.labelled[0], column(MEAN), column(STD)
        size = {"linf": 8 / 255, "l2": 128 / 255}[self.o.norm] if self.o.epsilon is None else self.o.epsilon
        clean = self.supervised(batch)
        at = x.clone().requires_grad_()
        rows = batch.weight * oracle.cross_entropy(self.net(at, constant=True), batch.label)
        (g,) = torch.autograd.grad(rows.sum(), at)
        scale = std if self.o.units == "pixels" else torch.ones_like(std)
        pixels = (x * std + mean) if self.o.units == "pixels" else x
        g = g / scale
        pixels = pixels + size * (g.sign() if self.o.norm == "linf" else g / norms(g))
        moved = (pixels - mean) / std if self.o.units == "pixels" else pixels
        if self.o.clip:
            moved = ((moved * std + mean).clamp(0, 1) - mean) / std
        perturbed = (batch.weight * oracle.cross_entropy(self.net(moved), batch.label)).mean()
        return self.o.share * clean + (1 - self.o.share) * perturbed


FORMS = [
    {},
    {"norm": "l2", "epsilon": 0.8},
    {"epsilon": 0.1, "clip": True, "share": 0.3},
    {"norm": "l2", "epsilon": 1.5, "units": "normalised", "clip": True},
    {"epsilon": 0.25, "units": "normalised", "share": 0.0},
]


def made(toy, normed=False, **options):
    """The method on data with constants of its own."""
    kind = find("adversarial")
    spec = dataclasses.replace(toy.spec(), mean=MEAN, std=STD)
    network = toy.network(**({"encoder": toy.Normed} if normed else {}))
    return kind(kind.Config(**options), network, spec).double()


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options, normed):
    m = made(toy, normed, **options)
    # Images in [0, 1] as the network sees them, so that clipping touches the borders alone.
    inside = lambda views, seed: _inside(toy.batch(views, seed))  # noqa: E731
    oracle.follow(m, SimpleNamespace(batch=inside, clock=toy.clock), Oracle(m, normed, **options), mixed=False)


def _inside(b):
    view = (torch.sigmoid(3 * b.labelled[0]) - column(MEAN)) / column(STD)
    return b._replace(labelled=(view,))


def moved(m, b, **weight):
    return m.moved(b.labelled[0], b.label, weight.get("weight", b.weight))


def test_every_pixel_moves_by_epsilon_in_pixel_units(toy):
    b = _inside(toy.batch(find("adversarial").views))
    step = (moved(made(toy, epsilon=0.03), b) - b.labelled[0]) * column(STD)
    np.testing.assert_allclose(step.abs(), 0.03, rtol=1e-7)
    np.testing.assert_allclose(norms((moved(made(toy, norm="l2", epsilon=0.5), b) - b.labelled[0]) * column(STD)), 0.5, rtol=1e-6)
    clipped = moved(made(toy, epsilon=0.3, clip=True), b) * column(STD) + column(MEAN)
    assert clipped.min() >= -1e-6 and clipped.max() <= 1 + 1e-6
    assert (clipped < 1e-6).any() and (clipped > 1 - 1e-6).any()
    free = moved(made(toy, epsilon=0.3), b) * column(STD) + column(MEAN)
    assert free.min() < -0.1 and free.max() > 1.1


def test_the_loss_rises_where_the_images_go_and_the_direction_has_no_gradient(toy):
    m = made(toy, epsilon=0.1)
    b = _inside(toy.batch(m.asked))
    images = b.labelled[0].clone().requires_grad_()
    new = m.moved(images, b.label, b.weight)
    (slope,) = torch.autograd.grad(new.sum(), images)
    assert torch.equal(slope, torch.ones_like(slope)), "r is a constant"
    assert all(p.grad is None for p in m.parameters())
    terms = m.loss(b, toy.clock())
    assert terms.metrics["loss_adversarial"] > terms.metrics["loss_labelled"]


def test_the_perturbed_term_trains_the_weights(toy):
    """With share 0 it is all there is: its gradient is neither zero nor the clean term's."""
    found = []
    for share in (0.0, 1.0):
        m = made(toy, share=share, epsilon=0.3)
        m.loss(_inside(toy.batch(m.asked)), toy.clock()).total.backward()
        found.append(m.network.encoder.layers[1].weight.grad)
    assert found[0].abs().sum() > 0 and not torch.allclose(found[0], found[1], rtol=1e-2)


def test_a_row_without_weight_or_gradient_stays(toy):
    b = _inside(toy.batch(find("adversarial").views))
    for norm in ("linf", "l2"):
        new = moved(made(toy, norm=norm), b, weight=torch.tensor([1.0, 0.0, 1.0, 1.0]))
        same = (new == b.labelled[0]).flatten(1).all(1)
        assert same.tolist() == [False, True, False, False]


def test_a_direction_of_tiny_gradients_has_full_length(toy):
    """Squares of 1e-30 are 0 in fp32."""
    m = made(toy, norm="l2", epsilon=1.0, units="normalised").float()
    b = _inside(toy.batch(m.asked))
    b = b._replace(labelled=(b.labelled[0].float(),))
    weight = torch.full((4,), 1e-30)
    np.testing.assert_allclose(norms(moved(m, b, weight=weight) - b.labelled[0]), 1.0, rtol=1e-4)


def test_usual_sizes_and_the_one_that_must_be_said(toy):
    assert made(toy).epsilon == 8 / 255 and made(toy, norm="l2").epsilon == 128 / 255
    assert made(toy, epsilon=0.1, units="normalised").epsilon == 0.1
    with pytest.raises(ConfigError, match="method.units=normalised needs method.epsilon"):
        made(toy, units="normalised")
