"""The three modes of batch-norm: by what they normalise, what they write, and that they are put back."""

import pytest
import torch
from torch import nn

from fastssl.methods.bricks.batchnorm import MODES, batchnorm, no_dropout
from fastssl.methods.bricks.forward import forward_apart, forward_together
from fastssl.models.adapters import Bottleneck


@pytest.fixture
def made(toy):
    network = toy.network("linear", encoder=lambda: toy.Normed(dropout=0.5)).train()
    layer = network.encoder.layers[2]
    with torch.no_grad():
        layer.running_mean.fill_(0.3), layer.running_var.fill_(2.0)
    return network, layer


def statistics(layer):
    return [buffer.clone() for buffer in layer.buffers()]


@pytest.mark.parametrize("mode", MODES)
def test_by_what_it_normalises_and_what_it_moves(made, mode):
    network, layer = made
    x, before = torch.randn(8, 9, dtype=torch.float64) * 3 + 1, statistics(layer)
    with batchnorm(network, mode):
        out = layer(x)
    mean, var = (before[0], before[1]) if mode == "eval" else (x.mean(0), x.var(0, unbiased=False))
    assert torch.allclose(out, (x - mean) / (var + layer.eps).sqrt(), rtol=1e-9)
    after = statistics(layer)
    if mode == "update":
        assert torch.allclose(after[0], 0.9 * before[0] + 0.1 * x.mean(0)) and after[2] == before[2] + 1
    else:
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_put_back_after_an_error_too(made, mode):
    network, layer = made
    with pytest.raises(RuntimeError, match="within"):
        with batchnorm(network, mode):
            raise RuntimeError("within")
    assert layer.training and layer.track_running_stats


def test_batch_hands_buffers_to_nobody(made):
    """As functional gradients need it: a pass that wrote a buffer could not be traced within them."""
    network, layer = made
    versions = [buffer._version for buffer in layer.buffers()]
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    state = {name: value.detach() for name, value in state.items()}

    def loss(x):
        with batchnorm(network, "batch"):
            return torch.func.functional_call(network, state, (x,)).logits.square().sum()

    with no_dropout(network):
        x = torch.randn(4, 3, 3, 3, dtype=torch.float64)
        gradient = torch.func.grad(loss)(x)
        torch.compiler.reset()
        traced = torch.compile(lambda x: torch.func.grad(loss)(x), backend="aot_eager", fullgraph=True)(x)
    assert gradient.abs().sum() > 0 and torch.allclose(gradient, traced)
    assert versions == [buffer._version for buffer in layer.buffers()]


def test_a_frozen_encoders_layers_stay_as_they_are(made):
    network, layer = made
    network.encoder.requires_grad_(False)
    network.train()
    assert not layer.training
    x, before = torch.randn(6, 3, 3, 3, dtype=torch.float64), statistics(layer)
    outputs = []
    for mode in MODES:
        with batchnorm(network, mode):
            outputs.append(network(x).logits)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert all(torch.equal(a, b) for a, b in zip(statistics(layer), before, strict=True)) and not layer.training


def test_an_unknown_mode():
    with pytest.raises(ValueError, match="update, batch or eval, got 'train'"):
        with batchnorm(nn.Identity(), "train"):
            pass


def test_dropout_is_untouched_by_the_modes_and_held_by_its_own(made):
    network, _ = made
    x = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    for mode in MODES:
        with batchnorm(network, mode):
            assert not torch.equal(network(x).logits, network(x).logits)
    with no_dropout(network), batchnorm(network, "batch"):
        assert torch.equal(network(x).logits, network(x).logits)
    assert all(m.training for m in network.modules() if isinstance(m, nn.Dropout))


def test_together_and_apart(made):
    """One batch of two views has one mean; two batches have one each."""
    network, layer = made
    a, b = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(5, 3, 3, 3, dtype=torch.float64) + 2
    with no_dropout(network):
        before = statistics(layer)
        joint = forward_together(network, [a, b], "batch")
        single = forward_apart(network, [a, b])
        assert [len(out.logits) for out in joint] == [4, 5] and not torch.allclose(joint[0].logits, single[0].logits)
        assert torch.allclose(forward_together(network, [a], "batch")[0].logits, single[0].logits)
        assert torch.equal(layer.num_batches_tracked, before[2])
        forward_together(network, [a, b])
        assert layer.num_batches_tracked == before[2] + 1


def test_dropout_that_is_no_layer_is_held_still_too():
    bottleneck = Bottleneck(8, 4, 1.0, torch.zeros(1), dropout=0.5).train()
    torch.nn.init.normal_(bottleneck.up.weight)
    x = torch.randn(5, 3, 8)
    assert not torch.equal(bottleneck(x), bottleneck(x))
    with no_dropout(bottleneck):
        assert torch.equal(bottleneck(x), bottleneck(x))
    assert all(module.training for module in bottleneck.modules())
