"""MixMatch's common ground in float64, written from the equations: the network's passes, sharpening, the mixed stack. Nothing is fastssl's
but partners and shares, which are random numbers (bricks/noise.py and bricks/mixing.py have their own tests)."""

from types import SimpleNamespace

import numpy as np
import torch

from fastssl.methods.bricks.mixing import drawn
from tests.fastssl.methods import oracle

AT = "network.encoder.layers."


def sharpen(p, temperature):
    return oracle.normalised(p ** (1 / temperature))


class Mixed:
    """A step of MixMatch's kind for `oracle.follow`; a method's own oracle has `loss`. The network is Tiny or Normed, its head linear."""

    own: dict = {}

    def __init__(self, m, toy, **options):
        self.m, self.toy, self.o = m, toy, SimpleNamespace(**{**self.own, **options})
        self.weights = [np.ones(1)]
        self.normed = any("running_mean" in name for name, _ in m.network.named_buffers())
        self.running, self.moves = {"running_mean": np.zeros(9), "running_var": np.ones(9), "num_batches_tracked": 0}, 0
        self.ema = {name: p.detach().clone() for name, p in m.network.named_parameters()} if m.ema is not None else None

    def __call__(self, batch, step, total):
        self.values = {name: p.detach().clone().requires_grad_() for name, p in self.m.named_parameters() if p.requires_grad}
        self.batch, self.step, self.total, self.moves = batch, step, total, 0
        loss = self.loss(batch)
        found = torch.autograd.grad(loss, list(self.values.values()))
        self.gradients = dict(zip(self.values, found, strict=True))
        assert self.moves == (1 if self.normed else 0)
        return loss.item()

    def features(self, x, count=False):
        """One pass; the batch's own statistics, which are kept where it counts."""
        v = self.values
        h = x.flatten(1) @ v[f"{AT}1.weight"].T + v[f"{AT}1.bias"]
        last = 3
        if self.normed:
            mean, var, last = h.mean(0), h.var(0, unbiased=False), 4
            if count:
                self.moves += 1
                self.running["running_mean"] = 0.9 * self.running["running_mean"] + 0.1 * mean.detach().numpy()
                self.running["running_var"] = 0.9 * self.running["running_var"] + 0.1 * h.var(0).detach().numpy()
                self.running["num_batches_tracked"] += 1
            h = v[f"{AT}2.weight"] * (h - mean) / torch.sqrt(var + 1e-5) + v[f"{AT}2.bias"]
        return torch.tanh(h) @ v[f"{AT}{last}.weight"].T + v[f"{AT}{last}.bias"]

    def logits(self, x, count=False):
        return oracle.head(self.values, self.features(x, count))

    def probability(self, x):
        return oracle.softmax(self.logits(x).detach().numpy())

    def stack(self, batch, q):
        """Images and targets of all rows, mixed row by row."""
        x = torch.cat([*batch.labelled, *batch.unlabelled])
        t = np.concatenate([oracle.onehot(batch.label.numpy()), *[q] * len(batch.unlabelled)])
        if self.o.mixup == 0:
            return x, t
        clock = self.toy.clock(self.step, self.total)
        partner, lam = drawn(clock, len(x), self.o.mixup, each=self.o.share_by, device=x.device)
        lam = np.broadcast_to(lam.numpy(), len(x))
        images, targets = [], []
        for i, j in enumerate(partner.tolist()):
            share = max(lam[i], 1 - lam[i])
            if j < len(batch.label):  # a label counts by its weight
                share = 1 - (1 - share) * min(1.0, float(batch.weight[j]))
            images.append(share * x[i] + (1 - share) * x[j])
            targets.append(share * t[i] + (1 - share) * t[j])
        return torch.stack(images), np.stack(targets)

    def interleaved(self, x, first, which):
        """Logits of a stack by sub-batches: rows of each by number, then put back in their places."""
        places = [list(range(first))]
        rest = np.array_split(np.arange(first, len(x)), -(-(len(x) - first) // first))
        places += [part.tolist() for part in rest]
        parts = len(places)
        sizes = [first // parts + (k >= parts - first % parts) for k in range(parts)]
        start = np.concatenate([[0], np.cumsum(sizes)])
        for k in range(1, parts):
            for row in range(start[k], start[k + 1]):
                other = row if len(places[k]) == first else min(start[k], len(places[k]) - sizes[k]) + row - start[k]
                places[0][row], places[k][other] = places[k][other], places[0][row]
        out = [None] * len(x)
        for k, rows in enumerate(places):
            for row, z in zip(rows, self.logits(x[rows], count=k == which % parts), strict=True):
                out[row] = z
        return torch.stack(out)

    def cross_entropy(self, z, t):
        """Rows against soft targets."""
        return (torch.logsumexp(z, 1, keepdim=True) - z).mul(torch.as_tensor(t)).sum(1)

    def ramp(self):
        return min(1.0, self.step / (self.o.ramp_share * self.total)) if self.o.ramp_share else 1.0

    def moved(self):
        if self.ema is not None:
            for name, p in self.m.network.named_parameters():
                self.ema[name] = self.m.ema_decay * self.ema[name] + (1 - self.m.ema_decay) * p.detach()

    def state(self):
        own = {f"{AT}2.{key}": value for key, value in self.running.items()} if self.normed else {}
        return own if self.ema is None else own | {f"ema.{name}": value for name, value in self.ema.items()}
