"""Frozen layers in float8: which ones, what it does to their numbers, what stays as it was, and what is refused."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func

from fastssl.config import ModelConfig, TrainConfig
from fastssl.models import Network, fp8
from fastssl.models.peft import tune
from fastssl.models.vit import VisionTransformer
from fastssl.pipelines.errors import ConfigError, SetupError
from tests.fastssl.models.peft_cases import MAKERS

pytest.importorskip("torchao", reason="torchao comes with the test extra: pip install '.[test]'")
CPU = torch.device("cpu")


def network(how="vpt_deep", width=32, **options):
    torch.manual_seed(0)
    encoder = VisionTransformer(16, 1, width, 3, 2, stem=(4,))
    return Network(tune(encoder, ModelConfig(tune=how, prompts=2, **options), name="toy"), nn.Linear(width, 3)).train()


def maps_of(net, form="backward", how="vpt_deep"):
    return fp8.frozen_maps(net, form, name="toy", tune=how)


def converted(net, form, **options):
    fp8.convert(net, form, maps_of(net, form), emulate=True, **options)
    return net


def images(rows=4):
    return torch.randn(rows, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def gradients(net, amp=True):
    with torch.autocast("cpu", torch.bfloat16, enabled=amp, cache_enabled=False):
        loss = net(images()).logits.float().square().sum()
    return loss.detach(), torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])


@pytest.mark.parametrize("form", fp8.FORMS)
def test_weights_names_and_places_stay(form):
    net = network()
    before = {k: (v.data_ptr(), v.clone()) for k, v in net.state_dict().items()}
    order, trains = [id(p) for p in net.parameters()], [p.requires_grad for p in net.parameters()]
    converted(net, form)
    assert len(fp8.converted(net)) == 9
    after = net.state_dict()
    assert list(after) == list(before) and {type(v) for v in after.values()} == {torch.Tensor}
    assert all(v.data_ptr() == before[k][0] and torch.equal(v, before[k][1]) and v.dtype == torch.float32 for k, v in after.items())
    assert order == [id(p) for p in net.parameters()] and trains == [p.requires_grad for p in net.parameters()]
    other = network()
    other.load_state_dict(after, strict=True)


def places(net):
    layers = {id(m) for m in maps_of(net)}
    return sorted({name.removeprefix("encoder.blocks.") for name, m in net.named_modules() if id(m) in layers})


def test_the_layers_are_the_frozen_ones_that_are_called():
    """Maps of queries, keys and values are cut into parts where there are prompts: those are not called as modules."""
    inside = ["block.attn.proj", "block.mlp.0", "block.mlp.2"]
    assert places(network()) == [f"{i}.{name}" for i in range(3) for name in inside]
    own = ["attn.proj", "attn.qkv", "mlp.0", "mlp.2"]
    assert places(network(partial=1)) == [*(f"{i}.{name}" for i in range(2) for name in own), *(f"2.{name}" for name in inside)]
    assert places(network("last_k", partial=2)) == [f"0.{name}" for name in own]


def test_an_attention_that_reads_past_its_layer_is_left_out():
    encoder = MAKERS["open_clip"]()
    block = tune(encoder, ModelConfig(tune="last_k"), name="x").transformer.resblocks[0]
    layers = maps_of(Network(encoder, nn.Linear(4, 2)), how="last_k")
    ids = {id(m) for m in layers}
    inner = getattr(block, "block", block)
    called = block is not inner  # in our own form of the block, the output map is called as a module
    assert (id(inner.attn.out_proj) in ids) == called and id(inner.mlp.c_fc) in ids


def eight(x, dim):
    """x by float8 e4m3 and back, scaled by a power of two for each slice along `dim` (None: for the whole)."""
    size = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = torch.exp2(torch.floor(torch.log2(448.0 / size.double()))).float()
    return (x * scale).to(torch.float8_e4m3fn).float() / scale


def test_the_numbers_are_those_of_float8():
    torch.manual_seed(0)
    layer = nn.Linear(32, 48).requires_grad_(False)
    x, upstream = torch.randn(5, 32, requires_grad=True), torch.randn(5, 48)
    outcome = {}
    for form in fp8.FORMS:
        holder = nn.ModuleList([copy.deepcopy(layer)])
        fp8.convert(holder, form, list(holder), emulate=True)
        y = holder[0](x)
        outcome[form] = y.detach(), torch.autograd.grad(y, x, upstream)[0]
    exact = layer(x).detach()
    forward = eight(x.detach(), 1) @ eight(layer.weight, 1).T + layer.bias
    backward = eight(upstream, 1) @ eight(layer.weight, None)
    assert torch.allclose(outcome["backward"][0], exact, atol=1e-6)
    assert torch.allclose(outcome["full"][0], forward, atol=1e-5) and (forward - exact).abs().max() > 1e-2
    for _, gradient in outcome.values():
        assert torch.allclose(gradient, backward, atol=1e-5)
    assert (backward - upstream @ layer.weight).abs().max() > 1e-2


def test_off_for_a_while():
    net, bare = converted(network(), "full"), network()
    layers = fp8.converted(net)
    with fp8.plain(net):
        assert not fp8.converted(net) and list(net.state_dict()) == list(bare.state_dict())
        for a, b in zip(gradients(net)[1], gradients(bare)[1], strict=True):
            assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="boom"), fp8.plain(net):
        raise RuntimeError("boom")
    assert [id(m) for m in fp8.converted(net)] == [id(m) for m in layers]
    assert not torch.equal(gradients(net)[1][0], gradients(bare)[1][0])


def test_compiled_it_computes_no_gradient_of_a_frozen_weight():
    counts, results = {}, {}
    for form in (None, *fp8.FORMS):
        net = network() if form is None else converted(network(), form)
        graphs = []

        def keep(graph, inputs, graphs=graphs):
            graphs.append(sum(node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) for node in graph.graph.nodes))
            return make_boxed_func(graph.forward)

        def backend(graph, inputs, keep=keep):
            return aot_module_simplified(graph, inputs, fw_compiler=keep, bw_compiler=keep)

        torch.compiler.reset()
        run = torch.compile(lambda x, net=net: net(x).logits.square().sum(), backend=backend, fullgraph=True, dynamic=False)
        loss = run(images())
        found = torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])
        counts[form], results[form] = sum(graphs), found
        for a, b in zip(found, gradients(net, amp=False)[1], strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert counts["backward"] == counts["full"] == counts[None] > 20
    assert not torch.equal(results["backward"][0], results[None][0])


@pytest.mark.parametrize(
    ("how", "width", "form", "message"),
    [
        ("full", 32, "backward", "train.fp8 is for frozen linear layers with sides that 16 divides, and --tune full leaves none in toy"),
        ("vpt_deep", 24, "full", "sides that 16 divides, and --tune vpt_deep leaves none in toy"),
        ("linear", 32, "backward", "train.fp8=backward has nothing to do: with --tune linear no gradient passes through toy"),
    ],
)
def test_networks_that_it_is_not_for(how, width, form, message):
    with pytest.raises(ConfigError, match=message):
        maps_of(network(how, width=width), form, how)


def test_a_network_without_blocks():
    with pytest.raises(ConfigError, match="needs a network with transformer blocks .* and toy has none; leave train.fp8 off"):
        maps_of(Network(nn.Flatten(), nn.Linear(4, 2)))


def test_it_stands_beside_bf16_and_is_off_by_default():
    net = network()
    fp8.apply(net, ModelConfig(), TrainConfig(), CPU)
    assert not fp8.converted(net)
    with pytest.raises(ConfigError, match="train.fp8 stands beside bf16, and this run has --amp off"):
        fp8.apply(net, ModelConfig(), TrainConfig(fp8="full"), CPU)
    with pytest.raises(ValueError, match="form must be backward or full, got 'both'"):
        fp8.recipe("both")


def test_devices_and_packages_that_lack_it(monkeypatch):
    with pytest.raises(SetupError, match="needs a CUDA device with float8, and this run is on cpu"):
        fp8.apply(network(), ModelConfig(tune="vpt_deep"), TrainConfig(fp8="backward", amp="bf16"), CPU)
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(SetupError, match="train.fp8 needs compute capability 8.9, and A100 has 8.0"):
        fp8.demand(cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fp8.demand(cuda)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(SetupError, match=r"needs torchao, which is not installed; run: pip install 'fastssl\[fp8\]'"):
        fp8.demand(cuda)
