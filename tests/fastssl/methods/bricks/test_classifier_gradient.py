"""Grad-ReLU's readings against closed forms."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fastssl.methods.bricks.classifier_gradient import gated, held_logits
from fastssl.models.heads import CosineHead
from tests.fastssl.methods import oracle

N, D, C = 8, 7, 5


def features(seed=0):
    return torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(D, C).double()


@pytest.mark.parametrize("kind", [linear, lambda seed=0: CosineHead(D, C).double()], ids=["linear", "cosine"])
@pytest.mark.parametrize("averaged", [False, True])
def test_values_are_the_holders_and_gradient_goes_where_it_is_let(kind, averaged):
    head, f = kind(), features()
    average = copy.deepcopy(head).requires_grad_(False) if averaged else None
    if averaged:
        for p in average.parameters():
            p.add_(0.1 * torch.randn_like(p))
    values = dict((average or head).named_parameters())
    wanted = oracle.head({f"h.{k}": v.detach() for k, v in values.items()}, f.detach(), "h.")
    for flows in (False, True):
        head.zero_grad()
        z = held_logits(head, f, average=average, flows=flows)
        np.testing.assert_allclose(z.detach(), wanted, rtol=1e-12)
        z.square().sum().backward()
        reached = [p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters()]
        assert all(reached) if flows else not any(reached)
        assert average is None or all(p.grad is None for p in average.parameters())
    assert f.grad.abs().sum() > 0
    # Straight through: the live head takes the gradient that the values would have had.
    leaves = {f"h.{k}": v.detach().clone().requires_grad_() for k, v in values.items()}
    oracle.head(leaves, f.detach(), "h.").square().sum().backward()
    for name, p in head.named_parameters():
        np.testing.assert_allclose(p.grad, leaves[f"h.{name}"].grad, rtol=1e-9, atol=1e-12)


def pieces(seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(N, C)), rng.normal(size=(N, D))), (rng.normal(size=(N, C)), rng.normal(size=(N, D)))


@pytest.mark.parametrize("rule", ["conflict_global", "conflict_element"])
def test_what_a_rule_lets_through(rule):
    outcomes = set()
    for seed in range(12):
        own, other = pieces(seed)
        g = [np.concatenate([r.T @ f, r.sum(axis=0)[:, None]], axis=1) for r, f in (own, other)]
        if rule == "conflict_global":
            wanted = g[0] * ((g[0] * g[1]).sum() >= 0)
        else:
            wanted = np.where(np.sign(g[0]) == np.sign(g[1]), g[0], 0)
        head = linear()
        zero = gated(head, rule, *[tuple(torch.from_numpy(x).requires_grad_() for x in piece) for piece in (own, other)])
        assert zero.item() == 0
        zero.backward()
        found = np.concatenate([head.weight.grad, head.bias.grad[:, None]], axis=1)
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
        outcomes.add(bool((wanted == 0).all()))
    assert outcomes == ({True, False} if rule == "conflict_global" else {False})


def test_no_gradient_reaches_features_and_residuals():
    own, other = [tuple(torch.from_numpy(x).requires_grad_() for x in piece) for piece in pieces(0)]
    gated(linear(), "conflict_element", own, other).backward()
    assert all(x.grad is None for x in (*own, *other))
