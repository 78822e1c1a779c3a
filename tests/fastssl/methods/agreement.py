"""Plain float64 calculations for the tests of the consistency methods, written from the equations; `oracle.follow` compares them.

The toy networks are forwarded by hand, batch-norm included: by the statistics of a batch, which one pass a step averages.
"""

from types import SimpleNamespace

import numpy as np
import torch

from fastssl.methods.bricks.consistency import noisy
from tests.fastssl.methods import oracle

SHARE = oracle.COUNTS.sum() / oracle.UNLABELLED  # labelled over training images


class Agreement:
    """One step of a method whose predictions must agree; a method says its `loss`. Calling it moves what it remembers.

    Attributes: `values` what trains by name, `gradients` after a call, `average` the teacher's weights, `done` steps.
    """

    own: dict = {}

    def __init__(self, m, toy, **options):
        usual = {"lambda_u": 100.0, "ramp": "gauss", "ramp_share": 80 / 300, "labels_share": True, "reduction": "batch", "noise": 0.0}
        self.o = SimpleNamespace(**{**usual, **self.own, **options})
        self.m, self.toy, self.done, self.weights = m, toy, 0, [np.ones(1)]
        self.normed = m.network.has_batchnorm
        self.average = {} if m.ema is None else {name: p.detach().clone() for name, p in m.ema.named_parameters()}
        self.running = {
            net: {"running_mean": np.zeros(9), "running_var": np.ones(9), "num_batches_tracked": 0} for net in ("network", "ema")
        }

    def __call__(self, batch, step, total):
        self.values = {name: p.detach().clone().requires_grad_() for name, p in self.m.named_parameters() if p.requires_grad}
        self.step, self.total, self.clock = step, total, self.toy.clock(step, total)
        loss = self.loss(batch)
        found = torch.autograd.grad(loss, list(self.values.values()))
        self.gradients = dict(zip(self.values, found, strict=True))
        return loss.item()

    def together(self, views, *, net="network", moves=False):
        """[(logits, features)] of views that are one batch of a network."""
        weights = self.values if net == "network" else {f"network.{name}": v for name, v in self.average.items()}
        at, last = "network.encoder.layers.", 4 if self.normed else 3
        h = torch.cat(views).flatten(1) @ weights[f"{at}1.weight"].T + weights[f"{at}1.bias"]
        if self.normed:
            mean, var = h.mean(0), h.var(0, unbiased=False)
            if moves:
                kept, found = self.running[net], {"running_mean": mean, "running_var": h.var(0)}
                kept.update({name: 0.9 * kept[name] + 0.1 * value.detach().numpy() for name, value in found.items()})
                kept["num_batches_tracked"] += 1
            h = weights[f"{at}2.weight"] * (h - mean) / torch.sqrt(var + 1e-5) + weights[f"{at}2.bias"]
        f = torch.tanh(h) @ weights[f"{at}{last}.weight"].T + weights[f"{at}{last}.bias"]
        sizes = [len(x) for x in views]
        return list(zip(oracle.head(weights, f).split(sizes), f.split(sizes), strict=True))

    def noised(self, views, index, use):
        """Views with noise, whose numbers are fastssl's."""
        numbers = noisy(tuple(torch.zeros_like(x) for x in views), index, 1.0, self.clock, use=use)
        return [x + self.o.noise * n for x, n in zip(views, numbers, strict=True)]

    def weight(self):
        u = min(1.0, self.step / (self.o.ramp_share * self.total))
        up = {"gauss": np.exp(-5 * (1 - u) ** 2), "linear": u, "none": 1.0}[self.o.ramp]
        return self.o.lambda_u * up * (SHARE if self.o.labels_share else 1.0)

    def sums(self, labelled, rows):
        """Labelled plus weighted unlabelled term of their rows; `rows` are of all images under "batch"."""
        return labelled.sum() / (len(rows) if self.o.reduction == "batch" else len(labelled)) + self.weight() * rows.mean()

    def moved(self):
        """The teacher moves once the weights have: k steps done, min(1 - 1 / (k + 1), decay)."""
        self.done += 1
        one = np.float32(1)  # the clock's numbers are float32, whose rounding would show in weights near zero
        a = min(one - one / np.float32(self.done + 1), np.float32(self.decay()))
        for name, p in self.m.network.named_parameters():
            if name in self.average:
                self.average[name] = float(a) * self.average[name] + (1 - float(a)) * p.detach()

    def decay(self):
        return 0.999

    def state(self):
        nets = ["network"] + ["ema"] * bool(self.average)
        own = {f"{net}.encoder.layers.2.{name}": v for net in nets for name, v in self.running[net].items()} if self.normed else {}
        return own | {f"ema.{name}": v for name, v in self.average.items()}


def rows_of_labels(z, batch):
    return batch.weight * oracle.cross_entropy(z, batch.label)


def squared(z, q):
    """[N] mean over classes of the squared difference of softmax(z) and probabilities q."""
    return ((torch.softmax(z, 1) - q) ** 2).sum(1) / z.shape[1]


def encoders(toy):
    """Without batch-norm and with it."""
    return {"plain": {}, "batch-norm": {"encoder": toy.Normed}}
