"""Interpolation consistency against a float64 calculation over ten steps: the paper's and the code's target, shares of batch and row."""

import pytest
import torch

from fastssl.methods.bricks.mixing import drawn
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.agreement import Agreement, encoders, rows_of_labels, squared


class Oracle(Agreement):
    """Partners and shares are fastssl's; bricks/noise.py has its own tests."""

    own = {
        "ramp_share": 0.25,
        "mixup": 1.0,
        "target": "probabilities",
        "mix_labelled": False,
        "reduction": "streams",
        "labels_share": False,
    }

    def loss(self, batch):
        c, clock = self.m.config, self.clock
        how = {"each": c.mix_share, "major": c.mix_major, "device": clock.step.device}
        mix, own = (drawn(clock, n, c.mixup, use=use, **how) for use, n in enumerate((6, 4)))
        (x,), (u,) = batch.labelled, batch.unlabelled
        with torch.no_grad():
            z = self.together([u], net="ema", moves=True)[0][0]
        target = torch.softmax(self.between(z, mix), 1) if self.o.target == "logits" else self.between(torch.softmax(z, 1), mix)
        known = self.together([self.between(x, own) if self.o.mix_labelled else x], moves=True)[0][0]
        labelled = rows_of_labels(known, batch)
        if self.o.mix_labelled:
            partner = batch._replace(label=batch.label[own.partner], weight=batch.weight[own.partner])
            labelled = own.share * labelled + (1 - own.share) * rows_of_labels(known, partner)
        return self.sums(labelled, squared(self.together([self.between(u, mix)])[0][0], target))

    def between(self, rows, mix):
        share = mix.share.reshape(-1, *[1] * (rows.dim() - 1))
        return share * rows + (1 - share) * rows[mix.partner]


CODE = {"target": "logits", "mix_labelled": True}
CASES = [
    {},
    CODE,
    {"mix_share": "sample", "mix_major": True, "mixup": 0.75, "ramp": "linear", "ramp_share": 0.4},
    {**CODE, "mix_share": "sample", "mixup": 0.1, "ramp": "none", "lambda_u": 10.0},
    {"mixup": 0.0},
]


@pytest.mark.parametrize("network", ["plain", "batch-norm"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options, network):
    m = toy.method("ict", **encoders(toy)[network], **options).train()
    oracle.follow(m, toy, Oracle(m, toy, **options), total=20, mixed=False)


def test_the_teacher_sees_whole_images_and_gives_no_gradient(toy):
    """Only the mix leads back to the images: a partner's gradient comes by its share of the mix."""
    m = toy.method("ict")
    b = toy.batch(m.asked)._replace(weight=torch.zeros(4))
    image = b.unlabelled[0].clone().requires_grad_()
    m.loss(b._replace(unlabelled=(image,)), toy.clock(33)).total.backward()
    mix = m.drawn(6, 0, toy.clock(33))
    share, mixing = float(mix.share), torch.zeros(6, 6, dtype=torch.float64)
    for row, partner in enumerate(mix.partner.tolist()):
        mixing[row, row] += share
        mixing[row, partner] += 1 - share
    seen = (mixing @ b.unlabelled[0].flatten(1)).view_as(image).detach().requires_grad_()
    p = m.ema(b.unlabelled[0]).logits.softmax(1).detach()
    (100.0 * squared(m.network(seen).logits, mixing @ p).mean()).backward()
    assert torch.allclose(image.grad.flatten(1), mixing.T @ seen.grad.flatten(1), rtol=1e-6, atol=1e-12) and image.grad.abs().sum() > 0
    assert all(p.grad is None for p in m.ema.parameters())


def test_a_linear_predictor_is_consistent_in_logits(toy):
    """Anchor: where logits are linear in the image and the teacher is the student, logits of the mix are the mix of logits, loss 0;
    the mix of probabilities is another target."""
    for target, zero in (("logits", True), ("probabilities", False)):
        m = toy.method("ict", head="linear", target=target)
        for network in (m.network, m.ema):
            network.encoder.layers[2] = torch.nn.Identity()
        loss = m.loss(toy.batch(m.asked), toy.clock(33)).metrics["loss_unlabelled"].item()
        assert (loss < 1e-25) == zero and (loss < 1e-9) == zero


def test_labelled_and_unlabelled_images_are_mixed_by_draws_of_their_own(toy):
    m = toy.method("ict", mix_labelled=True)
    first, second = (m.drawn(6, use, toy.clock(3)) for use in (0, 1))
    assert first.share != second.share and not torch.equal(first.partner, second.partner)


def test_usbs_defect_of_mean_teacher_is_absent(toy):
    """The student's prediction is the student's: other weights of it alone change the loss, and it has gradient."""
    m = toy.method("ict")
    b, clock = toy.batch(m.asked)._replace(weight=torch.zeros(4)), toy.clock(33)
    before = m.loss(b, clock).metrics["loss_unlabelled"]
    with torch.no_grad():
        m.network.head.weight.mul_(-1)
    after = m.loss(b, clock)
    after.total.backward()
    assert before > 0 and after.metrics["loss_unlabelled"] != before
    assert all(p.grad.abs().sum() > 0 for p in m.network.encoder.parameters())


def test_the_teacher_is_the_runs_average_with_statistics_of_its_own(toy):
    m = toy.method("ict", encoder=toy.Normed).train()
    (one,) = m.averages()
    assert one.average is m.ema is m.judged() and one.source is m.network and one.buffers == "own"
    assert [float(one.decay(torch.tensor(k))) for k in (0, 1, 9_999)] == pytest.approx([1 / 2, 2 / 3, 0.999])
    m.loss(toy.batch(m.asked), toy.clock(3))
    assert m.ema.encoder.layers[2].num_batches_tracked == m.network.encoder.layers[2].num_batches_tracked == 1


def test_entropy_is_of_whole_images(toy):
    m = toy.method("ict", entropy_min=0.5)
    b = toy.batch(m.asked)
    p = m.network(b.unlabelled[0]).logits.softmax(1)
    assert torch.allclose(m.loss(b, toy.clock(3)).metrics["loss_entropy"], -0.5 * (p * p.log()).sum(1).mean(), rtol=1e-9)


def test_without_an_average_there_is_no_teacher(toy):
    with pytest.raises(ConfigError, match="method ict is taught by the averaged network, and train.ema=0 keeps none; give --ema 0.999"):
        toy.method("ict", ema=0.0)
