"""FineSSL against a calculation in numpy float64 written from the equations, over steps that share a learning pace."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks.pace import LearningPace


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cosine(weight, scale, f):
    return scale * (f / np.linalg.norm(f, axis=1, keepdims=True)) @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T


def cross_entropy(target, z):
    return -(target * np.log(softmax(z))).sum(axis=1)


def onehot(y, classes):
    return np.eye(classes)[y]


class Oracle:
    """The official trainer's bookkeeping, with a list as the bank."""

    def __init__(self, rows, unlabelled, classes, reset):
        self.bank = {i: -1 for i in unlabelled}
        self.beta = np.zeros(classes)
        self.classes, self.reset = classes, reset

    def margins(self, step, form="code"):
        if self.reset and step % self.reset == 0:
            self.bank = dict.fromkeys(self.bank, -1)
            self.beta = np.zeros(self.classes)
        if len(set(self.bank.values())) > 1:
            n = np.array([sum(b == k for b in self.bank.values()) for k in range(self.classes)])
            self.beta = n / n.max()
        shape = (1 - self.beta) / (1 + self.beta) if form == "code" else 1 - self.beta
        return 8.0 * (self.beta.max() - self.beta.min()) * shape

    def write(self, index, label, confidence):
        for i, y, s in zip(index, label, confidence, strict=True):
            if s >= 0.7:
                self.bank[i] = y


def oracle_loss(m, batch, margin, *, gamma=3.0, eps=0.5, th=0.7, paper_smoothing=False):
    def features(x):
        with torch.no_grad():
            return m.network.encoder(x).numpy()

    def heads(f):
        h, a = m.network.head, m.auxiliary
        return (
            cosine(h.weight.detach().numpy(), h.scale.item(), f),
            cosine(a.weight.detach().numpy(), a.scale.item(), f),
        )

    classes = m.spec.num_classes
    zx, ax = heads(features(batch.labelled[0]))
    zw, aw = heads(features(batch.unlabelled[0]))
    strong = [heads(features(v)) for v in batch.unlabelled[1:]]
    y = onehot(batch.label.numpy(), classes)

    def balanced(z, labels):
        shifted = z + margin[labels][:, None] * (1 - onehot(labels, classes))
        return cross_entropy(onehot(labels, classes), shifted)

    loss_x = balanced(zx, batch.label.numpy()).mean()
    loss_x1 = cross_entropy(y, ax).mean()
    p = softmax(zw)
    label, sigma = p.argmax(axis=1), p.max(axis=1)
    omega = softmax(aw).max(axis=1)
    loss_u = np.mean([omega * balanced(z, label) for z, _ in strong])
    if paper_smoothing:
        target = (1 - eps) * onehot(label, classes) + eps / classes
    else:
        target = onehot(label, classes) * (1 - eps) + (1 - onehot(label, classes)) * eps / (classes - 1)
    sure = sigma >= th
    loss_u1 = np.mean([cross_entropy(target, a)[sure] for _, a in strong]) if sure.any() else 0.0
    return loss_x + loss_x1 + gamma * loss_u + loss_u1, label, sigma


@pytest.mark.parametrize("form", ["bank", "counter"])
def test_ten_steps_equal_the_float64_calculation(toy, form):
    m = toy.method("finessl", pace_reset=4, pace_form=form)
    with torch.no_grad():
        m.network.encoder.layers[3].weight.mul_(4)  # features apart, so that some confidences pass 0.7 and some do not
        m.auxiliary.weight.add_(0.1 * torch.randn_like(m.auxiliary.weight))
    spec = toy.spec()
    oracle = Oracle(spec.rows, range(8, spec.rows), spec.num_classes, reset=4)
    margins, seen = [], 0
    for step in range(10):
        b = toy.batch(m.views, seed=step)
        # distinct rows within a reset period, so that counter and bank are the same thing
        b = b._replace(unlabelled_index=8 + (torch.arange(6) + 6 * (step % 4)) % (spec.rows - 8))
        margin = oracle.margins(step)
        expected, label, sigma = oracle_loss(m, b, margin)
        terms = m.step(b, toy.clock(step), lambda total: None)
        assert abs(terms.total.item() - expected) < 1e-10 * max(1, abs(expected)), step
        oracle.write(b.unlabelled_index.tolist(), label, sigma)
        margins.append(margin.max())
        seen += (sigma >= 0.7).sum()
    assert 0 < seen < 60 and max(margins) > 1, "the test must exercise thresholds and margins"


def test_a_row_that_comes_twice_takes_its_last_label(toy):
    spec = toy.spec()
    pace = LearningPace(spec, threshold=0.7, reset=0, form="bank")
    index = torch.tensor([9, 9, 10, 9])
    label = torch.tensor([0, 1, 2, 3])
    pace.write(index, label, torch.tensor([0.9, 0.9, 0.9, 0.2]), torch.zeros(5), toy.clock(1))
    assert pace.bank[9] == 1 and pace.bank[10] == 2 and (pace.bank >= 0).sum() == 2
    assert pace.counts.tolist() == [0, 1, 1, 0, 0]
    pace.write(torch.tensor([9]), torch.tensor([2]), torch.tensor([1.0]), torch.zeros(5), toy.clock(2))
    assert pace.counts.tolist() == [0, 0, 2, 0, 0]


def test_margins_of_the_specification(toy):
    m = toy.method("finessl")
    assert torch.allclose(m.margins(torch.tensor([1.0, 0.5, 0.0])), torch.tensor([0.0, 8 / 3, 8.0]))
    assert m.margins(torch.zeros(3)).abs().sum() == 0
    paper = toy.method("finessl", margin="paper")
    assert torch.allclose(paper.margins(torch.tensor([1.0, 0.5, 0.0])), torch.tensor([0.0, 4.0, 8.0]))


def test_pace_stays_while_the_bank_is_of_one_value(toy):
    pace = LearningPace(toy.spec(), threshold=0.7, reset=0, form="counter")
    assert pace.read(toy.clock(1)).tolist() == [0] * 5
    pace.counts[2] = toy.spec().unlabelled  # every unlabelled row of one class
    pace.pace[1] = 0.5
    assert pace.read(toy.clock(1)).tolist() == [0, 0.5, 0, 0, 0]
    pace.counts[2] -= 1
    assert pace.read(toy.clock(1)).tolist() == [0, 0, 1, 0, 0]


def test_heads_are_decoupled(toy):
    m = toy.method("finessl", threshold=0.0)
    b = toy.batch(m.views)
    terms = m.loss(b, toy.clock())
    auxiliary = terms.metrics["loss_auxiliary"]
    assert auxiliary > 0
    # With the main head's terms silenced nothing but the auxiliary head may move.
    silent = toy.method("finessl", threshold=0.0, gamma=0.0)
    silent.loss(b._replace(weight=torch.zeros_like(b.weight)), toy.clock()).total.backward()
    assert silent.auxiliary.weight.grad.abs().sum() > 0
    for name, p in silent.network.named_parameters():
        assert p.grad is None or p.grad.abs().sum() == 0, name
    attached = toy.method("finessl", threshold=0.0, gamma=0.0, detach_auxiliary=False)
    attached.loss(b._replace(weight=torch.zeros_like(b.weight)), toy.clock()).total.backward()
    assert attached.network.encoder.layers[1].weight.grad.abs().sum() > 0


def test_both_heads_start_equal_and_are_two(toy):
    m = toy.method("finessl")
    assert torch.equal(m.auxiliary.weight, m.network.head.weight) and m.auxiliary.weight is not m.network.head.weight


def test_paper_switches_change_what_they_say(toy):
    code = toy.method("finessl", threshold=0.0)
    b = toy.batch(code.views)
    margin = np.zeros(5)
    expected, _, _ = oracle_loss(code, b, margin, th=0.0, paper_smoothing=True)
    paper = toy.method("finessl", threshold=0.0, smoothed_label="paper")
    assert abs(paper.loss(b, toy.clock()).total.item() - expected) < 1e-10
    base = code.loss(b, toy.clock()).total
    for options in ({"auxiliary_labelled": "paper"}, {"auxiliary_target": "paper"}, {"smoothed_label": "paper"}, {"gamma": 1.0}):
        assert toy.method("finessl", threshold=0.0, **options).loss(b, toy.clock()).total != base
    one = toy.method("finessl", strong_views=1)
    assert one.views_of(one.config).unlabelled == ("weak", "strong")


def test_auto_takes_the_counter_only_where_no_row_repeats(toy):
    spec = toy.spec()  # 32 unlabelled rows
    assert LearningPace(spec, threshold=0.7, reset=4, form="auto", batch=8).form == "counter"
    assert LearningPace(spec, threshold=0.7, reset=500, form="auto", batch=8).form == "bank"
    assert LearningPace(spec, threshold=0.7, reset=0, form="auto", batch=8).form == "bank"


def test_long_tailed_labels_shift_both_heads_labelled_terms(toy):
    """log of the labelled shares, 3, 2, 1, 1, 1 of 8, is added to the logits of L_x and L_x1, beside the margin, and to nothing else."""
    b = toy.batch(toy.method("finessl").views)
    pace = torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0], dtype=torch.float64)
    totals = {}
    for tau in (0.0, 0.5):
        m = toy.method("finessl", logit_adjustment=tau)
        m.pace.counts.copy_(4 * pace)
        zx = m.network(b.labelled[0])
        prior = tau * np.log(np.array([3, 2, 1, 1, 1]) / 8)
        y = onehot(b.label.numpy(), 5)
        margin = m.margins(pace).numpy()[b.label.numpy()][:, None] * (1 - y)
        auxiliary = m.auxiliary(zx.features).detach().numpy()
        expected = cross_entropy(y, zx.logits.detach().numpy() + margin + prior).mean() + cross_entropy(y, auxiliary + prior).mean()
        totals[tau] = m.loss(b, toy.clock(1)).total.item() - expected
    assert abs(totals[0.0] - totals[0.5]) < 1e-5
