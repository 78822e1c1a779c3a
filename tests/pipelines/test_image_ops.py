"""The fourteen operations against Pillow: every discrete level and random real magnitudes, no grey level off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastssl.pipelines import image_ops
from fastssl.pipelines.policies import GEOMETRIC, LEVELS, OPS, POLICIES, Sampler, continuous_range, level_value
from fastssl.pipelines.strong_ops import cut_out, operate
from fastssl.pipelines.views import Augmenter

SIZES = [(32, 32), (33, 31), (17, 40), (224, 224), (8, 8)]
ENHANCE = ("brightness", "color", "contrast", "sharpness")


def ours(op, images, value):
    n = len(images)
    return operate(images.clone(), torch.full((n,), OPS.index(op)), torch.full((n,), float(value), dtype=torch.float64))


def discrete(op, side):
    values = {level_value(op, level, side, 0.3) for level in range(1, LEVELS + 1)}
    if op in ENHANCE:
        values |= {0.18 * v + 0.1 for v in range(1, 10)} | {0.0, 1.0}
    if op == "posterize":
        values = set(range(1, 9))
    if op == "solarize":
        values |= {0, 256}
    if OPS.index(op) >= GEOMETRIC:
        values |= {-v for v in values} | {0}
    if op == "rotate":
        values |= {45, 90, 180, 270, 360}
    return sorted(values)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("op", OPS)
def test_every_discrete_level_equals_pillow(op, size, pictures, pillow):
    images = pictures(*size)
    for value in discrete(op, size[1]):
        got = ours(op, images, value)
        for i, image in enumerate(images):
            assert torch.equal(got[i], pillow(op, image, value)), f"{op} {value} image {i}"


@pytest.mark.parametrize("op", [op for op in OPS if continuous_range(op, 32, 0.3) != (0.0, 0.0) and op != "posterize"])
def test_random_real_magnitudes_equal_pillow(op, pictures, pillow):
    rng = np.random.default_rng(1)
    for size in SIZES[:3]:
        images = pictures(*size)[[0, 5, 7]]
        low, high = continuous_range(op, size[1], 0.3)
        if op in ENHANCE:
            low, high = -0.5, 2.5
        for value in rng.uniform(low, high, 50):
            got = ours(op, images, value)
            for i, image in enumerate(images):
                assert torch.equal(got[i], pillow(op, image, float(value))), f"{op} {value} image {i}"


@pytest.fixture(scope="module")
def photographs():
    """[12, 3, 48, 48] uint8: parts of scikit-learn's two photographs, half of them as JPEG has left them."""
    import io

    from sklearn.datasets import load_sample_images

    parts = []
    for i in range(12):
        photo = load_sample_images().images[i % 2]
        part = Image.fromarray(photo[30 * i : 30 * i + 48, 45 * i : 45 * i + 48])
        if i % 4 > 1:
            buffer = io.BytesIO()
            part.save(buffer, "JPEG", quality=60)
            part = Image.open(buffer)
        parts.append(np.asarray(part).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(parts))


@pytest.mark.parametrize("op", OPS)
def test_photographs_equal_pillow(op, photographs, pillow):
    for value in discrete(op, 48):
        got = ours(op, photographs, value)
        assert torch.equal(got, torch.stack([pillow(op, image, value) for image in photographs])), (op, value)


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (5, 5), (4, 9), (2, 3)])
def test_invert_smooth_and_blur_equal_pillow(size, pictures):
    from PIL import ImageFilter

    images = pictures(*size)
    made = (image_ops.invert(images), image_ops.smoothed(images).to(torch.uint8), image_ops.blurred(images).to(torch.uint8))
    runs = (ImageOps.invert, lambda x: x.filter(ImageFilter.SMOOTH), lambda x: x.filter(ImageFilter.BLUR))
    for got, run in zip(made, runs, strict=True):
        for i, image in enumerate(images):
            expected = np.asarray(run(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())))
            assert np.array_equal(got[i].permute(1, 2, 0).numpy(), expected)


def test_blend_truth_table_at_all_fixmatch_factors():
    # Every (degenerate, value) pair: degenerates as a plane of their own, values as the image.
    d, x = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    plane = torch.from_numpy(x)[None, None].expand(1, 3, -1, -1).contiguous()
    for factor in [0.09 * v + 0.05 for v in range(1, 10)] + [0.18 * v + 0.1 for v in range(1, 10)]:
        expected = np.asarray(Image.blend(Image.fromarray(d), Image.fromarray(x), factor))
        got = image_ops.blended(torch.from_numpy(d).float(), plane, torch.tensor([factor], dtype=torch.float64))
        assert np.array_equal(got[0, 1].numpy(), expected), factor


def test_autocontrast_of_every_pair_of_extremes():
    pairs = [(low, high) for low in range(256) for high in range(low + 1, 256)]
    assert len(pairs) == 32640
    for start in range(0, len(pairs), 4080):
        low, high = np.array(pairs[start : start + 4080]).T
        # One row of pixels holds every value of the range; the values outside it repeat its ends.
        images = np.clip(np.arange(256)[None], low[:, None], high[:, None]).astype(np.uint8)
        got = image_ops.autocontrast(torch.from_numpy(images)[:, None, None].expand(-1, 3, 1, -1), torch.zeros(len(images)))
        scale = 255.0 / (high - low)
        table = np.clip(np.trunc(images * scale[:, None] + (-low * scale)[:, None]), 0, 255)
        assert np.array_equal(got[:, 2, 0].numpy(), table.astype(np.uint8))
    known = torch.tensor([40, 90], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert image_ops.autocontrast(known, torch.zeros(1))[0, 0, 0].tolist() == [0, 254]


def test_autocontrast_of_a_long_row_equals_pillow_for_sampled_pairs():
    for low, high in [(40, 90), (0, 1), (0, 255), (254, 255), (13, 200), (100, 103)]:
        row = np.arange(low, high + 1, dtype=np.uint8)[None]
        expected = np.asarray(ImageOps.autocontrast(Image.fromarray(row)))
        got = image_ops.autocontrast(torch.from_numpy(row)[None, None].expand(1, 3, 1, -1), torch.zeros(1))
        assert np.array_equal(got[0, 0].numpy(), expected)


@pytest.mark.parametrize("counts", ["one", "two", "all", "few pixels", "last bin heavy", "first bin heavy"])
def test_equalize_of_telling_histograms(counts):
    rng = np.random.default_rng(5)
    channel = {
        "one": np.full(1024, 9),
        "two": np.repeat([3, 200], 512),
        "all": np.resize(np.arange(256), 1024 * 4),
        "few pixels": rng.integers(0, 256, 255),
        "last bin heavy": np.concatenate([np.full(1000, 250), rng.integers(0, 250, 24)]),
        "first bin heavy": np.concatenate([np.zeros(5000), rng.integers(0, 256, 3000)]),
    }[counts].astype(np.uint8)
    rng.shuffle(channel)
    image = np.stack([channel, channel[::-1] // 2, 255 - channel])[:, None]
    expected = np.asarray(ImageOps.equalize(Image.fromarray(image.transpose(1, 2, 0)))).transpose(2, 0, 1)
    assert np.array_equal(image_ops.equalize(torch.from_numpy(image)[None], torch.zeros(1))[0].numpy(), expected)


def test_geometry_signs():
    dot = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    dot[:, :, 16, 30] = 255
    where = lambda x: x[0, 0].nonzero()[0].tolist()  # noqa: E731
    assert where(ours("translate_x", dot, 2)) == [16, 28]
    assert where(ours("translate_y", dot, 2)) == [14, 30]
    assert where(ours("rotate", dot, 30)) == [9, 28]
    noise = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for turns in range(4):
        assert torch.equal(ours("rotate", noise, 90 * turns), torch.rot90(noise, turns, (2, 3)))


def test_enhancers_at_zero_and_one_and_the_ring_of_sharpness(pictures):
    x = pictures(17, 40)
    for op in ENHANCE:
        assert torch.equal(ours(op, x, 1.0), x), op
    assert not ours("brightness", x, 0.0).any()
    assert torch.equal(ours("color", x, 0.0), image_ops.luma(x).to(torch.uint8).expand_as(x))
    assert (ours("contrast", x, 0.0).flatten(1).float().std(1) == 0).all()
    smooth = ours("sharpness", x, 0.0)
    ring = torch.ones(17, 40, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    assert torch.equal(smooth[..., ring], x[..., ring])
    assert not torch.equal(smooth[0], x[0])


@pytest.mark.parametrize("name", ["fixmatch", "fixmatch_tf", "usb", "digits"])
def test_chains_of_operations_and_cutout_equal_pillow(name, pictures, pillow):
    """The whole strong policy against Pillow under the same table: rounding between operations, fill pixels in later histograms."""
    from PIL import ImageDraw

    policy, total = POLICIES[name], 0
    for height, width in [(32, 32), (33, 31)]:
        images = pictures(height, width).repeat(48, 1, 1, 1)
        augmenter = Augmenter(policy, (height, width), flip=True)
        drawn = augmenter.drawn(torch.arange(len(images)) * 7919)
        got = augmenter.strengthened(images.clone(), drawn)
        for i, image in enumerate(images):
            for op, value in zip(drawn.op[i].tolist(), drawn.value[i].tolist(), strict=True):
                image = pillow(OPS[op], image, value)
            left, right, top, bottom = drawn.box[i].tolist()
            canvas = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            if right >= left:
                ImageDraw.Draw(canvas).rectangle((left, top, right, bottom), fill=policy.fill)
            assert np.array_equal(got[i].permute(1, 2, 0).numpy(), np.asarray(canvas)), (i, drawn.op[i], drawn.value[i])
            total += 1
    assert total == 768


def test_cut_out_fills_each_channel_with_its_level():
    x = torch.full((2, 3, 6, 6), 200, dtype=torch.uint8)
    box = torch.tensor([[1, 3, 0, 6], [2, 1, 0, 5]])
    out = cut_out(x, box, (125, 123, 0))
    assert out[0, :, 2, 2].tolist() == [125, 123, 0] and out[0, 0, 5, 4] == 200 and out[0, 0, :, 1:4].eq(125).all()
    assert out[1].eq(200).all()


def test_dense_path_equals_the_grouped_one(pictures):
    """The device path, which runs every operation on every image and reads nothing on the host, makes the same pixels."""
    from unittest import mock

    images = pictures(32, 32).repeat(40, 1, 1, 1)
    sampler = Sampler(POLICIES["usb"], 32, 32)
    words = torch.arange(len(images) * sampler.words).view(len(images), -1) * 0x5851F42D4C957F2D
    drawn = sampler.drawn(words)
    grouped = operate(images.clone(), drawn.op[:, 0], drawn.value[:, 0])
    with mock.patch.object(torch.Tensor, "is_cuda", True):
        dense = operate(images.clone(), drawn.op[:, 0], drawn.value[:, 0])
    assert len(drawn.op[:, 0].unique()) == len(OPS)
    assert torch.equal(grouped, dense)


def test_rotation_angles_wrap_like_pillows(pictures, pillow):
    images = pictures(33, 31)[:2]
    for angle in (-30.0, 390.0, -390.0, math.pi):
        for i, got in enumerate(ours("rotate", images, angle)):
            assert torch.equal(got, pillow("rotate", images[i], angle))
