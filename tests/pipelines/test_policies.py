"""Sampling laws of the strong policies: what is drawn, how often, how strong, and where the cutout falls."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from fastssl.pipelines import keyed
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import GEOMETRIC, OPS, POLICIES, Policy, Sampler, google_value, level_value, policy

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


def test_the_original_codes_magnitudes():
    table = {op: [google_value(op, v, 224, 0.3) for v in range(1, 10)] for op in OPS}
    assert table["posterize"] == [4, 4, 3, 3, 2, 2, 2, 1, 1]
    assert table["color"] == pytest.approx([0.18 * v + 0.1 for v in range(1, 10)])
    assert table["translate_x"] == list(range(1, 10)), "pixels, whatever the side"
    for op in ("solarize", "rotate", "shear_x", "equalize"):
        assert table[op] == [level_value(op, v, 224, 0.3) for v in range(1, 10)]
    ours, port = tables(POLICIES["fixmatch_tf"], 50_000), tables(POLICIES["fixmatch"], 50_000)
    assert torch.equal(ours.op, port.op) and torch.equal(ours.box, port.box), "one draw, two tables of magnitudes"
    contrast = ours.value[ours.op == OPS.index("contrast")]
    assert contrast.max() == pytest.approx(1.72) and contrast.min() == pytest.approx(0.28)
    moved = ours.value[ours.op == OPS.index("translate_y")]
    assert sorted(moved.unique().tolist()) == [float(v) for v in range(-9, 10) if v]


def test_usb_medium_draws_one():
    drawn = tables(POLICIES["usb_medium"], 50_000)
    assert drawn.op.shape == (50_000, 1) and p_value(torch.bincount(drawn.op[:, 0], minlength=14)) > SIGNIFICANT


def test_signs_are_fair_and_independent_of_level_and_slot():
    drawn = tables(dataclasses.replace(POLICIES["fixmatch"], p=1.0, ops=("rotate", "shear_y")), 200_000)
    level = torch.where(drawn.op == OPS.index("rotate"), drawn.value.abs() / 3, drawn.value.abs() / 0.03).round().long() - 1
    sign = (drawn.value > 0).long()
    for table in ((sign[:, 0] * 2 + sign[:, 1], 4), (level[:, 0] * 2 + sign[:, 0], 18), (level[:, 0] * 9 + level[:, 1], 81)):
        assert p_value(torch.bincount(table[0], minlength=table[1])) > SIGNIFICANT


def test_cutout_centres_are_uniform():
    """Away from the upper left border the clipped corner is the centre less half a side."""
    left, _, top, _ = tables(POLICIES["fixmatch"], 200_000).box.unbind(1)
    for corner in (left, top):
        counts = torch.bincount(corner, minlength=24)
        # Centres from 0 to 8 all have their corner at 0, and that at 8 to 9 too.
        assert p_value(counts, np.array([9, *[1] * 23]) * len(corner) / 32) > SIGNIFICANT
    inside = (left > 0) & (top > 0)
    pairs = torch.bincount((left * 24 + top)[inside], minlength=576).view(24, 24)[1:, 1:]
    assert p_value(pairs.flatten()) > SIGNIFICANT


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
