"""Sampling laws of the strong policies: what is drawn, how often, how strong, and where the cutout falls."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from fastssl.pipelines import keyed
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import GEOMETRIC, OPS, POLICIES, Policy, Sampler, level_value, policy

SIGNIFICANT = 1e-4


def tables(policy: Policy, n: int, side: int = 32):
    sampler = Sampler(policy, side, side)
    return sampler.drawn(keyed.bits(keyed.joined(keyed.key(11), torch.arange(n)), sampler.words))


def p_value(counts, expected=None):
    return stats.chisquare(np.asarray(counts), expected).pvalue


def test_fixmatch_operations_levels_coins_and_signs():
    n = 500_000  # two slots: a million draws
    # Sure application shows the operation under every coin.
    drawn = tables(dataclasses.replace(POLICIES["fixmatch"], p=1.0), n)
    for slot in range(2):
        assert p_value(torch.bincount(drawn.op[:, slot], minlength=14)) > SIGNIFICANT
    pairs = torch.bincount(drawn.op[:, 0] * 14 + drawn.op[:, 1], minlength=196)
    assert p_value(pairs) > SIGNIFICANT, "slots are independent, so a repeated operation has P 1/14"
    shear = drawn.value[drawn.op == OPS.index("shear_x")]
    counts = [(torch.isclose(shear, torch.tensor(s * 0.03 * v, dtype=torch.float64))).sum().item() for v in range(1, 10) for s in (1, -1)]
    assert sum(counts) == len(shear) and p_value(counts) > SIGNIFICANT
    for k in range(GEOMETRIC):
        assert (drawn.value[drawn.op == k] >= 0).all(), "no sign on operations that are not geometric"
    halved = tables(POLICIES["fixmatch"], n)
    applied = (halved.op == drawn.op)[drawn.op > 0]
    assert abs(applied.double().mean() - 0.5) < 0.005
    assert (halved.op[halved.op != drawn.op] == 0).all()
    changed_nothing = (halved.op[:, 0] == 0).double().mean()
    assert abs(changed_nothing - (0.5 + 0.5 / 14)) < 0.005


def test_fixmatch_magnitudes_are_the_published_table():
    table = {op: [level_value(op, v, 32, 0.3) for v in range(1, 10)] for op in OPS}
    assert table["posterize"] == [4, 4, 5, 5, 6, 6, 6, 7, 7]
    assert table["solarize"] == [231, 205, 180, 154, 128, 103, 77, 52, 26]
    assert table["rotate"] == [3 * v for v in range(1, 10)]
    assert table["translate_x"] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [level_value("translate_y", v, 224, 0.3) for v in range(1, 10)] == [6, 13, 20, 26, 33, 40, 47, 53, 60]
    assert table["brightness"] == pytest.approx([0.09 * v + 0.05 for v in range(1, 10)])
    assert table["shear_y"] == pytest.approx([0.03 * v for v in range(1, 10)])


def test_usb_magnitudes_are_continuous_over_their_ranges():
    drawn = tables(POLICIES["usb"], 100_000)
    assert drawn.op.shape[1] == 3
    for slot in range(3):
        assert p_value(torch.bincount(drawn.op[:, slot], minlength=14)) > SIGNIFICANT, "always applied: identity no oftener than others"
    ranges = {"brightness": (0.05, 0.95), "rotate": (-30, 30), "shear_x": (-0.3, 0.3), "solarize": (0, 256), "translate_y": (-9.6, 9.6)}
    for op, (low, high) in ranges.items():
        values = drawn.value[drawn.op == OPS.index(op)].numpy()
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > SIGNIFICANT, op
    bits = drawn.value[drawn.op == OPS.index("posterize")].long()
    assert sorted(bits.unique().tolist()) == [4, 5, 6, 7] and p_value(torch.bincount(bits)[4:]) > SIGNIFICANT


def test_fixmatch_cutout_at_32():
    left, right, top, bottom = tables(POLICIES["fixmatch"], 200_000).box.unbind(1)
    width = right.clamp(max=31) - left + 1
    height = bottom.clamp(max=31) - top + 1
    assert abs((width == 17).double().mean() - 0.75) < 0.005
    assert width.min() == 9 and height.min() == 9 and width.max() == 17
    assert (left >= 0).all() and (width[left == 0] == 17).all() and (height[top == 0] == 17).all(), "never cut at the left or upper border"
    assert abs((width * height).double().mean() / 1024 - 0.246) < 0.002


def test_cutout_sizes_of_the_other_policies():
    for name, side, widest in [
        ("finessl", 224, 17),
        ("finessl", 32, 3),
        ("finessl_16px", 32, 17),
        ("finessl_16px", 224, 17),
        ("digits", 8, 3),
    ]:
        left, right, _, _ = tables(POLICIES[name], 5_000, side).box.unbind(1)
        assert (right.clamp(max=side - 1) - left + 1).max() == widest, name
    box = tables(POLICIES["finessl_16px"], 50_000, 224).box.double()
    area = (box[:, 1].clamp(max=223) - box[:, 0] + 1) * (box[:, 3].clamp(max=223) - box[:, 2] + 1)
    assert abs(area.mean() / 224**2 - 0.0057) < 0.0002


def test_usb_cutout_side_law():
    box = tables(POLICIES["usb"], 200_000).box.double()
    width = box[:, 1].clamp(max=31) - box[:, 0] + 1
    height = box[:, 3].clamp(max=31) - box[:, 2] + 1
    assert width.max() == 16 and width.min() == 1
    assert abs((width * height).mean() / 1024 - 0.08) < 0.01
    assert ((box[:, 0] >= 0) & (box[:, 0] <= 31)).double().mean() > 0.99


def test_no_cutout_draws_an_empty_box():
    box = tables(Policy(cutout=0.0), 100).box
    assert (box[:, 1] < box[:, 0]).all()


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown policy 'fixmach'; did you mean fixmatch"):
        policy("fixmach")
    with pytest.raises(ConfigError, match="unknown magnitude law 'level'; did you mean levels"):
        Sampler(Policy(law="level"), 32, 32)
