"""Probe views in a batch: the pipelines draw them by CTAugment, say by which operations, and leave every other view as it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastssl.pipelines import keyed, sources, splits
from fastssl.pipelines.batch import Views
from fastssl.pipelines.ctaugment import CTAugment
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.resident import _LABELLED, _VIEW, ResidentPipeline
from fastssl.pipelines.views import Augmenter, normalised

PLAIN = Views(("weak",), ("weak", "strong"), 1)
PROBED = dataclasses.replace(PLAIN, probe=True)


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits", size=16)


def pipeline(source, views=PROBED, **options):
    return ResidentPipeline(source, splits.make(source, per_class=4), views, batch_size=6, ratio=3, **{"policy": "ctaugment", **options})


def tensors(batch):
    return [t for field in batch[:-1] for t in (field if isinstance(field, tuple) else (field,))]


def test_a_probe_and_its_operations_come_with_the_batch(digits):
    with_probe, without = pipeline(digits), pipeline(digits, PLAIN)
    augmenter = Augmenter(POLICIES["ctaugment"], (16, 16), flip=digits.flip)
    for step in range(3):
        batch, plain = with_probe.draw(), without.draw()
        assert all(torch.equal(a, b) for a, b in zip(tensors(batch), tensors(plain), strict=True)) and plain.probe == ()
        images, op, level = batch.probe
        assert images.shape == (6, 3, 16, 16) and op.shape == (6, 2) and level.shape == (6, 2, 2)
        # The second view of the labelled stream, of its first pass over the 40 labels.
        keys = keyed.joined(torch.tensor(keyed.key(0, _VIEW, _LABELLED, 1)), batch.index, torch.zeros_like(batch.index))
        made = augmenter.view(torch.from_numpy(digits.images)[batch.index], keys, "probe")
        assert torch.equal(images, normalised(made, with_probe.scale, with_probe.offset)), step
        assert torch.equal(op, augmenter.probed.op) and torch.equal(level, augmenter.probed.level)
    assert PROBED.count(3) == PLAIN.count(3) + 1 == 8


def test_strong_views_follow_rates_that_are_put_in(digits):
    """Probes and weak views do not: their draws ignore the rates."""
    moved, still = pipeline(digits), pipeline(digits)
    moved.augmenter.rates = CTAugment()
    assert all(torch.equal(a, b) for a, b in zip(tensors(moved.draw()), tensors(still.draw()), strict=True))
    moved.augmenter.rates.weight[..., :9] = 0.1  # the lower half of most parameters is not drawn any more
    a, b = moved.draw(), still.draw()
    assert not torch.equal(a.unlabelled[1], b.unlabelled[1])
    assert torch.equal(a.unlabelled[0], b.unlabelled[0]) and all(torch.equal(x, y) for x, y in zip(a.probe, b.probe, strict=True))


def test_a_probe_takes_ctaugment(digits):
    with pytest.raises(
        ConfigError, match="method.ctaugment learns the rates of CTAugment; take --policy ctaugment, or method.ctaugment=fals"
    ):
        pipeline(digits, policy="fixmatch")
    run = pipeline(digits, PLAIN, policy="digits")
    with pytest.raises(ConfigError, match="take --policy ctaugment"):
        run.show(PROBED)


def test_the_streaming_pipelines_probes_are_the_same_and_lie_still(folder, encoded):
    pytest.importorskip("nvidia.dali", reason="DALI comes with the dali extra: pip install nvidia-dali-cuda120")
    from fastssl.pipelines.streamed import DaliPipeline
    from tests.pipelines.test_streamed import files

    data = folder(files(encoded))
    source = sources.load(data, pipeline="dali")
    run = DaliPipeline(source, splits.make(source, per_class=4), PROBED, batch_size=6, ratio=3, workers=2, policy="ctaugment")
    other = pipeline(sources.load(data, pipeline="resident"))
    places = None
    for _ in range(4):
        batch, same = run.draw(), other.draw()
        assert all(torch.equal(a, b) for a, b in zip(batch.probe, same.probe, strict=True))
        assert places is None or places == [t.data_ptr() for t in batch.probe]
        places = [t.data_ptr() for t in batch.probe]
    run.close()
