"""Contrast of two views, against a loop over pairs; the projection before it."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fastssl.methods.bricks.contrast import NormedProjection, nt_xent


def unit(n, d=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1)


def by_pairs(first, second, temperature):
    """The equation, pair by pair."""
    rows = [*first, *second]
    n = len(first)
    found = []
    for i, h in enumerate(rows):
        score = [math.exp(float(h @ other) / temperature) for other in rows]
        found.append(-math.log(score[(i + n) % (2 * n)] / sum(s for k, s in enumerate(score) if k != i)))
    return found


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_it_is_the_equation(temperature):
    a, b = unit(5), unit(5, seed=1)
    rows = nt_xent(a, b, temperature)
    assert rows.shape == (10,) and rows.dtype == torch.float64
    np.testing.assert_allclose(rows, by_pairs(a.numpy(), b.numpy(), temperature), rtol=1e-12)


def test_what_is_known_of_it():
    same = unit(1).expand(6, 4)
    torch.testing.assert_close(nt_xent(same, same, 0.1), torch.full((12,), math.log(11), dtype=torch.float64))
    axes = torch.eye(4, dtype=torch.float64)
    found = nt_xent(axes, axes, 0.5)  # pairs alike, all else orthogonal: 6 others at 0
    torch.testing.assert_close(found, torch.full((8,), math.log(1 + 6 * math.exp(-2)), dtype=torch.float64))


def test_it_is_symmetric_in_the_views_and_gradient_reaches_both():
    a, b = unit(5).requires_grad_(), unit(5, seed=1).requires_grad_()
    torch.testing.assert_close(nt_xent(a, b, 0.2), nt_xent(b, a, 0.2).roll(5))
    torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, 0.3), (a, b))
    nt_xent(a, b, 0.2).sum().backward()
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0


def test_one_pair_has_nothing_to_be_told_from():
    a = unit(1).requires_grad_()
    rows = nt_xent(a, unit(1, seed=1), 0.1)
    rows.sum().backward()
    assert rows.tolist() == [0, 0] and a.grad.abs().sum() == 0


def test_a_sample_that_comes_twice_is_an_other():
    a, b = unit(3), unit(3, seed=1)
    once = nt_xent(a, b, 0.2)
    twice = nt_xent(torch.cat([a, a[:1]]), torch.cat([b, b[:1]]), 0.2)
    assert twice[0] > once[0] + 0.5, "its own copy pulls it away from its partner"


def test_logits_are_fp32_under_autocast():
    a, b = unit(8, 16).float(), unit(8, 16, seed=1).float()
    exact = nt_xent(a, b, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent(a, b, 0.1), exact) and nt_xent(a.bfloat16(), b.bfloat16(), 0.1).dtype == torch.float32


def test_it_compiles_whole():
    a, b = unit(5), unit(5, seed=1)
    torch.testing.assert_close(torch.compile(nt_xent, backend="aot_eager", fullgraph=True)(a, b, 0.1), nt_xent(a, b, 0.1))


def test_views_of_different_numbers_are_refused():
    with pytest.raises(ValueError, match=r"\[N, D\] views, got \(5, 4\) and \(4, 4\)"):
        nt_xent(unit(5), unit(4), 0.1)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_projection_is_linear_and_batchnorm_with_relu_between(layers):
    torch.manual_seed(0)
    p, x = NormedProjection(5, 3, layers), torch.randn(6, 5)
    with torch.no_grad():
        for q in p.parameters():
            q.add_(0.1 * torch.randn_like(q))
    state = {name: value.numpy() for name, value in p.state_dict().items()}
    h = x.numpy()
    for k in range(layers):
        h = h @ state[f"layers.{3 * k}.weight"].T
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * state[f"layers.{3 * k + 1}.weight"]
        if k < layers - 1:
            h = np.maximum(h + state[f"layers.{3 * k + 1}.bias"], 0)
    np.testing.assert_allclose(p(x).detach(), h / np.sqrt((h**2).sum(1, keepdims=True)), rtol=1e-4, atol=1e-5)
    assert not list(p.buffers()) and len(state) == 3 * layers - 1, "no bias but batch-norm's, none at the end, no running statistics"
    exact = p(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(p(x), exact) and p(x.bfloat16()).dtype == torch.float32


def test_rows_all_alike_give_finite_gradients():
    torch.manual_seed(0)
    p, x = NormedProjection(5, 3, 2), torch.ones(8, 5, requires_grad=True)
    rows = nt_xent(*p(x).chunk(2), 0.1)
    rows.mean().backward()
    assert rows.isfinite().all() and x.grad.isfinite().all() and all(q.grad.isfinite().all() for q in p.parameters())
