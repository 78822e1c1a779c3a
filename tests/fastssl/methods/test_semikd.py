"""SemiKD against a float64 calculation over three windows; what moves a where steps are skipped or accumulated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastssl.methods.semikd import fresh
from fastssl.models.heads import CosineHead, LinearHead
from tests.fastssl.methods import oracle
from tests.fastssl.methods.oracle import cross_entropy, onehot, softmax


class Oracle(oracle.Step):
    """FineSSL's terms with margins of alpha_0 a, the teacher's two heads, and a itself. Learning pace from a dictionary."""

    own = {"gamma": 1.0, "margin_scale": 10.0, "distil_weight": 5.0, "share": 0.5, "smoothing": 0.5, "threshold": 0.7}

    def __init__(self, m, **options):
        super().__init__(m, **options)
        self.a, self.window, self.windows, self.bank, self.beta = self.o.share, [], [], {}, np.zeros(oracle.CLASSES)
        self.last = -1

    def loss(self, batch):
        v, fixed = self.values, self.frozen
        (x, known), ((w, weak), (s, strong)) = self.outputs(batch)[0][0], self.outputs(batch)[1][:2]
        a_x, a_w, a_s = (oracle.head(v, f.detach(), "auxiliary.") for f in (known, weak, strong))
        t_w, t_s = (oracle.encoder(fixed, u, "teacher.network.encoder.") for u in batch.unlabelled[:2])
        main, auxiliary = oracle.head(fixed, t_w, "teacher.network.head."), oracle.head(fixed, t_w, "teacher.auxiliary.")

        counts = np.bincount(list(self.bank.values()), minlength=oracle.CLASSES) if self.bank else np.zeros(oracle.CLASSES)
        if counts.max() > 0:
            self.beta = counts / counts.max()
        margin = self.o.margin_scale * self.a * (self.beta.max() - self.beta.min()) * (1 - self.beta) / (1 + self.beta)

        def balanced(z, label):
            return cross_entropy(z, label, margin[label][:, None] * (1 - onehot(label)))

        p = softmax(w.detach().numpy())
        label, sigma, omega = p.argmax(axis=1), p.max(axis=1), softmax(a_w.detach().numpy()).max(axis=1)
        sure = torch.from_numpy((sigma >= self.o.threshold) * 1.0)
        target = torch.from_numpy(onehot(label) * (1 - self.o.smoothing) + (1 - onehot(label)) * self.o.smoothing / (oracle.CLASSES - 1))
        l_x = (batch.weight * balanced(x, batch.label.numpy())).mean()
        l_x1 = (batch.weight * cross_entropy(a_x, batch.label)).mean()
        l_u = (torch.from_numpy(omega) * balanced(s, label)).mean()
        l_u1 = (sure * -(target * a_s.log_softmax(1)).sum(1)).sum() / max(1.0, sure.sum().item())
        kd = -(main.softmax(1) * w.log_softmax(1)).sum(1).mean() - (auxiliary.softmax(1) * a_w.log_softmax(1)).sum(1).mean()
        theirs = cross_entropy(oracle.head(fixed, t_s, "teacher.network.head."), main.argmax(1)).mean().item()
        self.window.append(theirs / cross_entropy(s.detach(), label).mean().item())
        for row, k, c in zip(batch.unlabelled_index.tolist(), label, sigma, strict=True):
            if c >= 0.7:
                self.bank[row] = k
        self.weight = sure.numpy()
        return l_x + l_x1 + self.o.distil_weight * ((1 - self.a) * kd + self.a * (self.o.gamma * l_u + l_u1))

    def moved(self):
        if len(self.window) == 10:
            self.windows.append(self.a)
            self.a = min(1.0, max(0.0, 0.99 * self.a + 0.01 * np.mean(self.window) * self.a))
            self.window, self.last = [], self.step

    def state(self):
        bank = np.full(oracle.ROWS, -1)
        bank[list(self.bank)] = list(self.bank.values())
        counts = np.bincount(list(self.bank.values()), minlength=oracle.CLASSES)
        own = {"portion": self.a, "ratio": sum(self.window), "seen": len(self.window), "moved": self.last}
        return own | {"pace.pace": self.beta, "pace.counts": counts, "pace.bank": bank} | {k: v.numpy() for k, v in self.frozen.items()}


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5, "margin_scale": 4.0, "distil_weight": 2.0, "share": 0.8}], ids=str)
def test_three_windows_equal_the_float64_calculation(toy, options):
    m = toy.method("semikd", pace_reset=0, **options)
    expected = Oracle(m, **options)
    oracle.follow(m, toy, expected, steps=30, sharpen=4.0)
    assert len({*expected.windows, expected.a}) == 4, "a moved with each window"


def ratios(toy, m, given):
    """Lets `m` remember the ratios given by step: a list a step, of its pieces; none where the step was skipped."""
    b = toy.batch(m.views)
    terms = m.loss(b, toy.clock())
    for step, pieces in given.items():
        for value in pieces:
            terms.memory["ratio"] = torch.tensor(value, dtype=torch.float64)
            m.remember(b, terms, toy.clock(step))
    return m


def test_a_moves_once_a_window_by_the_mean_of_the_ratios_there_were(toy):
    def share(given):
        return ratios(toy, toy.method("semikd"), given).portion.item()

    once = 0.99 * 0.5 + 0.01 * 1.5 * 0.5
    assert share({step: [1.0 + step % 2] for step in range(9)}) == 0.5
    assert share({step: [1.0 + step % 2] for step in range(10)}) == pytest.approx(once, rel=1e-12)
    # The step that would have ended the window was skipped: it goes on to the next one's end, and is a mean all the same.
    assert share({step: [1.0 + step % 2] for step in range(20) if step not in (9, 12)}) == pytest.approx(once, rel=0.002)
    # Two pieces a step: one move.
    assert share({step: [1.0, 2.0] for step in range(10)}) == pytest.approx(0.99 * 0.5 + 0.01 * (28 / 19) * 0.5, rel=1e-12)
    assert share({step: [500.0] for step in range(10)}) == 1.0


def test_the_students_heads_start_apart_and_at_random(toy):
    m = toy.method("semikd")
    assert (m.auxiliary.weight - m.network.head.weight).abs().min() > 0
    torch.manual_seed(0)
    for head in (LinearHead(7, 5), CosineHead(7, 5)):
        other = fresh(head)
        assert type(other) is type(head) and other.weight.shape == head.weight.shape
        assert (other.weight - head.weight).abs().min() > 0 and other.weight.requires_grad


def test_the_teacher_is_still(toy):
    m = toy.method("semikd").train()
    assert not m.teacher.training and not any(p.requires_grad for p in m.teacher.parameters())
    m.loss(toy.batch(m.views), toy.clock()).total.backward()
    assert all(p.grad is None for p in m.teacher.parameters())
