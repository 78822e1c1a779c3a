"""DivideMix's two networks in float64, written out, and the toy data that they divide. Nothing is fastssl's but MixUp's partners and
shares, which are random numbers (bricks/mixing.py has its own tests)."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import torch

from fastssl.methods import find
from fastssl.methods.bricks.mixing import drawn
from fastssl.models import Output
from fastssl.pipelines.batch import Split
from tests.fastssl.methods import oracle
from tests.fastssl.methods.oracle_mixed import sharpen

ROWS, CLASSES = 40, 5
KNOWN = np.arange(30)  # rows 30 to 35 have no label, 36 to 39 are test
IMAGES = torch.randn(ROWS, 3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
SPLIT = Split(KNOWN, KNOWN % CLASSES, np.ones(30, np.float32), np.arange(36), np.arange(36, 40), "drawn")
NAMES = ("network", "second")


def looking(m, split=SPLIT, *, easy=None, lost=(), spoil=()):
    """A Look on the toy images. `easy`: network -> rows whose logits favour the label that the split gives; all of them lose by 6."""

    def look(rows, network, reduce):
        assert not np.isin(rows, split.test).any() and len(rows)
        index = torch.from_numpy(np.setdiff1d(rows, lost))
        given = torch.full((ROWS,), -1)
        given[torch.from_numpy(split.labelled)] = torch.from_numpy(split.label)
        kept = network.training
        network.eval()
        with torch.no_grad():
            out = network(IMAGES[index])
        network.train(kept)
        side = NAMES[0] if network is m.network else NAMES[1]
        if side in (easy or {}):
            gain = torch.where(torch.isin(index, torch.tensor(easy[side])), 6.0, -6.0)
            out = Output(0.1 * out.logits + gain[:, None] * torch.nn.functional.one_hot(given[index], CLASSES), out.features)
        out = Output(*(torch.where(torch.isin(index, torch.tensor(spoil))[:, None], torch.nan, t) for t in out)) if len(spoil) else out
        found = reduce(out, given[index], index)
        return index, *(found if isinstance(found, tuple) else (found,))

    look.split, look.pipeline = split, SimpleNamespace(ratio=1, batch_size=6)
    return look


def made(toy, encoder=None, ema=0.0, **options):
    kind = find("dividemix")
    spec = dataclasses.replace(toy.spec(), labelled_counts=(6,) * CLASSES, unlabelled=36)
    encoder = {} if encoder is None else {"encoder": encoder}
    nets = [toy.network("linear", seed, **encoder) for seed in (0, 1)]
    return kind(kind.Config(**options), nets[0], spec, second=nets[1], unlabelled_batch=6, ema=ema).double().train()


class Oracle:
    """The two networks, written out; `at` names the one that trains."""

    def __init__(self, m, toy, at, **options):
        usual = {"lambda_u": 25.0, "mixup": 4.0, "temperature": 0.5, "ramp_epochs": 16.0, "penalty": 1.0, "warmup_penalty": 0.0}
        self.m, self.toy, self.at, self.o = m, toy, at, SimpleNamespace(**{**usual, **options})
        self.weights, self.epoch, self.begun, self.length = [np.ones(1)], 0, 0, 6
        self.normed = any("running_mean" in name for name, _ in m.named_buffers())
        norms = {name: value.clone().numpy() for name, value in m.named_buffers() if "layers.2." in name}
        self.running = norms

    def __call__(self, batch, step, total):
        self.values = {name: p.detach().clone().requires_grad_() for name, p in self.m.named_parameters()}
        self.step = step
        loss = self.loss(batch) if len(batch.labelled) == 2 else self.warm(batch)
        found = torch.autograd.grad(loss, list(self.values.values()), allow_unused=True)
        self.gradients = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(self.values.items(), found, strict=True)}
        return loss.item()

    def logits(self, x, at, how):
        """how: moved (by the batch, and counted), batch, eval."""
        layers, last = f"{at}.encoder.layers.", 3
        h = x.flatten(1) @ self.values[f"{layers}1.weight"].T + self.values[f"{layers}1.bias"]
        if self.normed:
            last, own = 4, {key: f"{layers}2.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")}
            if how == "eval":
                mean, var = (torch.from_numpy(self.running[own[key]]) for key in ("running_mean", "running_var"))
            else:
                mean, var = h.mean(0), h.var(0, unbiased=False)
            if how == "moved":
                for key, value in (("running_mean", mean), ("running_var", h.var(0))):
                    self.running[own[key]] = 0.9 * self.running[own[key]] + 0.1 * value.detach().numpy()
                self.running[own["num_batches_tracked"]] = self.running[own["num_batches_tracked"]] + 1
            h = self.values[f"{layers}2.weight"] * (h - mean) / torch.sqrt(var + 1e-5) + self.values[f"{layers}2.bias"]
        f = torch.tanh(h) @ self.values[f"{layers}{last}.weight"].T + self.values[f"{layers}{last}.bias"]
        return f @ self.values[f"{at}.head.weight"].T + self.values[f"{at}.head.bias"]

    def warm(self, batch):
        z = self.logits(batch.labelled[0], self.at, "moved")
        p = torch.softmax(z, 1)
        return (batch.weight * oracle.cross_entropy(z, batch.label)).mean() + self.o.warmup_penalty * (p * p.log()).sum(1).mean()

    def loss(self, batch):
        p = lambda x, at, how: oracle.softmax(self.logits(x, at, how).detach().numpy())  # noqa: E731
        other, (x1, x2), (u1, u2) = NAMES[1 - NAMES.index(self.at)], batch.labelled, batch.unlabelled
        w = np.minimum(batch.weight.double().numpy(), 1)[:, None]
        refined = w * oracle.onehot(batch.label.numpy()) + (1 - w) * (p(x1, self.at, "batch") + p(x2, self.at, "batch")) / 2
        t = sharpen(refined, self.o.temperature)
        both = torch.cat([u1, u2])
        theirs = p(both, other, "eval").reshape(2, len(u1), -1).sum(0)
        q = sharpen((p(u1, self.at, "batch") + p(u2, self.at, "batch") + theirs) / 4, self.o.temperature)
        x, target = torch.cat([x1, x2, u1, u2]), torch.from_numpy(np.concatenate([t, t, q, q]))
        if self.o.mixup:
            partner, share = drawn(self.toy.clock(self.step), len(x), self.o.mixup, device=x.device)
            share = max(float(share), 1 - float(share))
            x, target = share * x + (1 - share) * x[partner], share * target + (1 - share) * target[partner]
        z, b = self.logits(x, self.at, "moved"), 2 * len(batch.label)
        supervised = -(target[:b] * torch.log_softmax(z[:b], 1)).sum(1).mean()
        squares = ((torch.softmax(z[b:], 1) - target[b:]) ** 2).mean()
        mean = torch.softmax(z, 1).mean(0)
        penalty = ((1 / CLASSES) * torch.log((1 / CLASSES) / mean)).sum()
        epochs = self.epoch + (self.step - self.begun) / self.length
        ramp = min(1.0, epochs / self.o.ramp_epochs) if self.o.ramp_epochs else 1.0
        return supervised + self.o.lambda_u * ramp * squares + self.o.penalty * penalty

    def moved(self):
        pass

    def state(self):
        kept = {name: value.numpy() for name, value in self.m.named_buffers() if name.startswith(("verdicts.", "epochs."))}
        return {**kept, **self.running}
