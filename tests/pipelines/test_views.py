"""The weak view's crop and flip, and views as functions of their keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fastssl.pipelines.affine import crop_index, gathered
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.views import Augmenter, recipe


def test_crop_reflects_without_repeating_the_edge():
    x = torch.randint(0, 256, (81, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    top, left = torch.arange(81) // 9, torch.arange(81) % 9
    flip = torch.arange(81) % 2 == 1
    got = gathered(x, *crop_index(flip, top, left, 4, (32, 32), (32, 32)))
    for i in range(81):
        image = np.flip(x[i].numpy(), 2) if flip[i] else x[i].numpy()
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        assert np.array_equal(got[i].numpy(), padded[:, top[i] : top[i] + 32, left[i] : left[i] + 32])


def test_offsets_and_flips_are_uniform():
    """Read off the pixels: with a coordinate image the crop's corner and the mirroring can be seen."""
    n, side = 81_000, 16
    image = torch.arange(side * side, dtype=torch.uint8).view(1, 1, side, side).expand(1, 3, side, side)
    augmenter = Augmenter(POLICIES["fixmatch"], (side, side), flip=True)
    assert augmenter.pad == 2
    centre = augmenter.cropped(image.expand(n, -1, -1, -1), torch.arange(n))[:, 0, 7, 6:8].long()
    row, first, second = centre[:, 0] // side, centre[:, 0] % side, centre[:, 1] % side
    flipped = second < first
    assert stats.binomtest(int(flipped.sum()), n).pvalue > 1e-4
    column = torch.where(flipped, side - 1 - first, first)
    cells = torch.bincount((row - 5) * 5 + (column - 4), minlength=25)
    assert cells.numel() == 25 and stats.chisquare(cells.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("side", "offsets"), [(32, 81), (8, 9), (7, 1), (1, 1)])
def test_pad_is_an_eighth_of_the_side(side, offsets):
    image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    crops = Augmenter(POLICIES["fixmatch"], (side, side), flip=False).cropped(image.expand(4000, -1, -1, -1), torch.arange(4000))
    assert len(crops.flatten(1).unique(dim=0)) == offsets


def test_a_set_that_cannot_be_mirrored_never_is():
    ramp = torch.arange(32, dtype=torch.uint8).expand(1, 3, 32, 32)
    crops = Augmenter(POLICIES["fixmatch"], (32, 32), flip=False).cropped(ramp.expand(2000, -1, -1, -1), torch.arange(2000))
    assert (crops[:, :, :, 5:27].long().diff(dim=3) == 1).all()


def test_views_depend_on_the_key_alone():
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    before = images.clone()
    for name in POLICIES:
        augmenter = Augmenter(POLICIES[name], (32, 32), flip=True)
        keys = torch.arange(64) * 31
        for view in ("plain", "weak", "strong"):
            whole = augmenter.view(images, keys, view)
            alone = torch.cat([augmenter.view(images[i : i + 1], keys[i : i + 1], view) for i in range(64)])
            assert torch.equal(whole, alone), (name, view)
            assert whole.dtype == torch.uint8
        assert torch.equal(images, before), "views leave the resident images alone"
        assert not torch.equal(augmenter.view(images, keys, "strong"), augmenter.view(images, keys + 1, "strong"))


def test_strong_is_the_weak_view_strengthened():
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    augmenter = Augmenter(POLICIES["fixmatch"], (32, 32), flip=True)
    keys = torch.arange(32)
    drawn = augmenter.drawn(keys)
    untouched = (drawn.op == 0).all(1)
    assert untouched.any()
    outside = torch.ones(32, 32, dtype=torch.bool).expand(32, 32, 32).clone()
    for i, (left, right, top, bottom) in enumerate(drawn.box.tolist()):
        outside[i, top : bottom + 1, left : right + 1] = False
    weak, strong = augmenter.view(images, keys, "weak"), augmenter.view(images, keys, "strong")
    for i in untouched.nonzero()[:, 0].tolist():
        assert torch.equal(strong[i][:, outside[i]], weak[i][:, outside[i]])
        assert (strong[i][:, ~outside[i]] == 127).all()


def test_unknown_view_is_refused():
    with pytest.raises(ConfigError, match="unknown view 'stron'; did you mean strong"):
        recipe("stron")
