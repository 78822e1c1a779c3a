"""Update: agrees with torch's plain optimisers, skips non-finite steps on the device, averages exactly."""

import copy

import pytest
import torch
from torch import nn

from fastssl.config import ModelConfig, TrainConfig
from fastssl.engine.optimizers import make_optimizer
from fastssl.engine.update import Update, trainable
from fastssl.methods.base import Method, Stage, Terms
from fastssl.models import Network
from fastssl.models.peft import tune
from fastssl.models.vit import VisionTransformer
from fastssl.pipelines.errors import ConfigError


class Plain(Method):
    Config = object

    def loss(self, batch, clock):
        return Terms(self.network(batch).logits.square().mean())


def plain_method(ema=0.0):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh())
    return Plain(None, Network(encoder, nn.Linear(8, 3)), None, ema=ema)


def inputs(step):
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_equals_torchs_own_optimiser(name, decay_all):
    config = TrainConfig(optimizer=name, weight_decay=0.1, decay_all=decay_all, momentum=0.9)
    ours, theirs = plain_method(), plain_method()
    update = Update(ours, Stage(10), config)
    decayed = [p for p in theirs.parameters() if decay_all or p.ndim > 1]
    rest = [p for p in theirs.parameters() if not (decay_all or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    peer = (
        torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=False)
        if name == "sgd"
        else torch.optim.AdamW(groups, lr=0.1, foreach=False)
    )
    for step in range(5):
        lr = 0.1 / (step + 1)
        update.begin(torch.tensor(lr))
        update(ours.loss(inputs(step), None).total)
        for group in peer.param_groups:
            group["lr"] = lr
        peer.zero_grad()
        theirs.loss(inputs(step), None).total.backward()
        peer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_non_finite_step_changes_nothing(name, bad_step):
    """Skipping step k equals never having taken it, the optimiser's state included, even where it is the first."""
    config = TrainConfig(optimizer=name, weight_decay=0.01, ema=0.9)
    finals = []
    for with_bad in (True, False):
        m = plain_method(ema=0.9)
        update = Update(m, Stage(10), config)
        for step in range(4):
            if step == bad_step:
                if not with_bad:
                    continue
                before = copy.deepcopy(m.state_dict())
                update.begin(torch.tensor(0.1))
                update(m.loss(inputs(step), None).total * float("nan"))
                assert not update.ok
                for key, value in m.state_dict().items():
                    assert torch.equal(value, before[key]), key
                continue
            update.begin(torch.tensor(0.1))
            update(m.loss(inputs(step), None).total)
            assert update.ok
        finals.append(m.state_dict())
    for key, value in finals[0].items():
        assert torch.equal(value, finals[1][key]), key


def test_infinite_gradient_of_a_finite_loss_is_skipped_too():
    m = plain_method()
    update = Update(m, Stage(10), TrainConfig())
    before = copy.deepcopy(m.state_dict())
    update.begin(torch.tensor(0.1))
    weight = m.network.head.weight
    update((weight - weight.detach()).sqrt().sum())  # 0 with an infinite slope
    assert not update.ok
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


def test_average_is_the_textbook_recursion():
    m = plain_method(ema=0.9)
    update = Update(m, Stage(10), TrainConfig())
    expected = {k: v.clone().double() for k, v in m.ema.named_parameters()}
    for step in range(6):
        update.begin(torch.tensor(0.1))
        update(m.loss(inputs(step), None).total)
        for key, value in m.network.named_parameters():
            expected[key] = 0.9 * expected[key] + 0.1 * value.detach().double()
    for key, value in m.ema.named_parameters():
        assert torch.allclose(value.double(), expected[key], atol=1e-6)
        assert not value.requires_grad


def test_clipping_bounds_the_whole_gradient():
    m, free = plain_method(), plain_method()
    config = TrainConfig(momentum=0.0, weight_decay=0.0)
    for target, clip in ((m, 1e-3), (free, 0.0)):
        import dataclasses

        update = Update(target, Stage(1), dataclasses.replace(config, clip=clip))
        update.begin(torch.tensor(1.0))
        update(target.loss(inputs(0), None).total * 100)
    start = plain_method()
    moved = torch.cat([(a - b).flatten() for a, b in zip(m.parameters(), start.parameters(), strict=True)]).norm()
    unclipped = torch.cat([(a - b).flatten() for a, b in zip(free.parameters(), start.parameters(), strict=True)]).norm()
    assert abs(moved.item() - 1e-3) < 1e-5 < unclipped.item()


def test_scaled_loss_takes_the_same_step_and_backs_off_on_overflow():
    a, b = plain_method(), plain_method()
    scaled, bare = Update(a, Stage(5), TrainConfig(), scaled=True), Update(b, Stage(5), TrainConfig())
    for update, m in ((scaled, a), (bare, b)):
        update.begin(torch.tensor(0.1))
        update(m.loss(inputs(0), None).total)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-6)
    scaled.begin(torch.tensor(0.1))
    scaled(a.loss(inputs(1), None).total * float("inf"))
    assert scaled.scale == 2.0**15 and not scaled.ok


def test_state_is_restored_in_place_and_bit_for_bit():
    config = TrainConfig(optimizer="adamw")
    m = plain_method(ema=0.9)
    update = Update(m, Stage(10), config)
    update.begin(torch.tensor(0.1))
    update(m.loss(inputs(0), None).total)
    saved, weights = copy.deepcopy(update.state_dict()), copy.deepcopy(m.state_dict())
    twin = plain_method(ema=0.9)
    other = Update(twin, Stage(10), config)
    addresses = [v.data_ptr() for state in other.optimizer.state.values() for v in state.values()]
    twin.load_state_dict(weights)
    other.load_state_dict(saved)
    assert addresses == [v.data_ptr() for state in other.optimizer.state.values() for v in state.values()]
    for u, x in ((update, m), (other, twin)):
        u.begin(torch.tensor(0.05))
        u(x.loss(inputs(1), None).total)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in m.state_dict().items())


def test_a_stage_trains_the_networks_it_names():
    m = plain_method()
    m.extra = nn.Linear(2, 2)
    assert all(n.startswith("network.") for n, _ in trainable(m, Stage(1, networks=("network",))))
    assert any(n.startswith("extra.") for n, _ in trainable(m, Stage(1)))
    with pytest.raises(ValueError, match="no trainable parameter"):
        trainable(m, Stage(1, networks=("nobody",)))


def test_vectors_are_not_decayed_unless_asked():
    m = plain_method()
    named = trainable(m, Stage(1))
    groups = make_optimizer(named, {1.0: torch.tensor(0.1)}, TrainConfig(weight_decay=0.3), {}).param_groups
    assert {g["weight_decay"]: {p.ndim for p in g["params"]} for g in groups} == {0.3: {2}, 0.0: {1}}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = VisionTransformer(16, 1, 8, 3, 2, stem=(4, 4))

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_layer_decay_equals_groups_made_by_hand(name):
    """Rates 0.5 ** (L + 1) for the embeddings, 0.5 ** (L - l) for block l of L = 3 and what was added to it, 0.5 for the final norm."""
    torch.manual_seed(0)
    encoder = tune(Encoder(), ModelConfig(tune="lora+vpt_deep+bias", prompts=2, lora_rank=2), name="toy")
    encoder.inner.pos_embed.requires_grad_(True)
    # In fp64: the gradient of a key's bias is zero but for rounding, and Adam would make steps of that.
    ours = Plain(None, Network(encoder, nn.Linear(8, 3)), None).double()
    theirs = copy.deepcopy(ours)
    update = Update(ours, Stage(10), TrainConfig(optimizer=name, layer_decay=0.5, weight_decay=0.1))
    power = {"stem": 4, "pos_embed": 4, "blocks.0": 3, "blocks.1": 2, "blocks.2": 1, "norm": 1}
    factors = {}
    for key, p in theirs.named_parameters():
        start = next((s for s in power if key.startswith(f"network.encoder.inner.{s}")), None)
        factors[p] = 0.5 ** power[start] if start else 1.0
    assert sorted(set(factors.values())) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in factors if p.requires_grad]
    peer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True) if name == "sgd" else torch.optim.AdamW(groups, lr=1.0)
    for step in range(3):
        x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        lr = 0.1 / (step + 1)
        update.begin(torch.tensor(lr))
        update(ours.loss(x, None).total)
        for group in peer.param_groups:
            group["lr"] = lr * factors[group["params"][0]]
        peer.zero_grad()
        theirs.loss(x, None).total.backward()
        peer.step()
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), key


def test_layer_decay_moves_its_rates_in_place():
    ours = Plain(None, Network(Encoder(), nn.Linear(8, 3)), None)
    update = Update(ours, Stage(10), TrainConfig(layer_decay=0.5))
    rates = {group["lr"].data_ptr(): group["lr"] for group in update.optimizer.param_groups}
    assert len(rates) == 5
    for lr in (0.1, 0.02):
        update.begin(torch.tensor(lr))
        assert sorted(r.item() for r in rates.values()) == pytest.approx([lr / 16, lr / 8, lr / 4, lr / 2, lr])
        assert update.lr == torch.tensor(lr)


def test_layer_decay_needs_an_order_of_layers():
    with pytest.raises(ConfigError, match="train.layer_decay needs a network whose layers are known .*, got Sequential"):
        Update(plain_method(), Stage(10), TrainConfig(layer_decay=0.5))
