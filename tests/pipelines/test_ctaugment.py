"""CTAugment: the nineteen operations against Pillow, the rates and their laws, resume, and its place in the views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from fastssl.pipelines import ctaugment, keyed
from fastssl.pipelines.ctaugment import BINS, OPS, CTAugment, CTDrawn, cutout_box, operate, proximity
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.views import Augmenter

RESCALE = ("LANCZOS", "BICUBIC", "BILINEAR", "BOX", "HAMMING", "NEAREST")


def keys(n, seed=3):
    return keyed.joined(keyed.key(seed), torch.arange(n))


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def by_pillow(op: str, image: Image.Image, level: tuple[float, float]) -> Image.Image:
    """The published operation at its published mapping, by Pillow; not cutout, whose centre is drawn."""
    share, second = level
    blend = {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
        "blur": lambda x: x.filter(ImageFilter.BLUR),
        "smooth": lambda x: x.filter(ImageFilter.SMOOTH),
    }
    enhance = {"brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}
    if op in blend:
        return Image.blend(image, blend[op](image), share)
    if op in enhance:
        return getattr(ImageEnhance, enhance[op])(image).enhance(0.1 + 1.9 * share)
    if op == "rescale":
        cut, (w, h) = share * 0.25, image.size
        part = image.crop((cut * w, cut * h, w * (1 - cut), h * (1 - cut)))
        return part.resize(image.size, Image.Resampling[RESCALE[int(second * 5.99)]])
    return {
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, 1 + int(share * 7.999)),
        "solarize": lambda: ImageOps.solarize(image, int(share * 255.999)),
        "rotate": lambda: image.rotate(int(np.round((2 * share - 1) * 45))),
        "shear_x": lambda: affine(image, 1, (2 * share - 1) * 0.3, 0, 0, 1, 0),
        "shear_y": lambda: affine(image, 1, 0, 0, (2 * share - 1) * 0.3, 1, 0),
        "translate_x": lambda: affine(image, 1, 0, (2 * share - 1) * 0.3, 0, 1, 0),
        "translate_y": lambda: affine(image, 1, 0, 0, 0, 1, (2 * share - 1) * 0.3),
    }[op]()


@pytest.mark.parametrize("side", [32, 41])
@pytest.mark.parametrize("op", [op for op in OPS if op != "cutout"])
def test_operations_equal_pillow(op, side, pictures):
    images = pictures(side, side)[[0, 1, 4, 5, 7]]
    rng = np.random.default_rng(OPS.index(op))
    levels = [(k / 17, k / 17) for k in range(17)] + [tuple(pair) for pair in rng.random((30, 2))] + [(0.999999, 0.999999)]
    for level in levels:
        n = len(images)
        at = torch.tensor(level, dtype=torch.float64).expand(n, 2)
        got = operate(images, torch.full((n,), OPS.index(op)), at, at)
        for i, image in enumerate(images):
            expected = by_pillow(op, Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), level)
            assert np.array_equal(got[i].permute(1, 2, 0).numpy(), np.asarray(expected)), (op, level, i)


def test_translations_change_nothing():
    """The published range is 0.3 of a pixel."""
    x = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    level = torch.rand(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for op in ("translate_x", "translate_y"):
        assert torch.equal(operate(x, torch.full((64,), OPS.index(op)), level, level), x)


def test_cutout_is_the_published_square():
    n = 20_000
    place = keyed.unit(keyed.bits(keys(n), 2))
    box = cutout_box(torch.ones(n, dtype=torch.float64), place, 32, 32)
    x = (place[:, 0] * 32).long()
    assert torch.equal(box[:, 0], (x - 8).clamp(min=0)) and torch.equal(box[:, 1], (x + 8).clamp(max=32) - 1)
    assert stats.chisquare(torch.bincount((place[:, 1] * 32).long(), minlength=32).numpy()).pvalue > 1e-4
    small = cutout_box(torch.zeros(1, dtype=torch.float64), place[:1], 32, 32)[0]
    assert small[1] < small[0], "a square of one pixel has a half of none: nothing is filled"
    image = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    one = torch.tensor([[0.999, 0.0]], dtype=torch.float64)
    made = operate(image, torch.tensor([OPS.index("cutout")]), one, torch.tensor([[0.5, 0.25]], dtype=torch.float64))
    expected = image.clone()
    expected[:, :, 0:16, 8:24] = 127
    assert torch.equal(made, expected)


def test_fresh_rates_draw_operations_bins_and_levels_alike():
    rates, n = CTAugment(), 200_000
    drawn = rates.drawn(keys(n), 32)
    for slot in range(2):
        assert stats.chisquare(torch.bincount(drawn.op[:, slot], minlength=19).numpy()).pvalue > 1e-4
    pairs = torch.bincount(drawn.op[:, 0] * 19 + drawn.op[:, 1], minlength=361)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-4, "slots are independent"
    for op, parameter in (("rotate", 0), ("posterize", 0), ("rescale", 0), ("rescale", 1)):
        level = drawn.level[drawn.op == OPS.index(op)][:, parameter].numpy()
        assert stats.kstest(level, "uniform").pvalue > 1e-4, op
    assert stats.kstest(drawn.place[:, 0, 0].numpy(), "uniform").pvalue > 1e-4
    probe = rates.drawn(keys(n), 32, probe=True)
    assert (probe.op != drawn.op).double().mean() > 0.9, "probes have words of their own"
    assert (probe.box[:, 1] < probe.box[:, 0]).all() and (drawn.box[:, 1] >= drawn.box[:, 0]).all()


def test_low_bins_are_not_drawn_and_the_rest_by_weight():
    rates, op = CTAugment(), OPS.index("rotate")
    weight = torch.linspace(0.5, 1.0, 17, dtype=torch.float64)
    rates.weight[op, 0] = weight
    p = (weight + 0.01) / 1.01
    p[p < 0.8] = 0
    torch.testing.assert_close(rates.probability()[op, 0], p / p.sum())
    drawn = rates.drawn(keys(400_000), 32)
    level = drawn.level[drawn.op == op][:, 0]
    counts = torch.bincount((level * 17).long(), minlength=17).numpy()
    used = p.numpy() > 0
    assert (counts[~used] == 0).all() and 5 < used.sum() < 12
    assert stats.chisquare(counts[used], (p / p.sum()).numpy()[used] * counts.sum()).pvalue > 1e-4
    probe = rates.drawn(keys(200_000), 32, probe=True)
    assert stats.kstest(probe.level[probe.op == op][:, 0].numpy(), "uniform").pvalue > 1e-4, "probes ignore the rates"


def test_update_is_the_published_loop():
    """One probe after the other, one operation after the other; the same bin may be hit many times."""
    rates, n = CTAugment(), 300
    drawn = rates.drawn(keys(n), 32, probe=True)
    near = torch.rand(n, generator=torch.Generator().manual_seed(0))
    expected = rates.weight.clone()
    for i in range(n):
        for slot in range(2):
            op = drawn.op[i, slot].item()
            for parameter, bins in enumerate(BINS[OPS[op]]):
                at = int(drawn.level[i, slot, parameter].item() * bins * 0.999)
                expected[op, parameter, at] = expected[op, parameter, at] * 0.99 + (1 - 0.99) * near[i].item()
    rates.update(near, drawn.op, drawn.level)
    torch.testing.assert_close(rates.weight, expected, atol=1e-12, rtol=0)
    assert (rates.weight[OPS.index("identity")] == 0).all() and (rates.weight[OPS.index("posterize"), 0, 8:] == 0).all()


def test_proximity_is_the_published_one():
    logits, label = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3, torch.arange(50) % 7
    one_hot = torch.nn.functional.one_hot(label, 7)
    expected = 1 - 0.5 * (logits.softmax(1) - one_hot).abs().sum(1)
    torch.testing.assert_close(proximity(logits, label), expected)


def test_a_network_that_fails_at_strong_levels_drives_them_out():
    rates = CTAugment()
    for step in range(400):
        drawn = rates.drawn(keys(64, step), 32, probe=True)
        failed = ((drawn.op == OPS.index("solarize")) & (drawn.level[..., 0] < 0.5)).any(1)
        rates.update(torch.where(failed, 0.1, 1.0), drawn.op, drawn.level)
    drawn = rates.drawn(keys(50_000, -1), 32)
    level = drawn.level[drawn.op == OPS.index("solarize")][:, 0]
    assert level.min() >= 0.47 and len(level) > 4000
    other = drawn.level[drawn.op == OPS.index("rotate")][:, 0]
    assert torch.bincount((other * 17).long(), minlength=17).min() > 0


def test_resume_is_bitwise():
    def step(rates, number):
        drawn = rates.drawn(keys(32, number), 32, probe=True)
        rates.update(keyed.unit(keyed.bits(keys(32, number), 1))[:, 0], drawn.op, drawn.level)

    whole, first = CTAugment(), CTAugment()
    for number in range(6):
        step(whole, number)
    for number in range(3):
        step(first, number)
    resumed = CTAugment()
    address = resumed.weight.data_ptr()
    resumed.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert list(first.state_dict()) == ["weight"] and resumed.weight.data_ptr() == address
    for number in range(3, 6):
        step(resumed, number)
    assert torch.equal(whole.weight, resumed.weight)
    assert all(torch.equal(a, b) for a, b in zip(whole.drawn(keys(99), 32), resumed.drawn(keys(99), 32), strict=True))


def test_views_by_the_augmenter(pictures):
    images, k = pictures(32, 32).repeat(8, 1, 1, 1), keys(64)
    augmenter = Augmenter(POLICIES["ctaugment"], (32, 32), flip=True)
    weak, strong, probe = (augmenter.view(images, k, name) for name in ("weak", "strong", "probe"))
    assert torch.equal(strong, augmenter.strengthened(weak, augmenter.drawn(k)))
    assert isinstance(augmenter.probed, CTDrawn) and augmenter.probed.op.shape == (64, 2)
    assert torch.equal(probe, augmenter.rates.applied(weak, augmenter.probed))
    for name, whole in (("strong", strong), ("probe", probe)):
        assert torch.equal(whole, torch.cat([augmenter.view(images[i : i + 1], k[i : i + 1], name) for i in range(64)]))
    # A method's own rates are read where they are put, as they are now.
    augmenter.rates = CTAugment()
    augmenter.rates.weight[:, 0, 1:] = 0
    drawn = augmenter.drawn(k)
    assert (drawn.level[drawn.op != OPS.index("identity")][:, 0] < 1 / 8).all()


def test_dense_path_equals_the_grouped_one(pictures):
    from unittest import mock

    images, rates = pictures(32, 32).repeat(30, 1, 1, 1), CTAugment()
    drawn = rates.drawn(keys(len(images)), 32)
    assert len(drawn.op.unique()) == 19
    grouped = rates.applied(images, drawn)
    with mock.patch.object(torch.Tensor, "is_cuda", True):
        assert torch.equal(grouped, rates.applied(images, drawn))


def test_refusals():
    with pytest.raises(ConfigError, match="depth >= 1, threshold in .0, 1. and decay in .0, 1., got 0, 0.8, 0.99"):
        CTAugment(depth=0)
    plain = Augmenter(POLICIES["fixmatch"], (8, 8), flip=True)
    with pytest.raises(ConfigError, match="the view probe needs the rates of CTAugment; take --policy ctaugment"):
        plain.view(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), "probe")


def test_the_pool_is_the_published_one():
    assert len(OPS) == 19 == len(ctaugment._RUN) and set(ctaugment._RUN) == set(OPS)
    assert {op for op, bins in BINS.items() if bins == (17,)} == set(OPS) - {"identity", "posterize", "rescale"}
