"""Pseudo-Label against a float64 calculation over ten steps, its schedule's anchors, and its passes."""

import numpy as np
import pytest
import torch

from fastssl.kernels import pseudo_label_loss
from tests.fastssl.methods import oracle
from tests.fastssl.methods.apart_oracle import Apart


class Oracle(Apart):
    """One view is teacher and student; labelled and unlabelled images go apart."""

    own = {"lambda_u": 3.0, "threshold": 0.0, "ramp_start": 1 / 6, "ramp_share": 5 / 6}

    def outputs(self, batch):
        seen = self.net(batch.unlabelled[0])
        return [(self.net(batch.labelled[0], count=True), None)], [(seen, None), (seen, None)]

    def ramp(self):
        return float(np.clip((self.step / self.total - self.o.ramp_start) / self.o.ramp_share, 0, 1))

    def loss(self, batch):
        return oracle.Step.loss(self, batch)


USB = {"threshold": 0.95, "lambda_u": 1.0, "ramp_start": 0.0, "ramp_share": 0.4}
FORMS = [
    {},
    USB,
    {**USB, "weighting": "smooth", "power": 2.0, "align": "uniform"},
    {**USB, "weighting": "sigmoid", "align": "predicted", "align_memory": "queue", "logit_adjustment": 1.0},
]


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options, normed):
    m = toy.method("pseudo_label", **options, **({"encoder": toy.Normed} if normed else {}))
    # Of 12 steps: the paper's ramp begins after the second, the other one is over after the fifth.
    oracle.follow(m, toy, Oracle(m, normed, **options), total=12, mixed=bool(options))


def test_schedule_of_the_paper(toy):
    """alpha is 0 before epoch 100, 3 from epoch 600 on, in between linear: 1.5 at 350."""
    m = toy.method("pseudo_label")
    for epoch, alpha in ((0, 0), (99, 0), (100, 0), (101, 0.006), (350, 1.5), (599, 2.994), (600, 3)):
        assert float(m.weight(toy.clock(epoch, 600))) == pytest.approx(alpha, abs=1e-5)
    longer = toy.method("pseudo_label", ramp_start=0.1, ramp_share=0.5)  # T1 = 100, T2 = 600 of 1000
    assert [round(float(longer.weight(toy.clock(k, 1000))), 4) for k in (100, 350, 600, 999)] == [0, 1.5, 3, 3]
    usb = toy.method("pseudo_label", **USB)
    assert [round(float(usb.weight(toy.clock(k, 100))), 4) for k in (0, 20, 40, 99)] == [0, 0.5, 1, 1]


def test_without_a_stretch_the_weight_jumps_at_its_start(toy):
    m = toy.method("pseudo_label", ramp_start=0.5, ramp_share=0.0)
    assert [float(m.weight(toy.clock(k, 10))) for k in (0, 4, 5, 9)] == [0, 0, 3, 3]


def test_the_label_carries_no_gradient_and_the_same_logits_do(toy):
    """Anchor: loss -log p_max, gradient (p - onehot) / U, of rows at or above the threshold."""
    z = torch.tensor([[2.0, 0.0, 0.0], [0.1, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    m = toy.method("pseudo_label", threshold=0.5)
    p = z.detach().softmax(1)
    found = m.pseudo_labels(z, z.detach(), {"threshold": m.config.threshold})
    found.loss.mean().backward()
    np.testing.assert_allclose(found.loss[0].item(), -np.log(p[0, 0].item()), rtol=1e-12)
    np.testing.assert_allclose(z.grad[0], (p[0] - torch.tensor([1.0, 0, 0])) / 2, rtol=1e-12)
    assert found.loss[1] == 0 and not z.grad[1].any() and not found.confidence.requires_grad
    assert float(pseudo_label_loss(z.detach(), z.detach(), threshold=0.0).weight.sum()) == 2, "threshold 0 keeps every row"


def test_two_forwards_apart_and_the_labelled_one_moves_the_statistics(toy):
    m = toy.method("pseudo_label", encoder=toy.Normed)
    b = toy.batch(m.asked)
    found = []
    note = lambda _, given: found.append((len(given[0]), m.network.encoder.layers[2].track_running_stats))  # noqa: E731
    hook = m.network.register_forward_pre_hook(note)
    m.loss(b, toy.clock(30))
    hook.remove()
    assert found == [(4, True), (6, False)]


def test_mixup_leaves_images_that_label_themselves_whole(toy):
    m, mixed = toy.method("pseudo_label"), toy.method("pseudo_label", mixup=1.0)
    b = toy.batch(m.asked)
    plain, other = m.loss(b, toy.clock(30)).metrics, mixed.loss(b, toy.clock(30)).metrics
    assert torch.equal(plain["loss_unlabelled"], other["loss_unlabelled"]) and plain["loss_labelled"] != other["loss_labelled"]
