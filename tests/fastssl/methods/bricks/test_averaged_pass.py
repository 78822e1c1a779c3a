"""The averaged network's pass, by CoMatch's momentum encoder."""

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("statistics", ["batch", "eval"])
def test_the_momentum_encoders_batchnorm(toy, statistics):
    """Targets of the averaged network by the batch's or by running statistics; neither moves them, and all modes are put back."""
    m = toy.method("comatch", encoder=toy.Normed, momentum_encoder=True, ema=0.9, teacher_statistics=statistics, align_batches=0).train()
    norm = m.ema.encoder.layers[2]
    with torch.no_grad():
        norm.running_mean.add_(0.5)
    b = toy.batch(m.views)
    x = torch.cat([b.labelled[0], b.unlabelled[0], b.unlabelled[1]])
    h = m.ema.encoder.layers[1](x.flatten(1))
    mean, var = (h.mean(0), h.var(0, unbiased=False)) if statistics == "batch" else (norm.running_mean, norm.running_var)
    f = m.ema.encoder.layers[4](torch.tanh((h - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias))[4:10]
    before = norm.running_mean.clone()
    terms = m.loss(b, toy.clock())
    np.testing.assert_allclose(terms.memory["probabilities"][:6], m.ema.head(f).softmax(1).detach(), rtol=1e-9)
    assert torch.equal(norm.running_mean, before) and not norm.training and norm.track_running_stats


def test_dropout_of_a_teacher_is_still(toy):
    m = toy.method("comatch", encoder=lambda: toy.Normed(0.5), momentum_encoder=True, ema=0.9).train()
    b = toy.batch(m.views)
    first, second = (m.loss(b, toy.clock()).memory["probabilities"] for _ in range(2))
    assert torch.equal(first, second)
    assert [x.training for x in m.network.modules() if isinstance(x, torch.nn.Dropout)] == [True]
