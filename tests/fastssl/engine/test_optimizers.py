"""LARS against its equations in numpy, decay exemptions, and accumulated gradients against whole batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastssl.config import TrainConfig
from fastssl.engine.optimizers import make_optimizer, undecayed
from fastssl.engine.update import Update
from fastssl.methods.base import Method, Stage, Terms
from fastssl.models import Network


class Plain(Method):
    Config = object

    def loss(self, batch, clock):
        return Terms(self.network(batch).logits.square().mean())


def plain_method():
    torch.manual_seed(0)
    return Plain(None, Network(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh()), nn.Linear(8, 3)), None).double()


def inputs(step, rows=6):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def trained(method, steps, config, pieces=1, poison=None):
    update = Update(method, Stage(10), config)
    for step in range(steps):
        update.begin(torch.tensor(0.2 / (step + 1)))
        x = inputs(step)
        if step == poison:
            x = x * float("nan")
        for piece in x.chunk(pieces):
            update(method.loss(piece, None).total)
    return update


def test_lars_equals_its_equations():
    config = TrainConfig(optimizer="lars", weight_decay=0.1, momentum=0.8, trust=0.02)
    ours, theirs = plain_method(), plain_method()
    trained(ours, 5, config)
    weights = {n: p.detach().numpy().copy() for n, p in theirs.named_parameters()}
    velocity = {n: np.zeros_like(w) for n, w in weights.items()}
    for step in range(5):
        with torch.no_grad():
            for n, p in theirs.named_parameters():
                p.copy_(torch.from_numpy(weights[n]))
        theirs.zero_grad()
        theirs.loss(inputs(step), None).total.backward()
        rate = np.float64(np.float32(0.2 / (step + 1)))
        for n, p in theirs.named_parameters():
            g = p.grad.numpy()
            trust = 1.0
            if p.ndim > 1:
                g = g + 0.1 * weights[n]
                trust = 0.02 * np.linalg.norm(weights[n]) / np.linalg.norm(g)
            velocity[n] = 0.8 * velocity[n] + rate * trust * g
            weights[n] = weights[n] - velocity[n]
    moved = 0
    for n, p in ours.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), weights[n], rtol=1e-6)
        moved += not np.array_equal(weights[n], dict(plain_method().named_parameters())[n].detach().numpy())
    assert moved == len(weights)


def test_lars_of_a_zero_weight_or_gradient_has_trust_one():
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = make_optimizer([("w", p)], {1.0: torch.tensor(0.5)}, TrainConfig(optimizer="lars", momentum=0.0, weight_decay=0.0), {})
    p.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((2, 2), -0.5))
    p.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_step_that_is_not_finite_changes_nothing(name):
    config = TrainConfig(optimizer=name, trust=0.1)
    skipped, straight = plain_method(), plain_method()
    update = trained(skipped, 2, config, poison=1)
    other = trained(straight, 1, config)
    assert not bool(update.ok)
    for a, b in zip(skipped.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(update.parameters, other.parameters, strict=True):
        for key, value in update.optimizer.state[a].items():
            assert torch.equal(value, other.optimizer.state[b][key]), key


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_accumulated_pieces_are_the_whole_batch(name):
    whole, pieces = plain_method(), plain_method()
    trained(whole, 4, TrainConfig(optimizer=name, clip=0.05, trust=0.1))
    trained(pieces, 4, TrainConfig(optimizer=name, clip=0.05, trust=0.1, accumulate=3), pieces=3)
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_one_bad_piece_skips_the_whole_step():
    method, fresh = plain_method(), plain_method()
    update = Update(method, Stage(10), TrainConfig(accumulate=2))
    update.begin(torch.tensor(0.1))
    update(method.loss(inputs(0) * float("inf"), None).total)
    update(method.loss(inputs(1), None).total)
    assert not bool(update.ok)
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), fresh.parameters(), strict=True))


class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.ones(1, 3, 4))
        self.weight = nn.Parameter(torch.ones(3, 4))

    def no_weight_decay(self):
        return {"position"}


def test_what_a_network_asks_to_leave_undecayed_is():
    holder = nn.ModuleDict({"net": Asking()})
    assert undecayed(holder) == {"net.position"}
    named = list(holder.named_parameters())
    for decay_all in (False, True):
        config = TrainConfig(weight_decay=0.3, decay_all=decay_all)
        groups = make_optimizer(named, {1.0: torch.tensor(0.1)}, config, {}, undecayed(holder)).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert decay[id(holder["net"].weight)] == 0.3 and decay[id(holder["net"].position)] == (0.3 if decay_all else 0.0)


@pytest.fixture
def as_if_capturing(monkeypatch):
    """torch's optimisers believe that a CUDA graph is being captured."""
    stream = SimpleNamespace(is_capturing=lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args, **options: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *args: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_every_optimiser_lets_itself_be_captured(as_if_capturing, kind):
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = make_optimizer([("w", weight)], {1.0: torch.full((), 0.1)}, TrainConfig(optimizer=kind), {})
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight < 1).all()


def test_torch_refuses_what_is_not_made_for_it(as_if_capturing):
    """Else the test above would see nothing."""
    weight = nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="capturable"):
        torch.optim.AdamW([weight], lr=torch.tensor(0.1), fused=True).step()


def test_eager_steps_of_adamw_warn_of_nothing(recwarn):
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = make_optimizer([("w", weight)], {1.0: torch.full((), 0.1)}, TrainConfig(optimizer="adamw"), {})
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert not recwarn.list
