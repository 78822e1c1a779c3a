"""Published sets by name: torchvision's own classes read tiny sets in their formats, and what comes out is what was written."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.pipelines import sources, splits
from fastssl.pipelines.batch import Views
from fastssl.pipelines.errors import ConfigError, DataError, SetupError
from fastssl.pipelines.resident import ResidentPipeline
from fastssl.pipelines.set_facts import SETS
from tests.pipelines import fake_sets

pytest.importorskip("torchvision", reason="torchvision comes with the vision extra: pip install '.[vision]'")
H5PY = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="pcam needs h5py: pip install h5py")
NAMES = [pytest.param(name, marks=H5PY if name == "pcam" else ()) for name in SETS]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_was_written(name, tmp_path, monkeypatch):
    truth = getattr(fake_sets, name)(tmp_path, monkeypatch)
    source = sources.load(name, root=tmp_path, size=None if name in ("eurosat", "pcam") else truth.images["train"].shape[-1])
    parts = [part for part in truth.images if part != "extra"]
    assert source.name == name and source.published and not source.warnings and not source.quarantine
    assert np.array_equal(source.images, np.concatenate([truth.images[part] for part in parts]))
    assert source.label.tolist() == np.concatenate([truth.label[part] for part in parts]).tolist()
    rows = [len(truth.label[part]) for part in parts]
    assert source.given.tolist() == np.repeat([part == "train" for part in parts], rows).tolist()
    assert source.test.tolist() == np.repeat([part == "test" for part in parts], rows).tolist()
    assert len(set(source.ids)) == len(source) and source.ids[0].startswith(f"{name}/train/")
    assert source.flip == (name != "svhn")
    assert all(0 < value < 1 for value in (*source.mean, *source.std))
    assert len(np.unique(source.content)) == len(source), "no two images are alike"
    split = splits.make(source) if name != "flowers102" else None
    assert split is None or len(split.test) == len(truth.label["test"])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cifar10", ("kind 0", "kind 9")),
        ("svhn", ("0", "9")),
        ("stl10", ("airplane", "truck")),
        ("fashion_mnist", ("T-shirt/top", "Ankle boot")),
        ("food101", ("apple pie", "pad thai")),
        ("flowers102", ("pink primrose", "blackberry lily")),
        ("eurosat", ("annual crop", "sea or lake")),
    ],
)
def test_class_names_are_readable(name, shown, tmp_path, monkeypatch):
    """Prompts are made of them: no underscores, no words run together."""
    getattr(fake_sets, name)(tmp_path, monkeypatch)
    classes = sources.load(name, root=tmp_path).classes
    assert (classes[0], classes[-1]) == shown and len(set(classes)) == len(classes)
    assert not [c for c in classes if "_" in c or c.endswith("?")]


def test_flowers_that_torchvision_is_unsure_of(tmp_path, monkeypatch):
    fake_sets.flowers102(tmp_path, monkeypatch)
    assert "pink-yellow dahlia" in sources.load("flowers102", root=tmp_path).classes


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("name", "size"), [("cifar10", 20), ("cifar10", 48), ("stl10", 32), ("eurosat", 32), ("fashion_mnist", 32)])
def test_resizing_is_pillows(name, size, interpolation, tmp_path, monkeypatch):
    truth = getattr(fake_sets, name)(tmp_path, monkeypatch)
    source = sources.load(name, root=tmp_path, size=size, interpolation=interpolation)
    way = Image.Resampling[interpolation.upper()]
    for row in range(5):
        image = Image.fromarray(truth.images["train"][row].transpose(1, 2, 0)).resize((size, size), way)
        assert np.array_equal(source.images[row], np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(("name", "side", "size", "kept"), [("cifar10", 32, 48, 32), ("cifar10", 32, 16, 16), ("food101", 24, 48, 24)])
def test_small_sets_may_stay_small(name, side, size, kept, tmp_path, monkeypatch):
    """For a pipeline that enlarges each batch; a set that mixes sizes, or is larger, is brought to the size at once."""
    getattr(fake_sets, name)(tmp_path, monkeypatch)
    assert sources.load(name, root=tmp_path, size=size, enlarge=False).images.shape[3] == kept
    assert sources.load(name, root=tmp_path, size=size).images.shape[3] == size


def test_mixed_sizes_are_never_resized_twice(tmp_path, monkeypatch):
    fake_sets.food101(tmp_path, monkeypatch)
    fake_sets.jpeg(tmp_path / "food-101" / "images" / "pad_thai" / "9.jpg", fake_sets.pictures(1, 40, 3)[0])
    assert sources.load("food101", root=tmp_path, size=64, enlarge=False).images.shape[3] == 64


def test_the_same_views_from_a_small_set_and_from_an_enlarged_one(tmp_path, monkeypatch):
    fake_sets.cifar10(tmp_path, monkeypatch)
    batches = []
    for enlarge in (False, True):
        source = sources.load("cifar10", root=tmp_path, size=48, enlarge=enlarge, interpolation="bilinear")
        split = splits.make(source, per_class=1)
        views = Views(("weak",), ("plain", "strong"))
        pipeline = ResidentPipeline(source, split, views, batch_size=6, ratio=2, size=48, interpolation="bilinear")
        assert pipeline.spec.shape == (3, 48, 48)
        batches.append(pipeline.draw())
        assert next(pipeline.sweep("test")).inputs.shape == (20, 3, 48, 48)
    for small, large in zip(batches[0], batches[1], strict=True):
        assert all(map(torch.equal, small, large)) if isinstance(small, tuple) else torch.equal(small, large)


def test_stl10_trains_on_its_unlabelled_part(tmp_path, monkeypatch):
    truth = fake_sets.stl10(tmp_path, monkeypatch)
    source = sources.load("stl10", root=tmp_path)
    split = splits.make(source, per_class=1)
    assert len(split.labelled) == 10 and len(split.unlabelled) == 35 and len(split.test) == 10
    loose = source.label == -1
    assert loose.sum() == 15 and set(np.flatnonzero(loose)) <= set(split.unlabelled) and not source.given[loose].any()
    assert np.array_equal(source.images[loose], truth.images["unlabelled"])


def test_svhns_extra_part_is_unlabelled(tmp_path, monkeypatch):
    truth = fake_sets.svhn(tmp_path, monkeypatch)
    source = sources.load("svhn", root=tmp_path, extra=True)
    assert len(source) == 65 and len(sources.load("svhn", root=tmp_path)) == 50
    rows = np.flatnonzero([name.startswith("svhn/extra/") for name in source.ids])
    split = splits.make(source, per_class=4)
    assert np.array_equal(source.images[rows], truth.images["extra"]) and source.label[rows].tolist() == truth.label["extra"].tolist()
    assert set(rows) <= set(split.unlabelled) and not set(rows) & set(split.labelled), "its labels only measure"
    with pytest.raises(ConfigError, match="data.extra goes with svhn"):
        sources.load("cifar10", root=tmp_path, extra=True)
    (tmp_path / "extra_32x32.mat").unlink()
    with pytest.raises(SetupError, match="extra_32x32.mat"):
        sources.load("svhn", root=tmp_path, extra=True)


def test_undecodable_photographs_are_quarantined(tmp_path, monkeypatch):
    fake_sets.food101(tmp_path, monkeypatch)
    (tmp_path / "food-101" / "images" / "ice_cream" / "8.jpg").write_bytes(b"")
    (tmp_path / "food-101" / "images" / "ice_cream" / "7.jpg").unlink()
    with pytest.raises(DataError, match="2 of 24 images in food101 cannot be decoded, 8.3% where --max-bad allows 1.0%"):
        sources.load("food101", root=tmp_path)
    source = sources.load("food101", root=tmp_path, max_bad=0.1)
    assert len(source) == 22 and source.label.tolist() == [0] * 4 + [1] * 2 + [2] * 4 + [0] * 4 + [1] * 4 + [2] * 4
    assert [name for name, _ in source.quarantine] == ["food101/train/ice_cream/8.jpg", "food101/train/ice_cream/7.jpg"]
    assert "undecodable images, left out of 24: 2" in source.warnings[0]


def test_labels_out_of_range_are_refused(tmp_path, monkeypatch):
    fake_sets.fashion_mnist(tmp_path, monkeypatch)
    file = tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(DataError, match="labels of fashion_mnist run from 0 to 11, and it has 10 classes"):
        sources.load("fashion_mnist", root=tmp_path)


def test_copies_across_published_parts_are_told_of(tmp_path, monkeypatch):
    """CIFAR-100 has such pairs: a benchmark stays what it is."""
    fake_sets.fashion_mnist(tmp_path, monkeypatch)
    source = sources.load("fashion_mnist", root=tmp_path)
    source.content[np.flatnonzero(source.test)[0]] = source.content[0]
    splits.make(source)
    assert source.warnings[0].startswith("copies of test images among the labelled, as fashion_mnist was published: 1 of 30")


def test_options_that_a_named_set_does_not_take(tmp_path):
    with pytest.raises(ConfigError, match="cifar10 brings its own labels and test part; --test goes with a folder"):
        sources.load("cifar10", test="x.csv")
    with pytest.raises(ConfigError, match="--root says where cifar10, .* lie; leave it out for digits"):
        sources.load("digits", root=tmp_path)
    with pytest.raises(ConfigError, match="unknown interpolation 'bicubik'; did you mean bicubic"):
        sources.load("cifar10", root=tmp_path, interpolation="bicubik")
