"""Networks by name: shapes, and what a frozen encoder keeps."""

import pytest
import torch

from fastssl.config import ModelConfig
from fastssl.models import build


@pytest.mark.parametrize(("name", "width"), [("wrn-28-2", 128), ("wrn-28-8", 512), ("glyph_clip", 128)])
def test_shapes(name, width):
    out = build(ModelConfig(name=name, weights="random"), ("a", "b", "c"))(torch.randn(2, 3, 32, 32))
    assert out.logits.shape == (2, 3) and out.features.shape == (2, width)


def test_wrn_28_2_has_the_published_size():
    network = build(ModelConfig(name="wrn-28-2"), tuple("0123456789"))
    assert sum(p.numel() for p in network.parameters()) == 1_467_610


def test_linear_tuning_leaves_batchnorm_statistics_alone():
    network = build(ModelConfig(name="wrn-28-2", tune="linear"), ("a", "b")).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(torch.randn(4, 3, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
