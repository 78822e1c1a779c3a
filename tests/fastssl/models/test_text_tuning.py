"""Tuning of text encoders: what trains, what is computed, names in checkpoints, what folds, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastssl import models
from fastssl.models import peft
from fastssl.pipelines.errors import ConfigError

from . import text_cases as cases

KINDS = list(cases.KINDS)
OPTIONS = {"prompts": 4, "lora_rank": 3, "adapter_rank": 5}
MAPS = {  # query, value, and the last map of the MLP: places in a layer
    "Bert": ("attention.self.query", "attention.self.value", "output.dense"),
    "Roberta": ("attention.self.query", "attention.self.value", "output.dense"),
    "DistilBert": ("attention.q_lin", "attention.v_lin", "ffn.lin2"),
    "MPNet": ("attention.attn.q", "attention.attn.v", "output.dense"),
    "Electra": ("attention.self.query", "attention.self.value", "output.dense"),
    "DebertaV2": ("attention.self.query_proj", "attention.self.value_proj", "output.dense"),
    "ModernBert": ("attn.Wqkv", "attn.Wqkv", "mlp.Wo"),
}
BLOCKS = {"DistilBert": "transformer.layer", "ModernBert": "layers"}


def tuned(kind: str, how: str, **options):
    """An encoder whose added parameters are off their starting values."""
    encoder = cases.encoder(kind, tune=how, **{**OPTIONS, **options})
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if any(word in name for word in ("lora", "adapter", "prompts")):
                p.add_(0.2 * torch.randn_like(p))
    return encoder


def trained(encoder) -> set[str]:
    """Names as a checkpoint has them."""
    return {name.replace(".inner.", ".") for name, p in encoder.named_parameters() if p.requires_grad}


def block(kind: str, i: int) -> str:
    return f"model.{BLOCKS.get(kind, 'encoder.layer')}.{i}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains(kind):
    every = {name for name, _ in cases.encoder(kind).named_parameters()}
    assert trained(cases.encoder(kind, tune="full")) == trained(cases.encoder(kind, tune="lp_ft")) == every
    assert not trained(cases.encoder(kind, tune="linear"))
    assert trained(cases.encoder(kind, tune="bias")) == {name for name in every if name.endswith("bias")}
    late = {name for name in every if name.startswith((block(kind, 1), block(kind, 2), "model.final_norm"))}
    assert trained(cases.encoder(kind, tune="last_k", partial=2)) == late
    assert trained(cases.encoder(kind, tune="bias", partial=2)) == {name for name in late if name.endswith("bias")}
    q, v, out = MAPS[kind]
    lora = {
        f"{block(kind, i)}.{place}.lora.{part}.{way}"
        for i in range(3)
        for way in ("up", "down")
        for place, part in ((q, 0), (v, 2 * (q == v)))
    }
    assert trained(cases.encoder(kind, tune="lora")) == lora
    adapter = cases.encoder(kind, tune="adapter", partial=1)
    assert trained(adapter) == {f"{block(kind, 2)}.{out}.adapter.{m}.{p}" for m in ("norm", "down", "up") for p in ("weight", "bias")}
    assert trained(cases.encoder(kind, tune="vpt_shallow")) == {"prompts"}
    assert trained(cases.encoder(kind, tune="vpt_deep+lora")) == lora | {f"{block(kind, i)}.prompts" for i in range(3)}


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_a_change_of_weights_and_folds(kind):
    encoder, x, plain = tuned(kind, "lora"), cases.ids(), cases.encoder(kind)
    q, v, _ = MAPS[kind]
    with torch.no_grad():
        for i in range(3):
            for place, part, rows in ((q, "0", slice(0, 32)), (v, "2" if q == v else "0", slice(64, 96) if q == v else slice(0, 32))):
                update = encoder.get_submodule(f"{block(kind, i)}.{place}").lora[part]
                plain.get_submodule(f"{block(kind, i)}.{place}").weight[rows] += update.up @ update.down / 3
    assert (encoder(x) - cases.encoder(kind)(x)).abs().max() > 1e-3
    torch.testing.assert_close(encoder(x), plain(x), rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(encoder.state_dict())
    merged = peft.merge(encoder)
    assert peft.kept(encoder) == () and merged.state_dict().keys() == cases.encoder(kind).state_dict().keys()
    torch.testing.assert_close(merged(x), encoder(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())  # a copy was folded


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_lora_start_as_nothing(kind):
    x = cases.ids()
    torch.testing.assert_close(cases.encoder(kind, tune="adapter+lora")(x), cases.encoder(kind)(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_adapter_by_hand():
    encoder, x = tuned("Bert", "adapter", adapter_scale=0.5), torch.randn(2, 3, 48)
    out = encoder.model.encoder.layer[1].output.dense
    y, a = F.linear(x, out.weight, out.bias), out.adapter
    want = y + 0.5 * (
        F.relu(F.layer_norm(y, (32,), a.norm.weight, a.norm.bias) @ a.down.weight.T + a.down.bias) @ a.up.weight.T + a.up.bias
    )
    torch.testing.assert_close(out(x), want)
    assert peft.kept(encoder) == ("adapter",)


@torch.no_grad()
@pytest.mark.parametrize("how", ["vpt_shallow", "vpt_deep"])
def test_prompts_by_hand(how):
    """BERT layer by layer: prompts ahead of the text, at the end of the table of positions, dropped before the pooling."""
    encoder, x = tuned("Bert", how), cases.ids(length=9)
    m, there = encoder.model, x >= 0
    words = m.embeddings.word_embeddings(x.clamp_min(0)) * there[..., None]
    first = encoder.prompts if how == "vpt_shallow" else torch.zeros(4, 32)
    e = torch.cat([first.expand(3, -1, -1), words], 1)
    places = torch.cat([torch.arange(60, 64), torch.arange(9)])
    h = m.embeddings.LayerNorm(e + m.embeddings.position_embeddings(places) + m.embeddings.token_type_embeddings.weight[0])
    hidden = torch.zeros(3, 1, 1, 13).masked_fill(~torch.cat([torch.ones(3, 4, dtype=bool), there], 1)[:, None, None], float("-inf"))
    for layer in m.encoder.layer:
        if how == "vpt_deep":
            h = torch.cat([layer.prompts.expand(3, -1, -1), h[:, 4:]], 1)
            layer = layer.inner
        h = layer(h, hidden)
        h = h[0] if isinstance(h, tuple) else h
    want = (h[:, 4:] * there[..., None]).sum(1) / there.sum(1, keepdim=True)
    torch.testing.assert_close(encoder(x), want, rtol=1e-5, atol=1e-5)
    assert (want - cases.encoder()(x)).abs().max() > 1e-3 and peft.kept(encoder) == ("prompts",)


@pytest.mark.parametrize("how", ["vpt_deep+lora+adapter", "vpt_shallow+lora+bias", "lora+last_k"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_checkpoints(kind, how):
    net, x = cases.network(kind, tune=how, **OPTIONS), cases.ids()
    net.train()
    net(x).logits.square().sum().backward()
    without = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    plain = cases.network(kind).state_dict().keys()
    state = net.state_dict()
    assert plain <= state.keys() and all("inner" not in key for key in state)
    other = cases.network(kind, tune=how, weights="random", **OPTIONS)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.eval()(x).logits, net.eval()(x).logits)
    twin = copy.deepcopy(net)  # as an averaged network is made
    assert torch.equal(twin(x).logits, net(x).logits)
    with torch.no_grad():
        [p.zero_() for p in twin.parameters() if p.requires_grad]
    assert not torch.equal(twin(x).logits, net(x).logits) and torch.equal(other(x).logits, net(x).logits)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tune": "ssf"}, "--tune ssf is none of text encoders, and .* is one; take full, linear, .* or vpt_deep"),
        ({"tune": "lora+adaptformer"}, "--tune adaptformer is none of text encoders"),
        ({"tune": "bn"}, "--tune bn is none of text encoders"),
        ({"tune": "lora", "partial": 4}, "model.partial must be at most the 3 layers"),
        ({"tune": "linear", "partial": 1}, "--tune linear does not go by layers"),
        ({"tune": "vpt_deep+lora", "partial": 1}, "model.partial does not go with vpt_deep"),
    ],
)
def test_what_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        cases.encoder("Bert", **options)


def test_networks_whose_parts_are_not_known(tmp_path):
    import transformers

    place = cases.copy("Bert", tmp_path)
    shape = {k: v for k, v in cases.KINDS["Bert"].items()}
    transformers.AlbertConfig(vocab_size=200, embedding_size=16, **shape).save_pretrained(place)
    with pytest.raises(ConfigError, match="goes by transformer layers, and .* has none that are known here; take full, linear or bias"):
        models.build(cases.config(place, weights="random", tune="last_k"), ("a",))
    assert (
        models.build(cases.config(place, weights="random", tune="vpt_shallow", prompts=3), ("a",))
        .eval()(cases.ids())
        .logits.isfinite()
        .all()
    )
    transformers.DebertaConfig(vocab_size=200, pos_att_type=["c2p"], relative_attention=True, **shape).save_pretrained(place)
    with pytest.raises(ConfigError, match="has no query and value maps that are known here, among attention.self.in_proj"):
        models.build(cases.config(place, weights="random", tune="lora"), ("a",))
