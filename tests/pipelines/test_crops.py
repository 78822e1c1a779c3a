"""Random crops brought to one size: the pixels of Pillow's crop and resize, and the law of torchvision's RandomResizedCrop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from fastssl.pipelines import crops, resize
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.views import Augmenter

NAMES = (*crops.FILTERS, "nearest")


def resized_by_pillow(x: torch.Tensor, box: list[int], size: int, filter: str) -> torch.Tensor:
    """Columns first, then rows: one call each, as Pillow 13 takes the rows of some tall boxes first."""
    top, left, height, width = box
    part = Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()).crop((left, top, left + width, top + height))
    method = Image.Resampling[filter.upper()]
    return torch.from_numpy(np.array(part.resize((size, height), method).resize((size, size), method))).permute(2, 0, 1)


@pytest.mark.parametrize("size", [32, 7, 61])
@pytest.mark.parametrize("name", NAMES)
def test_every_crop_equals_pillows(name, size, pictures):
    side = 40
    images = pictures(side, side)
    rng = np.random.default_rng(size)
    box = np.array([(0, 0, 40, 40), (39, 39, 1, 1), (3, 0, 2, 40), *[(0, 0, 0, 0)] * 21])
    for row in box[3:]:
        row[2:] = rng.integers(1, side + 1, 2)
        row[:2] = rng.integers(0, side - row[2:] + 1)
    x = images.repeat(3, 1, 1, 1)
    got = crops.resized_crop(x, torch.from_numpy(box), size, name)
    for i, row in enumerate(box.tolist()):
        assert torch.equal(got[i], resized_by_pillow(x[i], row, size, name)), (name, i, row)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_weights_of_the_whole_axis_are_the_resizers(name):
    for source, target in [(32, 224), (256, 224), (9, 9), (224, 32)]:
        got = crops.stretches(torch.tensor([0]), torch.tensor([source]), source, target, name)[0]
        assert np.array_equal(got.numpy(), resize.weights(source, target, name))


def test_boxes_follow_torchvisions_law():
    """Areas, aspects and corners of accepted boxes against RandomResizedCrop.get_params."""
    transforms = pytest.importorskip("torchvision.transforms", reason="the law is torchvision's: pip install torchvision")
    n, side = 20_000, 64
    ours = crops.boxes(torch.arange(n), side).double().numpy()
    image = torch.zeros(3, side, side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)], float)
    for what in (lambda b: b[:, 2], lambda b: b[:, 3], lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3]):
        assert stats.ks_2samp(what(ours), what(theirs)).pvalue > 1e-4
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= side).all() and ours[:, 2:].min() >= 1
    assert stats.ks_2samp(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]).pvalue > 1e-4


def test_a_picture_of_one_pixel_is_shown_whole():
    assert crops.boxes(torch.arange(50), 1).tolist() == [[0, 0, 1, 1]] * 50


def test_usb_at_224_crops_strong_views_and_pads_none(pictures):
    """Strong: a random part of the picture at 256, mirrored, at 224. Weak: one of 33 x 33 plain corners of that picture."""
    images = pictures(48, 48)
    augmenter = Augmenter(POLICIES["usb_224"], (32, 32), flip=True, stored=48, resize=40, interpolation="bilinear")
    assert augmenter.pad == 0
    keys = torch.arange(len(images)) * 31
    large = torch.from_numpy(resize.resized(images.numpy(), 40, "bilinear"))
    box = crops.boxes(keys, 40)
    got = augmenter.resized_crop(images, keys)
    for i, row in enumerate(box.tolist()):
        expected = resized_by_pillow(large[i], row, 32, "bilinear")
        assert torch.equal(got[i], expected) or torch.equal(got[i], expected.flip(2)), i
    strong = augmenter.view(images, keys, "strong")
    assert torch.equal(strong, augmenter.strengthened(got, augmenter.drawn(keys)))
    weak = augmenter.view(images, keys, "weak")
    corners = [large[:, :, t : t + 32, s : s + 32] for t in range(9) for s in range(9)]
    shown = [any(torch.equal(w, c[i]) or torch.equal(w, c[i].flip(2)) for c in corners) for i, w in enumerate(weak)]
    assert all(shown)
    mirrored = augmenter._mirrored(torch.arange(4000) * 0x5851F42D4C957F2D)
    assert 0.45 < mirrored.double().mean() < 0.55


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown interpolation 'lanczo'; did you mean lanczos"):
        crops.stretches(torch.tensor([0]), torch.tensor([4]), 4, 4, "lanczo")
    import dataclasses

    with pytest.raises(ConfigError, match="unknown crop 'resize'; did you mean resized"):
        Augmenter(dataclasses.replace(POLICIES["usb"], crop="resize"), (8, 8), flip=True)
