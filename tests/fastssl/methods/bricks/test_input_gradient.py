"""The gradient by the input equals autograd's, on every kind of network, and leaves no trace on it."""

import functools

import pytest
import torch

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.kernels import reference
from fastssl.methods.bricks.batchnorm import batchnorm
from fastssl.methods.bricks.input_gradient import input_gradient, precision, unit

CLASSES = tuple("abcde")
NETWORKS = {
    "wrn": {"name": "wrn-10-1"},
    "vit": {"name": "timm:test_vit", "img_size": 16, "patch_size": 8},
    "lora": {"name": "timm:test_vit", "img_size": 16, "patch_size": 8, "tune": "lora"},
    "prompts": {"name": "timm:test_vit", "img_size": 16, "patch_size": 8, "tune": "vpt_deep", "prompts": 2},
    "head alone": {"name": "wrn-10-1", "tune": "linear"},
}


@functools.cache
def built(which):
    torch.manual_seed(0)
    return models.build(ModelConfig(weights="random", dropout=0.25, **NETWORKS[which]), CLASSES, size=16)


def images():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def loss(logits):
    return reference.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).sum()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("which", NETWORKS)
def test_equals_autograd_and_leaves_the_network_alone(which, training):
    network, x = built(which).train(training), images()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trains = [p.requires_grad for p in network.parameters()]
    torch.manual_seed(2)  # dropout's
    g = input_gradient(network, x, loss)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "no statistics were moved"
    assert all(p.grad is None for p in network.parameters()) and [p.requires_grad for p in network.parameters()] == trains
    assert not g.requires_grad and g.abs().max() > 0
    at = x.clone().requires_grad_()
    torch.manual_seed(2)
    with batchnorm(network, "batch"):
        (expected,) = torch.autograd.grad(loss(network(at).logits), at)
    assert torch.allclose(g, expected, rtol=1e-4, atol=1e-7 * float(expected.abs().max()))
    assert network.training == training


def test_dropout_draws_anew_in_each_search():
    network = built("wrn").train()
    first, second = input_gradient(network, images(), loss), input_gradient(network, images(), loss)
    assert not torch.allclose(first, second, rtol=1e-2)


@pytest.mark.parametrize(("which", "amp"), [("wrn", False), ("wrn", True), ("vit", True)])
def test_goes_through_the_compiler_whole_beside_a_loss_that_trains(which, amp):
    network, x = built(which).train(), images()

    def step(x):
        g = input_gradient(network, x, loss)
        with batchnorm(network, "batch"):
            return loss(network(x + 0.1 * unit(g)).logits), g

    torch.compiler.reset()
    found = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        network.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp, cache_enabled=False):
            value, g = run(x)
        value.backward()
        found.append((value.detach(), g, [p.grad.clone() for p in network.parameters() if p.grad is not None]))
    torch.compiler.reset()
    near = {"rtol": 2e-2, "atol": 2e-2} if amp else {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(found[0][0], found[1][0], **near) and torch.allclose(found[0][1], found[1][1], **near)
    assert all(torch.allclose(a, b, **near) for a, b in zip(found[0][2], found[1][2], strict=True)) and found[0][2]


def test_precision_says_whether_autocast_holds():
    network, x = built("wrn").eval(), images()
    exact = input_gradient(network, x, loss)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with precision(x, "amp"):
            rough = input_gradient(network, x, loss)
        with precision(x, "fp32"):
            assert torch.equal(input_gradient(network, x, loss), exact)
    assert not torch.equal(rough, exact)


def test_fp16_never_searches():
    x = images()
    with torch.autocast("cpu", torch.float16, cache_enabled=False):
        for kind in ("fp32", "amp"):
            with precision(x, kind):
                assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")

    def product(x):
        with precision(x, "amp"):
            return x @ x

    torch.compiler.reset()
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    for kind, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with torch.autocast("cpu", kind, cache_enabled=False):
            assert compiled(x[0, 0]).dtype == expected
    torch.compiler.reset()


def test_unit_rows():
    x = torch.tensor([[3.0, -4.0], [3e-30, 4e-30], [0.0, 0.0], [3e30, -4e30]])
    expected = torch.tensor([[0.6, -0.8], [0.6, 0.8], [0.0, 0.0], [0.6, -0.8]])
    assert torch.allclose(unit(x), expected, rtol=1e-6), "squares neither underflow nor overflow"
    assert unit(x.bfloat16()).dtype == torch.float32 and unit(x.double()).dtype == torch.float64
    whole = unit(torch.randn(2, 3, 4, 4))
    assert whole.shape == (2, 3, 4, 4) and torch.allclose(whole.flatten(1).norm(dim=1), torch.ones(2))
    assert unit(torch.tensor([[float("nan"), 1.0]])).isnan().all(), "divergence shows"
