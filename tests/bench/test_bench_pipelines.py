"""What the benchmark of views claims before it times: our pixels are Pillow's, and each peer makes normalised views that it draws anew."""

from __future__ import annotations

import pytest
import torch

from bench import bench_pipelines, view_peers
from bench.view_peers import Work
from fastssl.pipelines.batch import Views
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.views import Augmenter

PEERS = [("torchvision_v2", "torchvision"), ("kornia", "kornia"), ("dali", "nvidia.dali")]


@pytest.fixture(scope="module")
def works():
    mixed = ("weak",) * 4 + ("strong",) * 8
    small = Work(bench_pipelines.photographs(12, 32), mixed, 32, 32, 4, 16)
    return {"cifar": small, "finessl": Work(small.images, mixed, 40, 48, 5, 16)}


def augmenter(work):
    if work.size == work.images.shape[-1]:
        return Augmenter(POLICIES["fixmatch"], (work.size,) * 2, flip=True)
    options = {"stored": 32, "resize": work.resize, "interpolation": "bilinear"}
    return Augmenter(POLICIES["finessl"], (work.size,) * 2, flip=True, **options)


@pytest.mark.parametrize("name", ["cifar", "finessl"])
def test_our_pixels_are_pillows_and_one_grey_level_is_seen(works, name, monkeypatch):
    work = works[name]
    bench_pipelines.check_pixels(work, augmenter(work))
    view = Augmenter.view

    def off_by_one(self, x, keys, kind):
        made = view(self, x, keys, kind).clone()
        made[3, 1, 5, 5] ^= 1
        return made

    monkeypatch.setattr(Augmenter, "view", off_by_one)
    with pytest.raises(AssertionError):
        bench_pipelines.check_pixels(work, augmenter(work))


@pytest.mark.parametrize("name", ["cifar", "finessl"])
def test_pillow_in_workers_makes_the_views(works, name):
    work = works[name]
    with view_peers.pillow_workers(work, 2) as call:
        first = call().clone()
        bench_pipelines.check_peer(first, work, "pillow")
        assert not torch.equal(first, call()), "each call draws anew"
    # What the workers normalise is an image: whole grey levels come back.
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (view_peers.MEAN, view_peers.STD))
    levels = (first * std + mean) * 255
    assert (levels - levels.round()).abs().max() < 1e-3 and levels.min() > -0.5 and levels.max() < 255.5


@pytest.mark.parametrize(("peer", "package"), PEERS)
def test_peers_make_views(works, peer, package):
    pytest.importorskip(package, reason=f"{package} is a peer of the benchmark alone: pip install it to compare")
    for work in works.values():
        call = getattr(view_peers, peer)(work, "cpu")
        first = call().clone()
        bench_pipelines.check_peer(first, work, peer)
        assert not torch.equal(first, call()), "each call draws anew"


def test_a_peer_that_makes_other_things_is_refused(works):
    work = works["cifar"]
    good = torch.randn(12, 3, 32, 32).clamp(-2, 2)
    bench_pipelines.check_peer(good, work, "good")
    for bad in (good[:11], good.double(), good * 255, good[:1].expand(12, -1, -1, -1), torch.full_like(good, torch.nan)):
        with pytest.raises(AssertionError):
            bench_pipelines.check_peer(bad, work, "bad")


def test_the_resident_pipeline_of_a_row_draws_its_images(works):
    pipeline = bench_pipelines.resident(works["cifar"], Views(("weak",), ("weak", "strong")), 4, 3)
    batch = pipeline.draw()
    assert [len(view) for view in (*batch.labelled, *batch.unlabelled)] == [4, 12, 12] and pipeline.augmenter.flip
