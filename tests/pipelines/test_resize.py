"""Resizing on the device gives Pillow's own pixels, whole or cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.pipelines.affine import crop_index, gathered
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.resize import Resizer, weights
from fastssl.pipelines.views import Augmenter

SIDES = [(32, 224), (32, 256), (96, 224), (96, 32), (64, 32), (28, 32), (256, 224), (8, 16), (1, 8), (50, 33), (224, 223), (7, 3)]


def by_pillow(x: torch.Tensor, size: int, interpolation: str) -> torch.Tensor:
    way = Image.Resampling[interpolation.upper()]
    images = (Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize((size, size), way) for image in x)
    return torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), SIDES)
def test_every_pixel_is_pillows(source, target, interpolation, pictures):
    x = pictures(source, source) if source > 4 else torch.arange(24 * source**2, dtype=torch.uint8).view(8, 3, source, source) * 37
    before = x.clone()
    assert torch.equal(Resizer(source, target, interpolation).whole(x), by_pillow(x, target, interpolation))
    assert torch.equal(x, before)


def test_black_and_white_overshoot_is_clipped(pictures):
    """Bicubic leaves 0..255 at hard edges; Pillow clips after each pass."""
    x = (torch.rand(6, 3, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8) * 255
    assert torch.equal(Resizer(9, 40).whole(x), by_pillow(x, 40, "bicubic"))


def test_nothing_to_do_is_nothing_done(pictures):
    x = pictures(16, 16)
    assert Resizer(16, 16).whole(x) is x


def test_weights_sum_to_one():
    for source, target in SIDES:
        table = weights(source, target, "bicubic")
        assert table.shape == (target, source) and np.abs(table.sum(1) / 2**22 - 1).max() < 1e-5
        assert (table == np.round(table)).all()


def test_a_cut_is_a_gather_of_the_whole(pictures):
    x, n = pictures(32, 32), 8
    resizer = Resizer(32, 64, "bilinear")
    rows, columns = (torch.randint(0, 64, (n, 40), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(resizer.cut(x, rows, columns), gathered(resizer.whole(x), rows, columns))


def test_blocks_do_not_show(pictures):
    x = pictures(32, 32)
    small, large = Resizer(32, 48), Resizer(32, 48)
    small.block, large.block = 3, 100
    assert torch.equal(small.whole(x), large.whole(x))


@pytest.mark.parametrize("stored", [32, 96])
def test_finessls_weak_view(stored, pictures):
    """Resize to 256, pad by reflection by 28, crop 224: each view is found in the padded picture that Pillow and numpy make."""
    x = pictures(stored, stored)
    augmenter = Augmenter(POLICIES["finessl"], (224, 224), flip=True, stored=stored, resize=256, interpolation="bilinear")
    assert augmenter.pad == 28
    got = augmenter.view(x, torch.arange(8), "weak")
    assert got.shape == (8, 3, 224, 224)
    whole = by_pillow(x, 256, "bilinear").numpy()
    found = 0
    for i in (0, 1, 5):  # pictures in which a place can be told
        padded = np.pad(whole[i], ((0, 0), (28, 28), (28, 28)), mode="reflect")
        mirrored = np.pad(whole[i][:, :, ::-1], ((0, 0), (28, 28), (28, 28)), mode="reflect")
        view = got[i].numpy()
        places = [
            (p, r, c) for p in (padded, mirrored) for r in range(89) for c in range(89) if (p[:, r, c : c + 8] == view[:, 0, :8]).all()
        ]
        found += any(np.array_equal(p[:, r : r + 224, c : c + 224], view) for p, r, c in places)
    assert found == 3
    assert torch.equal(augmenter.view(x, torch.arange(8), "plain"), by_pillow(x, 224, "bilinear"))


def test_corners_of_a_larger_picture_are_uniform():
    """89 places an axis, as torchvision's RandomCrop(224, padding=28) of 256 pixels; here the same at an eighth of the side."""
    augmenter = Augmenter(POLICIES["finessl"], (28, 28), flip=False, stored=32, resize=32)
    image = torch.arange(32 * 32).view(1, 1, 32, 32) % 251
    crops = augmenter.cropped(image.to(torch.uint8).expand(4000, 3, -1, -1), torch.arange(4000))
    offsets = 32 + 2 * augmenter.pad - 28 + 1
    assert len(crops.flatten(1).unique(dim=0)) == offsets**2


def test_an_unmirrored_crop_of_nothing_is_the_picture():
    none = torch.zeros(2, dtype=torch.int64)
    rows, columns = crop_index(none.bool(), none + 4, none + 4, 4, (32, 32), (32, 32))
    assert torch.equal(rows, torch.arange(32).expand(2, 32)) and torch.equal(columns, rows)


def test_refused():
    with pytest.raises(ConfigError, match="unknown interpolation 'nearest'; did you mean"):
        weights(8, 16, "nearest")
    with pytest.raises(ConfigError, match="data.resize 200 is below the image size 224"):
        Augmenter(POLICIES["finessl"], (224, 224), flip=True, resize=200)
