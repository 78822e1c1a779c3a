"""SimCLR's stages once more, in float64 from the papers' equations: nothing of the mathematics comes of fastssl."""

import numpy as np
import torch

from fastssl.methods import find
from fastssl.models import Network
from fastssl.models.heads import make_head
from tests.fastssl.methods.oracle import WEIGHT, cross_entropy, encoder

RATE = 0.05


def network(toy, head="linear", seed=0, kind=None):
    torch.manual_seed(seed)
    made = toy.network("linear", seed, *([kind] if kind else []))
    return Network(made.encoder, make_head(head, 7, 5, scale=14.0, width=6)).double()


def made(toy, name, head="linear", *, ema=0.0, kind=None, teacher=False, **options):
    """The method on a toy network, ready to enter its first stage."""
    of = find(name)
    config = of.Config(**{"width": 4, "temperature": 0.3, **options})
    further = {"teacher": network(toy, head, 5, kind)} if teacher else {}
    torch.manual_seed(3)
    return of(config, network(toy, head, 0, kind), toy.spec(), unlabelled_batch=6, ema=ema, **further).double().train()


def normed(x, weight, bias=None):
    """Batch-norm by the batch."""
    mean, var = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
    out = (x - mean) / (var + 1e-5).sqrt() * weight
    return out if bias is None else out + bias


class Oracle:
    """Losses, gradients and running statistics of a stage's steps, one after the other.

    Attributes:
        gradients: name -> gradient of the last step, of all that trains.
        statistics: (mean, variance) of the hidden layer of the head that learns, None where it has none.
    """

    def __init__(self, m):
        self.m, self.c, self.projected = m, m.config, hasattr(m.network.head, "hidden")
        start = m.get_submodule(m.learner).head
        self.statistics = (start.norm.running_mean.clone(), start.norm.running_var.clone()) if self.projected else None
        self.teacher = None  # values, and statistics of its hidden layer

    def __call__(self, stage, batch, at):
        self.values = {name: p.detach().clone().requires_grad_() for name, p in self.m.named_parameters() if p.requires_grad}
        self.all = {name: p.detach().clone() for name, p in self.m.named_parameters()} | self.values
        loss = getattr(self, stage)(batch, at)
        found = torch.autograd.grad(loss, list(self.values.values()), allow_unused=True)
        zero = {name: torch.zeros_like(v) for name, v in self.values.items()}
        self.gradients = {n: zero[n] if g is None else g for n, g in zip(self.values, found, strict=True)}
        return loss.item()

    def hidden(self, f, at, *, moves=True):
        v = {name: self.all[f"{at}.head.{name}"] for name in ("linear.weight", "norm.weight", "norm.bias")}
        h = f @ v["linear.weight"].T
        if moves:
            mean, var = self.statistics
            batch = h.detach()
            self.statistics = (0.9 * mean + 0.1 * batch.mean(0), 0.9 * var + 0.1 * batch.var(0, unbiased=True))
        return torch.relu(normed(h, v["norm.weight"], v["norm.bias"]))

    def contrast(self, batch, at):
        f = torch.cat([encoder(self.all, x, f"{at}.encoder.") for x in batch.unlabelled])
        shared = getattr(self.c, "fine_tune_from", 0)
        h = self.hidden(f, at, moves=bool(shared)) if self.projected else f
        h = h if shared else f
        left = self.c.layers - shared
        for k in range(left):
            v = lambda j, name: self.all[f"projection.layers.{j}.{name}"]  # noqa: E731
            last = k == left - 1
            h = normed(h @ v(3 * k, "weight").T, v(3 * k + 1, "weight"), None if last else v(3 * k + 1, "bias"))
            h = h if last else torch.relu(h)
        h = h / (h**2).sum(1, keepdim=True).sqrt()
        n, total = len(h) // 2, 0.0
        for i in range(2 * n):
            s = h @ h[i] / self.c.temperature
            others = [k for k in range(2 * n) if k != i]
            total = total + torch.logsumexp(s[others], 0) - s[(i + n) % (2 * n)]
        return total / (n if self.c.reduction == "pairs" else 2 * n)

    def logits(self, x, at):
        """[N, C] of each of several inputs that run as one batch."""
        f = encoder(self.all, torch.cat(list(x)), f"{at}.encoder.")
        f = self.hidden(f, at) if self.projected else f
        name = "head.classifier" if self.projected else "head"
        z = f @ self.all[f"{at}.{name}.weight"].T + self.all[f"{at}.{name}.bias"]
        return z.split([len(part) for part in x])

    def fine_tune(self, batch, at):
        (z,) = self.logits(batch.labelled, at)
        return (batch.weight * cross_entropy(z, batch.label)).mean()

    def teach(self, values, statistics):
        """Takes what the teacher is from now on."""
        self.teacher = ({name: value.detach().clone() for name, value in values.items()}, statistics)

    def taught(self, x):
        values, statistics = self.teacher
        f = encoder(values, x, "encoder.")
        if statistics is not None:
            h = (f @ values["head.linear.weight"].T - statistics[0]) / (statistics[1] + 1e-5).sqrt()
            f = torch.relu(h * values["head.norm.weight"] + values["head.norm.bias"])
        name = "head.classifier" if statistics is not None else "head"
        return f @ values[f"{name}.weight"].T + values[f"{name}.bias"]

    def distil(self, batch, at):
        *known, z = self.logits([*batch.labelled, *batch.unlabelled], "network")
        t = self.c.distil_temperature
        q = torch.softmax(self.taught(batch.unlabelled[0]) / t, 1)
        loss = self.c.alpha * -(q * torch.log_softmax(z / t, 1)).sum(1).mean() * (t**2 if self.c.distil_square else 1)
        if known:
            loss = loss + (1 - self.c.alpha) * (batch.weight * cross_entropy(known[0], batch.label)).mean()
        return loss


def follow(m, toy, oracle, stage, *, steps=10):
    """Both over the steps of a stage that was entered, by gradient descent: loss, gradients and running statistics agree."""
    trained = {name for name, p in m.named_parameters() if p.requires_grad and name.split(".")[0] in stage.networks}

    def update(loss):
        loss.backward()
        for name, p in m.named_parameters():
            if name in trained and p.grad is not None:
                p.data -= RATE * p.grad

    for step in range(steps):
        batch = toy.batch(m.asked, seed=step)._replace(weight=WEIGHT)
        expected = oracle(stage.name, batch, m.learner)
        m.zero_grad()
        terms = m.step(batch, toy.clock(step), update)
        assert abs(terms.total.item() - expected) < 1e-9 * max(1, abs(expected)), (stage.name, step)
        for name, p in m.named_parameters():
            got = torch.zeros_like(p) if p.grad is None else p.grad
            wanted = oracle.gradients[name] if name in trained else torch.zeros_like(p)
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-9, err_msg=f"{stage.name} {step} {name}")
        assert sum(float(oracle.gradients[name].abs().sum()) for name in trained) > 0
        if oracle.statistics is not None:
            norm = m.get_submodule("network" if stage.name == "distil" else m.learner).head.norm
            np.testing.assert_allclose(norm.running_mean, oracle.statistics[0], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(norm.running_var, oracle.statistics[1], rtol=1e-9, atol=1e-12)
