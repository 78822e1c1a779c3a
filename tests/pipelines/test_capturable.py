"""A resident draw on a CUDA device can be captured: traced without a device, it asks no tensor for a value and copies none from the host.

The two kernels' own way is left to tests/kernels and to the checks on a GPU; here FASTSSL_KERNELS=reference takes plain torch.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastssl.pipelines import ctaugment, sources, splits
from fastssl.pipelines.batch import Views
from fastssl.pipelines.resident import ResidentPipeline


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setenv("FASTSSL_KERNELS", "reference")
    source = sources.load("digits", size=32)
    split = splits.make(source, per_class=4)

    def build(views: tuple[str, ...], policy: str, **options) -> ResidentPipeline:
        return ResidentPipeline(source, split, Views(("weak",), views), batch_size=8, ratio=2, policy=policy, device="cuda", **options)

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield build


@pytest.mark.parametrize(
    "views, policy, options",
    [
        (("weak", "strong"), "fixmatch", {}),
        (("weak", "strong"), "fixmatch_tf", {}),
        (("plain", "strong", "strong"), "usb", {}),
        (("weak", "strong"), "usb_224", {"size": 64, "resize": 72, "interpolation": "bilinear"}),
        (("weak", "strong"), "finessl", {"size": 64, "resize": 72}),
        (("weak", "strong"), "digits", {}),
        (("weak", "strong"), "ctaugment", {}),
        (("weak", "probe"), "ctaugment", {}),
        (("weak", "simclr", "simclr"), "fixmatch", {}),
        (("simclr",), "fixmatch", {"size": 64}),
    ],
)
def test_a_draw_reads_nothing_on_the_host(fake, nothing_from_the_host, views, policy, options):
    pipeline = fake(views, policy, **options)
    assert pipeline.capturable and not pipeline.fused
    with nothing_from_the_host():
        batch = pipeline.draw()
    side = options.get("size", 32)
    assert [view.shape for view in batch.unlabelled] == [(16, 3, side, side)] * len(views)
    assert {tensor.device.type for tensor in (*batch.labelled, *batch.unlabelled, batch.label, batch.index)} == {"cuda"}


def test_ctaugments_update_reads_nothing_on_the_host(fake, nothing_from_the_host):
    pipeline = fake(("weak", "probe"), "ctaugment")
    rates = pipeline.augmenter.rates
    pipeline.draw()
    with nothing_from_the_host():
        near = ctaugment.proximity(torch.randn(16, 10, device="cuda"), torch.zeros(16, dtype=torch.int64, device="cuda"))
        rates.update(near, pipeline.augmenter.probed.op, pipeline.augmenter.probed.level)


def test_the_trace_notices_what_a_capture_forbids(fake, nothing_from_the_host):
    pipeline = fake(("weak",), "fixmatch")
    with pytest.raises(DataDependentOutputException):
        pipeline.step.item()
    with pytest.raises(AssertionError, match="copied from the host"), nothing_from_the_host():
        torch.tensor([1.0, 2.0], device="cuda") + torch.ones(2, device="cuda")
    with pytest.raises(AssertionError, match="copied from the host"), nothing_from_the_host():
        torch.zeros(2, device="cuda").copy_(torch.ones(2))


def test_a_draw_with_probes_reads_nothing_on_the_host(fake, nothing_from_the_host):
    pipeline = fake(("weak", "strong"), "ctaugment")
    pipeline.show(Views(("weak",), ("weak", "strong"), probe=True))
    with nothing_from_the_host():
        images, op, level = pipeline.draw().probe
    assert images.shape == (8, 3, 32, 32) and (op.shape, level.shape) == ((8, 2), (8, 2, 2))
    assert {tensor.device.type for tensor in (images, op, level)} == {"cuda"}
