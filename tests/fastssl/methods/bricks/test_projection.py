"""The projection to the unit sphere, and similarities on it."""

import numpy as np
import torch

from fastssl.methods.bricks.projection import Projection, log_affinity


def test_two_layers_and_rows_of_length_one():
    torch.manual_seed(0)
    p, f = Projection(5, 3), torch.randn(4, 5)
    first, _, second = p.layers
    h = np.maximum(f.numpy() @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    g = h @ second.weight.detach().numpy().T + second.bias.detach().numpy()
    assert h.shape[1] == 5 and g.shape[1] == 3
    np.testing.assert_allclose(p(f).detach(), g / np.sqrt((g**2).sum(1, keepdims=True)), rtol=1e-5, atol=1e-6)


def test_everything_is_fp32_under_autocast():
    p, f = Projection(5, 3), torch.randn(4, 5)
    exact = p(f)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = p(f)
        affinity = log_affinity(out, out, 0.1)
        assert p(f.bfloat16()).dtype == torch.float32
    assert torch.equal(out, exact) and affinity.dtype == torch.float32
    np.testing.assert_allclose(affinity.exp().sum(1).detach(), 1, rtol=1e-5)
