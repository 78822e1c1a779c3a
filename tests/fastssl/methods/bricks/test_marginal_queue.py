"""Alignment to uniform by the mean of the batches that are there."""

import numpy as np
import torch

from fastssl.methods.bricks.marginal_queue import MarginalQueue
from tests.fastssl.methods import oracle


def test_marginal_is_of_the_batches_that_are_there():
    """At step 0 the batch's own; a queue of zeros that are averaged in would differ by a factor that an eps does not forgive."""
    queue = MarginalQueue(3, 2)
    seen = []
    for k in range(4):
        z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        p = oracle.softmax(z.numpy())
        seen.append(p.mean(axis=0))
        queue = queue.double()
        log_q, memory = queue.read(z)
        np.testing.assert_allclose(log_q.exp(), oracle.normalised(p / np.mean(seen[-2:], axis=0)), rtol=1e-12)
        queue.write(memory)
    extreme = torch.tensor([[0.0, 300.0, 0.0], [0.0, 300.0, -5.0]])
    log_q, _ = MarginalQueue(3, 4).read(extreme)
    assert torch.isfinite(log_q).all(), "a class of which nothing is left in fp32"


def test_without_batches_predictions_stay_as_they_are():
    queue, z = MarginalQueue(3, 0), torch.randn(4, 3)
    log_q, memory = queue.read(z)
    queue.write(memory)
    assert torch.equal(log_q, z.log_softmax(1)) and not memory and queue.place == 0


def test_reading_writes_nothing_and_bf16_comes_back_in_fp32():
    queue = MarginalQueue(3, 2)
    log_q, _ = queue.read(torch.randn(4, 3).bfloat16())
    assert log_q.dtype == torch.float32 and not queue.queue.any()
