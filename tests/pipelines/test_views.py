"""The weak view's crop and flip, and views as functions of their keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fastssl.pipelines.affine import crop_index, gathered, slid
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.views import RECIPES, Augmenter, normalised, recipe


def test_crop_reflects_without_repeating_the_edge():
    x = torch.randint(0, 256, (81, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    top, left = torch.arange(81) // 9, torch.arange(81) % 9
    flip = torch.arange(81) % 2 == 1
    got = gathered(x, *crop_index(flip, top, left, 4, (32, 32), (32, 32)))
    for i in range(81):
        image = np.flip(x[i].numpy(), 2) if flip[i] else x[i].numpy()
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        assert np.array_equal(got[i].numpy(), padded[:, top[i] : top[i] + 32, left[i] : left[i] + 32])


@pytest.mark.parametrize(("picture", "crop", "pad"), [(32, 32, 4), (40, 32, 4), (40, 32, 0), (7, 7, 1), (9, 8, 8), (5, 5, 4)])
def test_slices_are_the_gather(picture, crop, pad):
    """Large images are cut by slices, small ones by one gather: the same pixels for every corner."""
    x = torch.randint(0, 256, (3, picture, picture), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    count = picture + 2 * pad - crop + 1
    corners = torch.arange(count)
    for flip in (False, True):
        top = corners.flip(0)
        rows, columns = crop_index(torch.full((count,), flip), top, corners, pad, (picture, picture), (crop, crop))
        whole = gathered(x.expand(count, -1, -1, -1), rows, columns)
        for i in range(count):
            out = torch.empty(3, crop, crop, dtype=torch.uint8)
            slid(x, rows[i], i, pad, flip, out)
            assert torch.equal(out, whole[i])


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


def test_the_81_corners_of_a_cifar_crop_are_equally_likely():
    n = 162_000
    words = torch.arange(32 * 32).view(32, 32)
    halves = torch.stack([words // 32, words % 32, words % 32]).to(torch.uint8)
    made = Augmenter(POLICIES["fixmatch"], (32, 32), flip=False).cropped(halves.expand(n, -1, -1, -1), torch.arange(n) * 0x632BE59BD9B4E019)
    row, column = made[:, 0, 16, 16].long() - 12, made[:, 1, 16, 16].long() - 12
    counts = torch.bincount(row * 9 + column, minlength=81)
    assert counts.numel() == 81 and stats.chisquare(counts.numpy()).pvalue > 1e-4


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
        for view in [view for view in RECIPES if view != "probe" or augmenter.rates is not None]:
            whole = augmenter.view(images, keys, view)
            alone = torch.cat([augmenter.view(images[i : i + 1], keys[i : i + 1], view) for i in range(64)])
            assert torch.equal(whole, alone), (name, view)
            assert whole.dtype == torch.uint8
        assert torch.equal(images, before), "views leave the resident images alone"
        assert not torch.equal(augmenter.view(images, keys, "strong"), augmenter.view(images, keys + 1, "strong"))


@pytest.mark.parametrize("policy", ["fixmatch", "ctaugment", "usb_224"])
def test_several_views_in_one_buffer_are_each_view_alone(policy):
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    augmenter, keys = Augmenter(POLICIES[policy], (32, 32), flip=True), torch.arange(40) * 31
    names = [("weak", "weak", "strong", "strong"), ("plain", "simclr", "weak", "strong"), ("strong", "weak", "plain", "plain")]
    for names_of_views in names:
        made = augmenter.views(images, keys, names_of_views, [4, 6, 10, 20])
        at = 0
        for name, size in zip(names_of_views, [4, 6, 10, 20], strict=True):
            part = slice(at, at + size)
            assert torch.equal(made[part], augmenter.view(images[part], keys[part], name)), (names_of_views, name)
            at += size


@pytest.mark.parametrize("policy", ["fixmatch", "finessl", "usb"])
def test_large_images_one_by_one_are_the_batch(policy, monkeypatch):
    """From 105 pixels a CPU takes images one by one: the same pixels, to the last bit."""
    from fastssl.pipelines import resize, strong_ops, views

    images = torch.randint(0, 256, (24, 3, 120, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    images[::2] = (images[::2].float() * 0.3 + 60).to(torch.uint8)
    small, keys = images[..., 40:72, 40:72].contiguous(), torch.arange(24) * 31
    make = lambda **options: Augmenter(POLICIES[policy], (120, 120), flip=True, **options)  # noqa: E731
    makers = [(make(), images), (make(stored=32, resize=128), small), (make(stored=32, interpolation="bilinear"), small)]
    alone = [augmenter.view(x, keys, name) for augmenter, x in makers for name in ("plain", "weak", "strong")]
    for module in (views, strong_ops):
        monkeypatch.setattr(module, "LARGE", 1 << 30)
    monkeypatch.setattr(resize, "_LARGE", 1 << 30)
    makers = [(make(), images), (make(stored=32, resize=128), small), (make(stored=32, interpolation="bilinear"), small)]
    assert makers[1][0].to_picture.taps is None
    batch = [augmenter.view(x, keys, name) for augmenter, x in makers for name in ("plain", "weak", "strong")]
    assert all(torch.equal(a, b) for a, b in zip(alone, batch, strict=True))


@pytest.mark.parametrize("side", [8, 224])
def test_normalised_is_a_product_and_a_sum(side):
    x = torch.randint(0, 256, (9, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    scale, offset = torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1)
    expected = x.float() * scale + offset
    out = torch.empty(9, 3, side, side)
    assert torch.equal(normalised(x, scale, offset), expected) and normalised(x, scale, offset, out) is out
    assert torch.equal(out, expected) and normalised(x[:0], scale, offset).shape == (0, 3, side, side)


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
