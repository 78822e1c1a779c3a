"""SimCLR's view: each operation against its definition, the laws of what is drawn, and the view as a function of its key."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from fastssl.pipelines import keyed, simclr
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.views import Augmenter


def pixels(n=6, side=9, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_saturation_and_hue_are_hsvs():
    x = pixels()
    x[0, :, :3] = x[0, :1, :3]  # grey
    x[1, :, 0, 0], x[1, :, 0, 1], x[1, :, 0, 2] = 0.0, 1.0, torch.tensor([1.0, 0.0, 0.0])
    factor, turn = torch.tensor([0.0, 0.2, 1.0, 1.7, 1.8, 0.5]), torch.tensor([0.0, 0.2, -0.2, 0.1, -0.07, 1.0])
    more, turned = simclr.saturation(x, factor), simclr.hue(x, turn)
    for i in range(len(x)):
        for at in np.ndindex(9, 9):
            h, s, v = colorsys.rgb_to_hsv(*x[i][(slice(None), *at)].double().tolist())
            assert more[i][(slice(None), *at)].tolist() == pytest.approx(colorsys.hsv_to_rgb(h, min(s * factor[i].item(), 1), v), abs=2e-6)
            assert turned[i][(slice(None), *at)].tolist() == pytest.approx(colorsys.hsv_to_rgb((h + turn[i].item()) % 1, s, v), abs=2e-6)


def test_brightness_and_contrast():
    x = pixels()
    factor = torch.linspace(0, 1.8, 6)
    by = factor.view(-1, 1, 1, 1)
    assert torch.equal(simclr.brightness(x, factor), (x * by).clamp(0, 1))
    mean = x.double().mean((2, 3), keepdim=True)
    expected = ((x - mean) * by + mean).clamp(0, 1).float()
    torch.testing.assert_close(simclr.contrast(x, factor), expected, atol=1e-6, rtol=0)
    assert simclr.contrast(x, factor)[0].flatten(1).std(1).max() < 1e-6, "factor 0 leaves each channel's mean"


@pytest.mark.parametrize(("side", "taps"), [(8, 1), (32, 3), (224, 23), (96, 9)])
def test_blur_is_a_gaussian_of_the_published_length_with_zeros_around(side, taps):
    x, sigma = pixels(3, side), torch.tensor([0.1, 0.7, 2.0])
    got = simclr.blurred(x, sigma)
    radius = taps // 2
    for i in range(3):
        offset = np.arange(-radius, radius + 1)
        weight = np.exp(-(offset**2) / (2 * sigma[i].item() ** 2))
        weight /= weight.sum()
        expected = x[i].double().numpy()
        for axis in (1, 2):
            expected = ndimage.convolve1d(expected, weight, axis=axis, mode="constant")
        assert np.abs(got[i].numpy() - expected).max() < 1e-6
    assert taps == 1 or not torch.allclose(got[2], x[2])


def test_settings_by_side():
    assert simclr.distortion_of(32) == simclr.Distortion(0.5, 0.0)
    assert simclr.distortion_of(96) == simclr.distortion_of(224) == simclr.Distortion(1.0, 0.5)


def test_coins_fall_as_published():
    """Read off a constant colour: a grey image has lost it, an image that only the blur may touch keeps it inside."""
    n = 20_000
    x = torch.tensor([200, 120, 40], dtype=torch.uint8).view(1, 3, 1, 1).expand(n, 3, 12, 12)
    out = simclr.distorted(x, keyed.joined(keyed.key(1), torch.arange(n)), simclr.Distortion(0.5, 0.5))
    # With 12 pixels the blur has one tap only, so these are the colours alone.
    middle = out[:, :, 6, 6].long()
    grey = (middle.amax(1) - middle.amin(1)) <= 1
    assert stats.binomtest(int(grey.sum()), n, 0.2).pvalue > 1e-4
    untouched = (middle == torch.tensor([200, 120, 40])).all(1)
    # Neither jittered nor grey.
    assert abs(untouched.double().mean() - 0.2 * 0.8) < 0.012
    large = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)).expand(2000, -1, -1, -1)
    keys = keyed.joined(keyed.key(2), torch.arange(2000))
    sharp, soft = (simclr.distorted(large, keys, simclr.Distortion(0.5, blur)) for blur in (0.0, 0.5))
    blurred = (sharp != soft).flatten(1).any(1)
    # A sigma below about 0.17 leaves a whole image of 8 bits as it is.
    assert 0.42 < blurred.double().mean() < 0.5


def test_orders_are_all_equally_likely():
    words = keyed.bits(keyed.joined(simclr._STREAM, torch.arange(24_000)), simclr._WORDS)
    order = keyed.unit(words)[:, 5:9].argsort(1)
    code = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_order_of_operations_is_kept():
    x = pixels(2)
    factors = torch.tensor([[1.6, 1.7, 1.5, 0.1]] * 2)
    order = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 2]])
    got = simclr._jittered(x.clone(), order, factors)
    for i in range(2):
        expected = x[i : i + 1]
        for k in order[i].tolist():
            expected = simclr._JITTER[k](expected, factors[i : i + 1, k])
        assert torch.equal(got[i : i + 1], expected)
    assert not torch.allclose(got[0], simclr._jittered(x.clone(), order.flip(0), factors)[0])


@pytest.mark.parametrize("side", [8, 32, 48])
def test_the_view_depends_on_the_key_alone(side, pictures):
    images = pictures(side, side).repeat(4, 1, 1, 1)
    before = images.clone()
    augmenter = Augmenter(POLICIES["fixmatch"], (side, side), flip=True)
    keys = torch.arange(len(images)) * 31
    whole = augmenter.view(images, keys, "simclr")
    assert whole.dtype == torch.uint8 and whole.shape == images.shape
    assert torch.equal(whole, torch.cat([augmenter.view(images[i : i + 1], keys[i : i + 1], "simclr") for i in range(len(images))]))
    assert torch.equal(images, before)
    other = augmenter.view(images, keys + 1, "simclr")
    differ = (whole != other).flatten(1).any(1)
    assert differ[torch.arange(len(images)) % 8 != 2].all(), "two views of one image differ (an image of one colour may not)"


def test_dense_path_equals_the_grouped_one(pictures):
    """The device path, which reads nothing on the host, makes the same pixels."""
    from unittest import mock

    images, keys = pictures(48, 48).repeat(6, 1, 1, 1), torch.arange(48) * 17
    grouped = simclr.distorted(images, keys, simclr.Distortion())
    with mock.patch.object(torch.Tensor, "is_cuda", True):
        dense = simclr.distorted(images, keys, simclr.Distortion())
    assert torch.equal(grouped, dense)


def test_a_set_that_cannot_be_mirrored_never_is():
    ramp = torch.arange(32, dtype=torch.uint8).mul(7).expand(500, 3, 32, 32).contiguous()
    augmenter = Augmenter(POLICIES["fixmatch"], (32, 32), flip=False)
    rising = augmenter.resized_crop(ramp, torch.arange(500))[:, 0, 16].long().diff(dim=1)
    assert (rising >= 0).all()
    mirrored = Augmenter(POLICIES["fixmatch"], (32, 32), flip=True).resized_crop(ramp, torch.arange(500))[:, 0, 16].long().diff(dim=1)
    assert 0.4 < (mirrored.sum(1) < 0).double().mean() < 0.6
