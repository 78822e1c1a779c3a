"""Tunings on timm's, open_clip's and our own transformer: what they compute, what trains, what they start from."""

import copy
import math

import pytest
import torch
from torch import nn

from fastssl.config import ModelConfig
from fastssl.models import peft, towers
from fastssl.models.open_clip_networks import OpenClipEncoder
from fastssl.models.timm_networks import TimmEncoder
from fastssl.models.tuned_block import TunedBlock
from tests.fastssl.models.peft_cases import DEPTH, MAKERS, WIDTH, Oracle, added, blocks_of, images, make, shake, tuned

COMPUTED = {
    "vpt_deep": {},
    "vpt_shallow": {},
    "vpt_last": {},
    "lora": {},
    "adapter": {},
    "adaptformer": {},
    "adaptformer sequential": {"adaptformer_form": "sequential"},
    "ssf": {},
    "vpt_deep partial": {"partial": 2},
    "vpt_shallow partial": {"partial": 2},
    "vpt_deep+vpt_last": {},
    "vpt_shallow+vpt_last+lora+ssf": {"partial": 1},
    "vpt_deep+lora+ssf+adapter+adaptformer+bias": {},
    "last_k+lora+vpt_shallow": {"partial": 2},
}


@pytest.mark.parametrize("case", COMPUTED)
@pytest.mark.parametrize("kind", MAKERS)
def test_equals_the_plain_form_in_outputs_and_gradients(kind, case):
    plain, encoder = tuned(kind, case.split()[0], **COMPUTED[case])
    assert added(encoder)
    # Weights of the network itself that train (bias, last_k) have their twins in the plain copy; what was added is shared.
    mine = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    theirs = [added(encoder).get(n, dict(plain.named_parameters()).get(n.replace(".block.", "."))) for n in mine]
    x, results = images(), []
    for form, leaves in ((encoder, mine.values()), (Oracle(kind, plain, encoder).evaluate, theirs)):
        out = form(x)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append((out.detach(), torch.autograd.grad((out * weights).sum(), list(leaves))))
    (out, grads), (expected, expected_grads) = results
    assert (out - expected).abs().max() < 1e-10
    for name, grad, wanted in zip(mine, grads, expected_grads, strict=True):
        assert (grad - wanted).abs().max() < 1e-9, name
        # A bias of normed keys shifts all of a query's scores alike: softmax does not see it.
        assert grad.abs().max() > 1e-7 or name.endswith("k_norm.bias"), f"no gradient reaches {name}"
    assert (out - plain(x)).abs().max() > 1e-4, "the tuning does nothing"


@pytest.mark.parametrize("kind", MAKERS)
def test_starts_as_the_untuned_network_where_the_start_is_zero(kind):
    plain, x = make(kind), images()
    for how in ("lora", "adapter", "adaptformer", "lora+adapter+adaptformer"):
        encoder = peft.tune(copy.deepcopy(plain), ModelConfig(tune=how), name=kind)
        assert (encoder(x) - plain(x)).abs().max() < 1e-12, how


def test_starting_values_are_the_published_ones():
    torch.manual_seed(0)
    config = ModelConfig(tune="vpt_deep+lora+adapter+adaptformer+ssf", prompts=50)
    block = blocks_of(peft.tune(make("timm", dtype=torch.float32), config, name="timm"))[1]
    bound = math.sqrt(6 / (3 * 8 * 8 + WIDTH))
    assert 0.98 * bound < block.prompts["deep"].abs().max() <= bound
    assert block.lora_q.down.shape == (16, WIDTH) and 0.9 / math.sqrt(WIDTH) < block.lora_q.down.abs().max() <= 1 / math.sqrt(WIDTH)
    assert not block.lora_q.up.any() and not block.lora_v.up.any()
    # kaiming-normal(sqrt 5): variance 2 / (1 + 5) / d; kaiming-uniform(sqrt 5): at most 1 / sqrt(d)
    assert abs(block.adapter.down.weight.std() * math.sqrt(3 * WIDTH) - 1) < 0.15
    assert block.adapter.down.weight.abs().max() > 1 / math.sqrt(WIDTH)
    assert 0.95 / math.sqrt(WIDTH) < block.adaptformer.down.weight.abs().max() <= 1 / math.sqrt(WIDTH)
    for b in (block.adapter, block.adaptformer):
        assert not any(t.any() for t in (b.up.weight, b.up.bias, b.down.bias))
    assert abs(block.ssf_qkv.scale.mean() - 1) < 0.01 and 0.01 < block.ssf_qkv.scale.std() < 0.03
    assert abs(block.ssf_qkv.shift.mean()) < 0.01 and 0.01 < block.ssf_qkv.shift.std() < 0.03


def test_dropout_of_adaptformer_is_for_training_alone():
    _, encoder = tuned("timm", "adaptformer", dtype=torch.float32)
    x = images(dtype=torch.float32)
    assert torch.equal(encoder(x), encoder(x))
    encoder.train()
    assert not torch.equal(encoder(x), encoder(x))


NORMS = {"timm": "norm", "open_clip": "ln_post", "own": "norm"}
FIRST = {"timm": "blocks.0", "open_clip": "transformer.resblocks.0", "own": "blocks.0"}


@pytest.mark.parametrize("kind", ["timm", "open_clip", "own"])
@pytest.mark.parametrize("how", ["linear", "bias", "last_k", "vpt_deep", "lora", "adapter", "adaptformer", "ssf", "vpt_last+bias"])
def test_only_what_is_named_trains(kind, how):
    torch.manual_seed(0)
    encoder = peft.tune(make(kind), ModelConfig(tune=how), name=kind)
    shake(added(encoder).values(), 0.2)
    trains = {n for n, p in encoder.named_parameters() if p.requires_grad}
    every = dict(encoder.named_parameters())
    start = FIRST[kind].removesuffix("0")
    expected = set(added(encoder))
    if "bias" in how:
        expected |= {n for n in every if n.endswith("bias")}
    if how == "last_k":
        expected = {n for n in every if n.startswith((f"{start}{DEPTH - 1}.", f"{NORMS[kind]}."))}
    assert trains == expected and (how == "linear") == (not trains)
    if how == "linear":
        return
    before = {n: p.detach().clone() for n, p in every.items()}
    optimizer = torch.optim.SGD([p for p in every.values() if p.requires_grad], lr=0.1)
    encoder(images()).square().sum().backward()
    optimizer.step()
    assert {n for n, p in every.items() if not torch.equal(p, before[n])} == trains


def test_partial_keeps_to_the_last_blocks():
    encoder = peft.tune(make("timm"), ModelConfig(tune="lora+vpt_deep", partial=2), name="timm")
    assert [isinstance(b, TunedBlock) for b in encoder.blocks] == [False, True, True]
    encoder = peft.tune(make("timm"), ModelConfig(tune="bias", partial=1), name="timm")
    assert {n.split(".")[0] + n.split(".")[1] for n, p in encoder.named_parameters() if p.requires_grad} == {"blocks2", "normbias"}
    encoder = peft.tune(make("timm_avg"), ModelConfig(tune="last_k", partial=2), name="timm")
    assert {n.rsplit(".", 1)[1] for n, p in encoder.fc_norm.named_parameters("fc_norm") if p.requires_grad} == {"weight", "bias"}
    assert not encoder.blocks[0].norm1.weight.requires_grad and encoder.blocks[1].norm1.weight.requires_grad


@pytest.mark.parametrize("kind", ["timm", "open_clip", "own"])
def test_copies_and_states_carry_everything(kind):
    how = "vpt_deep+lora+adapter+adaptformer+ssf"
    plain, encoder = tuned(kind, how)
    assert encoder.state_dict().keys() - added(encoder).keys() == plain.state_dict().keys(), "the network's own names stay"
    x = images()
    twin = copy.deepcopy(encoder)
    other = tuned(kind, how)[1]
    shake(other.parameters(), 0.1)
    other.load_state_dict(encoder.state_dict())
    expected = encoder(x)
    assert torch.equal(twin(x), expected) and torch.equal(other(x), expected)
    with pytest.raises(RuntimeError, match="Missing key.*(qkv|in_proj_)"):
        other.load_state_dict({k: v for k, v in encoder.state_dict().items() if "attn.qkv" not in k and "in_proj" not in k})
    shake(encoder.parameters(), 0.1)
    assert torch.equal(twin(x), expected), "a copy must not share weights"


@pytest.mark.parametrize("kind", MAKERS)
def test_runs_in_bf16(kind):
    _, encoder = tuned(kind, "vpt_deep+lora+adapter+adaptformer+ssf", dtype=torch.float32)
    encoder.train()
    x = images(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(x).float().square().sum().backward()
    for name, p in added(encoder).items():
        assert p.grad.dtype == torch.float32 and p.grad.isfinite().all() and p.grad.any(), name
    encoder.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low = encoder(x)
    assert (low.float() - encoder(x)).norm() < 0.05 * encoder(x).norm()


class Reader(nn.Module):
    """A user's encoder, which may read any token of the transformer inside it."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.num_features = model, WIDTH

    def forward(self, x):
        return self.inner.forward_features(x)[:, 1:].mean(1)


def test_the_last_block_leaves_tokens_out_only_where_nobody_reads_them():
    def tokens(encoder, model):
        seen = []
        handle = blocks_of(model)[-1].register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
        encoder(images())
        handle.remove()
        return seen[0]

    for kind, expected in (("timm", 1), ("open_clip", 1), ("own", 1), ("timm_avg", 19), ("timm_map", 16)):
        encoder = tuned(kind, "vpt_deep")[1]
        assert tokens(encoder, encoder) == expected, kind
    plain = make("timm")
    reader = peft.tune(Reader(copy.deepcopy(plain)), ModelConfig(tune="vpt_shallow+lora", prompts=5), name="user")
    assert tokens(reader, reader.inner) == 17
    shake(added(reader).values(), 0.2)
    oracle = Oracle("timm", plain, reader.inner)
    oracle.model.forward_head = lambda x: x[:, 1:].mean(1)
    assert (reader(images()) - oracle.evaluate(images())).abs().max() < 1e-10


@pytest.mark.parametrize("how", ["vpt_deep+lora", "full"])
def test_encoders_by_name(how):
    """fastssl's own wrappers: the class token alone leaves the last block, and nothing else changes. open_clip's blocks run in our form."""
    x = images()
    for kind, wrap in (("timm", TimmEncoder), ("open_clip", OpenClipEncoder)):
        plain = make(kind)
        encoder = peft.tune(wrap(copy.deepcopy(plain)), ModelConfig(tune=how, prompts=5, lora_rank=3), name=kind)
        shake(added(encoder).values(), 0.2)
        tower = encoder.model if kind == "timm" else encoder.visual
        if kind == "open_clip":
            plain.proj = None  # the encoder answers with what comes before the projection
        expected = Oracle(kind, plain, tower).evaluate(x) if how != "full" else plain(x)
        assert (encoder.eval()(x) - expected).abs().max() < 1e-10
        assert isinstance(blocks_of(tower)[-1], TunedBlock) == (how != "full" or kind == "open_clip")
        seen = []
        blocks_of(tower)[-1].register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.shape[1]))
        encoder(x)
        assert seen == [17 if how == "full" and kind == "timm" else 1]
        ids, head = towers.layers(encoder)
        assert head == 4 and {i for n, i in ids.items() if "blocks.1." in n} == {2} and 0 in ids.values()


@pytest.mark.parametrize("kind", MAKERS)
def test_compiles_in_one_graph(kind):
    _, encoder = tuned(kind, "vpt_deep+lora+adapter+adaptformer+ssf")
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert (compiled(images()) - encoder(images())).abs().max() < 1e-12


def test_a_mask_is_refused():
    _, encoder = tuned("timm", "lora")
    with pytest.raises(ValueError, match="attention mask"):
        encoder(images(), is_causal=True)
