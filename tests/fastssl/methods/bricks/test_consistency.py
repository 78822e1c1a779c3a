"""What the consistency methods share: weights, divisors and noise."""

import math
from types import SimpleNamespace

import pytest
import torch

from fastssl.methods.bricks.consistency import (
    LABELLED,
    UNLABELLED,
    RampOptions,
    consistency_weight,
    noisy,
    probabilities,
    reduced,
    share_of_labels,
)

VIEWS = (torch.zeros(5, 3, 4, 4), torch.zeros(5, 3, 4, 4))
INDEX = torch.tensor([4, 1, 9, 4, 0])


def test_weight_over_the_run(toy):
    options = RampOptions(lambda_u=30.0, ramp_share=0.5)
    assert float(consistency_weight(options, toy.clock(0))) == pytest.approx(30 * math.exp(-5), rel=1e-6)
    assert float(consistency_weight(options, toy.clock(25))) == pytest.approx(30 * math.exp(-1.25), rel=1e-6)
    assert float(consistency_weight(options, toy.clock(50))) == 30
    assert consistency_weight(RampOptions(lambda_u=30.0, ramp="none"), toy.clock(0)) == 30


@pytest.mark.parametrize(("counts", "unlabelled", "share"), [((3, 2, 1, 1, 1), 32, 0.25), ((40, 40), 50, 1.0), ((1, 1), 0, 1.0)])
def test_share_of_labels(counts, unlabelled, share):
    spec = SimpleNamespace(labelled_counts=counts, unlabelled=unlabelled)
    assert share_of_labels(SimpleNamespace(labels_share=True), spec) == share
    assert share_of_labels(SimpleNamespace(labels_share=False), spec) == 1


def test_divisors():
    labelled, rows = torch.tensor([1.0, 3.0]), torch.arange(8.0)
    assert [float(x) for x in reduced(labelled, rows, "batch")] == [0.5, 3.5], "four of eight rows have no label: their cross-entropy is 0"
    assert [float(x) for x in reduced(labelled, rows, "streams")] == [2.0, 3.5]


def test_noise_is_keyed(toy):
    first = noisy(VIEWS, INDEX, 0.5, toy.clock(3), use=LABELLED)
    again = noisy(VIEWS, INDEX, 0.5, toy.clock(3), use=LABELLED)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0][0], first[0][3]) and not torch.equal(first[0][0], first[0][1]), "by the row of the data set"
    for other in (noisy(VIEWS, INDEX, 0.5, toy.clock(4), use=LABELLED), noisy(VIEWS, INDEX, 0.5, toy.clock(3), use=UNLABELLED)):
        assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1]), "each view has its own"
    part = noisy((VIEWS[0][1:3],), INDEX[1:3], 0.5, toy.clock(3), use=LABELLED)
    assert torch.equal(part[0], first[0][1:3])


def test_noises_deviation(toy):
    views = (torch.full((400, 3, 4, 4), 2.0),)
    (out,) = noisy(views, torch.arange(400), 0.15, toy.clock(3), use=UNLABELLED)
    assert out.dtype == torch.float32 and out.mean() == pytest.approx(2, abs=0.01) and out.std() == pytest.approx(0.15, rel=0.03)
    assert noisy(views, torch.arange(400), 0.0, toy.clock(3), use=UNLABELLED)[0] is views[0]


@pytest.mark.parametrize(
    ("given", "got"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_probabilities_are_of_full_precision(given, got):
    p = probabilities(torch.randn(4, 3).to(given))
    assert p.dtype == got and torch.allclose(p.sum(1), torch.ones(4, dtype=got))
