"""The Pi-model against a float64 calculation over ten steps, both reductions, one gradient or two, with batch-norm and without."""

import numpy as np
import pytest
import torch

from tests.fastssl.methods import oracle
from tests.fastssl.methods.agreement import Agreement, encoders, rows_of_labels, squared


class Oracle(Agreement):
    own = {"gradient": "both"}

    def loss(self, batch):
        known, (second, first) = self.noised(batch.labelled, batch.index, 0), self.noised(batch.unlabelled, batch.unlabelled_index, 1)
        if self.o.reduction == "batch":
            one = self.together([known[0], first], moves=True)
            two = self.together([known[1], second])
            labelled, student, other = one[0][0], torch.cat([z for z, _ in one]), torch.cat([z for z, _ in two])
        else:
            labelled = self.together(known, moves=True)[0][0]
            student, other = self.together([first])[0][0], self.together([second])[0][0]
        other = torch.softmax(other if self.o.gradient == "both" else other.detach(), 1)
        return self.sums(rows_of_labels(labelled, batch), squared(student, other))


USB = {"reduction": "streams", "gradient": "one", "ramp": "linear", "ramp_share": 0.4, "lambda_u": 10.0, "labels_share": False}
CASES = [
    {},
    {"gradient": "one"},
    {"reduction": "streams"},
    USB,
    {"noise": 0.15, "ramp": "none", "labels_share": False},
    {**USB, "noise": 0.3},
]


@pytest.mark.parametrize("network", ["plain", "batch-norm"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options, network):
    m = toy.method("pi_model", **encoders(toy)[network], **options)
    oracle.follow(m, toy, Oracle(m, toy, **options), total=20, mixed=False)


def parts(toy, m, weight=0.0, step=50):
    b = toy.batch(m.asked)
    b = b._replace(weight=torch.full((len(b.label),), weight))
    m.zero_grad()
    terms = m.loss(b, toy.clock(step))
    terms.total.backward()
    return terms, {name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None}, b


def test_gradient_through_both_branches_is_twice_that_through_one_on_average(toy):
    """Anchor: by symmetry; with both branches the same the two halves are equal and opposite, so they are not taken for each other."""
    _, both, b = parts(toy, toy.method("pi_model"))
    m = toy.method("pi_model", gradient="one")
    _, one, _ = parts(toy, m)
    swapped = b._replace(labelled=b.labelled[::-1], unlabelled=b.unlabelled[::-1], weight=torch.zeros(4))
    m.zero_grad()
    m.loss(swapped, toy.clock(50)).total.backward()
    for name, p in m.named_parameters():
        assert torch.allclose(both[name], one[name] + p.grad, atol=1e-10), name
    assert max(g.abs().max() for g in one.values()) > 1e-4


def test_the_batchs_sums_are_both_over_all_rows(toy):
    """Trap: mean over labelled rows would make cross-entropy (B + U) / B times as large; summing over classes consistency C times."""
    m = toy.method("pi_model", ramp="none", labels_share=False, lambda_u=3.0)
    terms, _, b = parts(toy, m, weight=1.0)
    with torch.no_grad():
        z = [m.network(x).logits for x in (*b.labelled, *b.unlabelled)]
    p = [oracle.softmax(rows.numpy()) for rows in z]
    labelled = oracle.cross_entropy(z[0], b.label).sum().item() / 10
    rows = np.concatenate([((p[0] - p[1]) ** 2).sum(1), ((p[2] - p[3]) ** 2).sum(1)])
    assert terms.metrics["loss_labelled"].item() == pytest.approx(labelled, rel=1e-9)
    assert terms.total.item() == pytest.approx(labelled + 3.0 * rows.sum() / 5 / 10, rel=1e-9)


def test_labelled_rows_agree_too_in_the_batch_and_not_in_streams(toy):
    for reduction, reached in (("batch", True), ("streams", False)):
        m = toy.method("pi_model", reduction=reduction)
        b = toy.batch(m.asked)
        image = b.labelled[-1].clone().requires_grad_()
        m.loss(b._replace(labelled=(*b.labelled[:-1], image), weight=torch.zeros(4)), toy.clock(50)).total.backward()
        assert (image.grad.abs().sum() > 0) == reached


def test_noise_is_of_its_own_for_each_branch_and_step(toy):
    """Equal views: without noise there is nothing to disagree on."""
    for deviation in (0.0, 0.15):
        m = toy.method("pi_model", noise=deviation)
        b = toy.batch(m.asked)
        b = b._replace(labelled=b.labelled[:1] * 2, unlabelled=b.unlabelled[:1] * 2)
        found = [m.loss(b, toy.clock(step)).metrics["loss_unlabelled"].item() for step in (50, 50, 51)]
        assert found[0] == found[1] and (found[0] == 0) == (deviation == 0) and (found[1] == found[2]) == (deviation == 0)


def test_share_of_labels(toy):
    """M / N of the toy data: 8 labels, 32 training images."""
    assert toy.method("pi_model").labels_share == 0.25 and toy.method("pi_model", labels_share=False).labels_share == 1


def test_head_dropout_is_noise(toy):
    m = toy.method("pi_model")
    m.network.dropout = torch.nn.Dropout(0.5)
    b = toy.batch(m.asked)
    b = b._replace(labelled=b.labelled[:1] * 2, unlabelled=b.unlabelled[:1] * 2)
    assert m.train().loss(b, toy.clock(50)).metrics["loss_unlabelled"] > 1e-6
    assert m.eval().loss(b, toy.clock(50)).metrics["loss_unlabelled"] == 0


def test_one_stays_one_where_entropy_gives_the_target_a_graph(toy):
    grads = []
    for weight in (0.0, 1e-12):  # entropy as good as off, and the target with a graph all the same
        m = toy.method("pi_model", gradient="one", entropy_min=weight, ramp="none")
        m.loss(toy.batch(m.asked), toy.clock(3)).total.backward()
        grads.append([p.grad.clone() for p in m.network.parameters()])
    assert all(torch.allclose(x, y, rtol=1e-6, atol=1e-9) for x, y in zip(*grads, strict=True))
