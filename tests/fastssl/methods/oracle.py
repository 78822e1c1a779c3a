"""Plain float64 calculations for the tests of the methods, written from the papers' equations: nothing here comes of fastssl.

Statistics, thresholds, weights and memory are numpy; the loss is a torch expression, so that its gradient can be compared too.
"""

from types import SimpleNamespace

import numpy as np
import torch

CLASSES, ROWS, UNLABELLED = 5, 40, 32  # of the toy data
COUNTS = np.array([3.0, 2, 1, 1, 1])  # labels of each class
WEIGHT = torch.tensor([1.0, 0.5, 1.0, 0.25])  # of the labelled rows


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def normalised(p):
    return p / p.sum(axis=-1, keepdims=True)


def onehot(label, classes=CLASSES):
    return np.eye(classes)[label]


def cross_entropy(z, label, shift=None):
    """[N] torch rows of -log softmax(z + shift)[label]."""
    z = z if shift is None else z + torch.as_tensor(shift)
    return torch.logsumexp(z, 1) - z[torch.arange(len(z)), torch.as_tensor(label)]


def encoder(values, x, at="network.encoder."):
    w = [values[f"{at}layers.{k}.{kind}"] for k in (1, 3) for kind in ("weight", "bias")]
    return torch.tanh(x.flatten(1) @ w[0].T + w[1]) @ w[2].T + w[3]


def head(values, f, at="network.head."):
    """[N, d] -> [N, C]: cosine where there is a scale, else linear."""
    w = values[f"{at}weight"]
    if f"{at}scale" in values:
        return values[f"{at}scale"] * (f / (f**2).sum(1, keepdim=True).sqrt()) @ (w / (w**2).sum(1, keepdim=True).sqrt()).T
    return f @ w.T + values[f"{at}bias"]


class Marginals:
    """Distribution alignment: marginals move first and are used then; 1e-6 on both sides of the ratio."""

    def __init__(self, target, memory="ema", start="batch"):
        self.target, self.memory, self.start = target, memory, start
        self.model, self.wanted = np.full(CLASSES, 1 / CLASSES), np.full(CLASSES, 1 / CLASSES)
        self.queue, self.steps = np.full((128, CLASSES), 1 / CLASSES), 0

    def ratio(self, mean, known):
        if self.memory == "queue":
            self.queue[self.steps % 128] = mean
            self.model = normalised(self.queue.mean(axis=0))
        elif self.start == "batch" and self.steps == 0:
            self.model = mean
        else:
            self.model = 0.999 * self.model + 0.001 * mean
        self.steps += 1
        if self.target == "predicted":
            self.wanted = 0.999 * self.wanted + 0.001 * known
        goal = COUNTS / COUNTS.sum() if self.target == "labelled" else self.wanted
        return (goal + 1e-6) / (self.model + 1e-6)

    def state(self):
        queue = self.queue if self.memory == "queue" else np.zeros((0, CLASSES))
        place = self.steps % 128 if self.memory == "queue" else 0
        own = {"marginal": self.model, "target_marginal": self.wanted, "queue": queue, "place": place, "begun": self.steps > 0}
        return {f"alignment.{key}": value for key, value in own.items()}


def weigh(kind, c, t, power=1.0):
    """Weight of confidences c against thresholds t."""
    room = np.maximum(0, c - t) / (1 - t)
    if kind == "sigmoid":
        s = [1 / (1 + np.exp(-x)) for x in (10 * (room - 0.5), -5.0, 5.0)]
        return np.where(c >= t, (s[0] - s[1]) / (s[2] - s[1]), 0.0)
    return {"step": (c >= t) * 1.0, "smooth": room**power, "confidence": (c >= t) * c, "none": np.ones_like(c)}[kind]


class Step:
    """The step that FixMatch and its successors share; a successor overrides what differs. Calling it moves its memory.

    Attributes (after a call): `gradients` by parameter name, `label`, `confidence`, `weight` [U], `weights` of all steps so far.
    """

    own: dict = {}

    def __init__(self, m, **options):
        usual = {"threshold": 0.95, "lambda_u": 1.0, "logit_adjustment": 0.0, "weighting": "step", "power": 1.0}
        usual |= {"align": "none", "align_memory": "ema", "align_start": "batch"}
        self.m, self.o, self.weights = m, SimpleNamespace(**{**usual, **self.own, **options}), []
        self.alignment = None if self.o.align == "none" else Marginals(self.o.align, self.o.align_memory, self.o.align_start)

    def __call__(self, batch, step, total):
        self.values = {name: p.detach().clone().requires_grad_() for name, p in self.m.named_parameters() if p.requires_grad}
        self.frozen = {name: p.detach().clone() for name, p in self.m.named_parameters() if not p.requires_grad}
        self.batch, self.step, self.total = batch, step, total
        loss = self.loss(batch)
        found = torch.autograd.grad(loss, list(self.values.values()), allow_unused=True)
        zero = {name: torch.zeros_like(v) for name, v in self.values.items()}
        self.gradients = {n: zero[n] if g is None else g for n, g in zip(self.values, found, strict=True)}
        self.weights.append(self.weight)
        self.after()
        return loss.item()

    def loss(self, batch):
        self.known, self.others = self.outputs(batch)
        known = self.interpolated([z for z, _ in self.known])
        prior = np.log((COUNTS / COUNTS.sum()) ** self.o.logit_adjustment + 1e-12) if self.o.logit_adjustment else None
        supervised = sum((batch.weight * cross_entropy(z, batch.label, prior)).mean() for z in known) / len(known)
        self.p_known, weak = softmax(known[0].detach().numpy()), self.others[0][0].detach().numpy()
        self.label, self.confidence, self.weight = self.judged(weak, softmax(weak))
        rows = cross_entropy(self.student(), self.label, self.shift())
        self.unsupervised = (torch.from_numpy(self.weight) * rows).mean()
        return supervised + self.o.lambda_u * self.ramp() * self.unsupervised + self.extra()

    def outputs(self, batch):
        """(logits, features) of each labelled and of each unlabelled view."""
        known = [self.forward(x, batch.index) for x in batch.labelled]
        return known, [self.forward(x, batch.unlabelled_index) for x in batch.unlabelled]

    def forward(self, x, index):
        f = encoder(self.values, x)
        return head(self.values, f), f

    def interpolated(self, known):
        return known

    def judged(self, z, p):
        """Label, confidence and weight of each row."""
        threshold = self.threshold(p)
        q = self.aligned(p)
        label, c = q.argmax(axis=1), q.max(axis=1)
        return label, c, weigh(self.o.weighting, c, np.broadcast_to(threshold, CLASSES)[label], self.o.power)

    def aligned(self, p):
        if self.alignment is None:
            return p
        return normalised(p * self.alignment.ratio(p.mean(axis=0), self.p_known.mean(axis=0)))

    def threshold(self, p):
        """Of each class, or one for all. May move what thresholds are made of."""
        return self.o.threshold

    def student(self):
        return self.others[1][0]

    def shift(self):
        """What is added to the student's logits."""
        return None

    def ramp(self):
        return 1.0

    def extra(self):
        return 0.0

    def after(self):
        """Memory that moves after use."""

    def moved(self):
        """Memory that moves once the weights have moved."""

    def state(self):
        return {} if self.alignment is None else self.alignment.state()


def follow(m, toy, oracle, *, steps=10, total=100, sharpen=3.0, rate=0.02, tolerance=1e-6, mixed=True):
    """Both over `steps` steps of gradient descent: loss, the gradient of everything that trains, and all memory agree."""
    with torch.no_grad():
        m.network.encoder.layers[-1].weight.mul_(sharpen)

    def update(loss):
        loss.backward()
        for p in m.parameters():
            if p.grad is not None:
                p.data -= rate * p.grad
        for one in m.averages():
            decay = one.decay(torch.tensor(step)) if callable(one.decay) else one.decay
            for own, new in zip(one.average.parameters(), one.source.parameters(), strict=True):
                own.data.copy_(decay * own.data + (1 - decay) * new.data)

    for step in range(steps):
        batch = toy.batch(m.asked, seed=step)._replace(weight=WEIGHT)
        expected = oracle(batch, step, total)
        m.zero_grad()
        terms = m.step(batch, toy.clock(step, total), update)
        assert abs(terms.total.item() - expected) < tolerance * max(1, abs(expected)), step
        for name, p in m.named_parameters():
            if p.requires_grad:
                got = torch.zeros_like(p) if p.grad is None else p.grad
                np.testing.assert_allclose(got, oracle.gradients[name], rtol=tolerance, atol=tolerance, err_msg=f"{step} {name}")
        oracle.moved()
        memory = {k: v.numpy() for k, v in m.state_dict().items() if k not in oracle.values}
        wanted = oracle.state()
        assert memory.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_allclose(memory[key], value, rtol=tolerance, atol=1e-12, err_msg=f"{step} {key}")
    kept = np.concatenate(oracle.weights)
    assert not mixed or (0 < (kept > 0).mean() < 1 and 0 < np.mean(kept)), "rows must lie on both sides of the threshold"
