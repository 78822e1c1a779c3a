"""Batches on a CPU lie in memory that serves again, and none is changed under who keeps it."""

from __future__ import annotations

import pytest
import torch

from fastssl.pipelines import sources, splits
from fastssl.pipelines.batch import Views
from fastssl.pipelines.resident import ResidentPipeline
from fastssl.pipelines.reused import Reused


def test_memory_serves_again_once_nobody_holds_it():
    memory = Reused()
    first = memory.take(1000)
    assert first.shape == (1000,) and first.dtype == torch.float32 and first.data_ptr() % 64 == 0
    address = first.data_ptr()
    del first
    assert memory.take(1000).data_ptr() == address


@pytest.mark.parametrize("hold", [lambda t: t, lambda t: t.view(10, 100)[3], lambda t: t.detach(), lambda t: [t]])
def test_memory_that_is_held_is_left_alone(hold):
    memory = Reused()
    first = memory.take(1000).fill_(1)
    address, held = first.data_ptr(), hold(first)
    del first
    others = [memory.take(1000) for _ in range(4)]
    assert address not in {other.data_ptr() for other in others}
    del held
    assert memory.take(1000).data_ptr() == address


def test_what_autograd_saved_is_left_alone():
    memory, weight = Reused(), torch.ones(1000, requires_grad=True)
    loss = (memory.take(1000).fill_(3) * weight).sum()
    for _ in range(3):
        memory.take(1000).fill_(5)
    loss.backward()
    assert (weight.grad == 3).all()


def test_another_size_takes_other_memory():
    memory = Reused()
    small = memory.take(10).fill_(1)
    memory.take(20).fill_(2)
    assert (small == 1).all() and memory.take(10).shape == (10,)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_batch_that_is_kept_stays_as_it_was(channels_last):
    """And its views' addresses come again once it is dropped."""
    digits = sources.load("digits", size=16)
    split, views = splits.make(digits, per_class=4), Views(("weak",), ("weak", "strong"))
    pipeline, twin = (ResidentPipeline(digits, split, views, batch_size=8, channels_last=channels_last) for _ in range(2))
    batches = [pipeline.draw() for _ in range(5)]
    for batch in batches:
        again = twin.draw()
        for view, same in zip((*batch.labelled, *batch.unlabelled), (*again.labelled, *again.unlabelled), strict=True):
            assert torch.equal(view, same)
            assert view.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    del batches, batch, view
    addresses = set()
    for _ in range(6):
        addresses.add(pipeline.draw().labelled[0].data_ptr())
    assert len(addresses) <= 2
