"""The published steps compute what ours computes, and what holds ours to them sees other mathematics. Tiny networks, on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench import our_steps, step_cases, step_rows
from bench.peers import fixmatch, usb
from bench.peers.finessl import Published as PublishedFineSSL
from bench.peers.loaders import Fed
from bench.view_peers import Work
from fastssl.models import Network
from fastssl.models.heads import LinearHead
from fastssl.models.wrn import WideResNet

CPU, CLASSES = torch.device("cpu"), 5


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    encoder = WideResNet(10, 1)
    return Network(encoder, LinearHead(encoder.num_features, CLASSES)).train()


@pytest.fixture
def batch():
    return our_steps.noise_batch(4, 12, 2, 16, CLASSES, CPU)


def first_steps(network, batch, weak_pass: str, *makers):
    """Each entrant after one step, ours first, and the weights before it."""
    options = {"threshold": our_steps.middle_confidence(network, batch, weak_pass), "lr": 0.03}
    ours = our_steps.fixmatch(network, batch, weak_pass=weak_pass, **options)
    entrants = [ours, *(make(network, batch, **options) for make in makers)]
    before = step_rows.weights(ours)
    for entrant in entrants:
        entrant()
    return entrants, before


def test_interleaving_mixes_the_groups_and_comes_back():
    rows = torch.arange(12)
    mixed = fixmatch.interleave(rows, 4)
    assert mixed.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(fixmatch.deinterleave(mixed, 4), rows)


def test_one_step_is_the_published_one(network, batch):
    (ours, published, practice), before = first_steps(network, batch, "joint", fixmatch.Published, usb.Practice)
    for entrant in (ours, practice):
        assert max(step_rows.distance(entrant, published, before)) < 1e-4
    assert 0 < published.meters[3] < 1, "some rows are kept, some are not"
    buffers = zip(ours.step.method.network.buffers(), published.network.buffers(), strict=True)
    assert all(torch.allclose(a, b.to(a.dtype), rtol=1e-4, atol=1e-5) for a, b in buffers)
    for theirs in (published, practice):
        pairs = zip(ours.step.method.ema.parameters(), theirs.ema.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_the_separate_pass_is_the_plain_form_of_it_and_not_the_published(network, batch):
    (ours, apart, published), before = first_steps(network, batch, "separate", fixmatch.Apart, fixmatch.Published)
    assert max(step_rows.distance(ours, apart, before)) < 1e-4
    assert step_rows.distance(ours, published, before)[1] > 0.1
    with pytest.raises(AssertionError, match="off by"):
        step_rows.agree("ours", ours, published, before, **step_cases.SAME)


@pytest.fixture(scope="module")
def prompted() -> nn.Module:
    return our_steps.prompted_network("timm:vit_tiny_patch16_224", CLASSES, CPU, prompts=3, img_size=16, patch_size=8)


def test_finessl_is_the_published_one(prompted):
    batch = our_steps.noise_batch(3, 3, 3, 16, CLASSES, CPU)
    found = step_cases.exact_finessl(prompted, batch)
    assert max(found.values()) < 1e-4
    common = {"classes": CLASSES, "rows": 40, "lr": 1e-3}
    plain = PublishedFineSSL(prompted, batch, **common)
    kinds = {"fused": {"explicit": False}, "half": {"half": torch.bfloat16}}
    others = {name: PublishedFineSSL(prompted, batch, **common, **kind) for name, kind in kinds.items()}
    for entrant in (plain, *others.values()):
        entrant()
    assert others["fused"].loss() == pytest.approx(plain.loss(), rel=1e-5)
    assert others["half"].loss() == pytest.approx(plain.loss(), rel=5e-2)
    assert {p.dtype for p in others["half"].encoder.prompts} == {torch.bfloat16}
    assert not prompted.encoder.model.blocks[0].block.attn.qkv.weight.dtype == torch.bfloat16, "the peer has a copy of its own"


@pytest.mark.parametrize(("workers", "replay"), [(0, True), (1, False)])
def test_loaders_feed_a_step(network, workers, replay):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (20, 3, 16, 16), dtype=np.uint8)
    labels = np.arange(20) % CLASSES
    work = Work(images, (), 16, 16, 2, 4)
    step = fixmatch.Published(network, our_steps.noise_batch(2, 4, 2, 16, CLASSES, CPU), threshold=0.5, lr=1e-3)
    norm = ((0.5,) * 3, (0.25,) * 3)
    fed = Fed(step, work, labels, np.arange(5), (2, 4), norm, strong=2, workers=workers, replay=replay)
    with pytest.raises(AssertionError, match="open"):
        fed.draw()
    fed.open()
    drawn = [fed.draw() for _ in range(6)]
    fed.close()
    for b in drawn:
        assert [v.shape for v in (*b.labelled, *b.unlabelled)] == [(2, 3, 16, 16)] + [(4, 3, 16, 16)] * 3
        assert set(b.index.tolist()) <= set(range(5)) and torch.equal(b.label, b.index % CLASSES)
        assert not torch.equal(b.unlabelled[1], b.unlabelled[2])
    # Five labelled rows make two batches a pass: the third is the first one again, as it was, where batches are replayed.
    assert torch.equal(drawn[0].labelled[0], drawn[2].labelled[0]) is replay
    fed.open()
    fed.step.batch = None
    fed.draw = lambda: drawn[0]._replace(unlabelled=drawn[0].unlabelled[:2])
    before = [p.detach().clone() for p in step.network.parameters()]
    fed()
    assert any(not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True))
    fed.close()
