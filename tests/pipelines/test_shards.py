"""Tar shards: members by offset, labels in all three places, parts, faults, the cache of members."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastssl.pipelines import images, shards, sources
from fastssl.pipelines.errors import ConfigError, DataError


def pack(path, files, mode="w"):
    """Writes {member name: bytes} as a tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture()
def pictures_of(encoded):
    """count -> PNG bytes of noise, each another."""

    def made(count, seed=0):
        rng = np.random.default_rng(seed)
        return [encoded(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), "PNG") for _ in range(count)]

    return made


@pytest.fixture()
def tarred(tmp_path, pictures_of):
    """Two shards of 12 images of two classes, labelled by .cls files of names."""
    pictures = pictures_of(24)
    for shard in range(2):
        files = {}
        for i in range(12):
            key = f"{shard}{i:03d}"
            files |= {f"{key}.png": pictures[12 * shard + i], f"{key}.cls": (b"cat", b"dog\n")[i % 2]}
        pack(tmp_path / "shards" / f"set-{shard}.tar", files)
    return tmp_path / "shards", pictures


@pytest.mark.parametrize("pipeline", ["resident", "dali"])
def test_members_are_read_where_they_lie(tarred, pipeline, monkeypatch):
    monkeypatch.setattr("fastssl.pipelines.file_set.dali_version", lambda: "2.4.0")
    root, pictures = tarred
    source = sources.load(root, pipeline=pipeline)
    assert source.name == "shards" and source.classes == ("cat", "dog") and len(source) == 24
    assert source.ids[0] == "set-0.tar/0000.png" and source.ids == sorted(source.ids) and source.given.all()
    assert source.label.tolist() == [0, 1] * 12
    assert np.array_equal(source.images[np.arange(24)], np.stack([images.decode(data, 16) for data in pictures]))
    assert source.content.tolist() == [images.fingerprint(data) for data in pictures]


def test_labels_in_cls_json_or_folder(tmp_path, pictures_of):
    a, b, c, d, e = pictures_of(5)
    pack(
        tmp_path / "x.tar",
        {
            "cat/1.jpg.png": a,
            "2.json": json.dumps({"label": "dog", "width": 3}).encode(),
            "2.png": b,
            "cow/3.png": c,
            "cow/3.cls": b"dog",
            "./4.png": d,
            "cat/sub/5.png": e,
            "README.txt": b"passed over",
        },
    )
    source = sources.load(tmp_path)
    known = {name: source.classes[label] if label >= 0 else None for name, label in zip(source.ids, source.label, strict=True)}
    assert known == {
        "x.tar/cat/1.jpg.png": "cat",
        "x.tar/2.png": "dog",
        "x.tar/cow/3.png": "dog",
        "x.tar/./4.png": None,
        "x.tar/cat/sub/5.png": "cat",
    }
    assert source.given.tolist() == [source.label[i] >= 0 for i in range(5)]


def test_numbers_are_named_by_classes_txt(tmp_path, pictures_of):
    pictures = pictures_of(3)
    pack(
        tmp_path / "x.tar",
        {f"{i}{suffix}": data for i, p in enumerate(pictures) for suffix, data in ((".png", p), (".cls", b"%d" % (9 + i)))},
    )
    assert sources.load(tmp_path).classes == ("9", "10", "11"), "in the order of numbers"
    (tmp_path / "classes.txt").write_text("\n".join(f"class {k}" for k in range(12)))
    source = sources.load(tmp_path)
    assert len(source.classes) == 12 and [source.classes[label] for label in source.label] == ["class 9", "class 10", "class 11"]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="x.tar/0.png: unknown class '9'"):
        sources.load(tmp_path)


def test_train_and_test_folders_and_a_test_folder_of_its_own(tarred, tmp_path, pictures_of):
    root, _ = tarred
    extra = {f"{i}{suffix}": data for i, p in enumerate(pictures_of(4, seed=9)) for suffix, data in ((".png", p), (".cls", b"dog"))}
    pack(tmp_path / "held" / "t.tar", extra)
    source = sources.load(root, test=tmp_path / "held")
    assert source.test.sum() == 4 and source.ids[-1] == "test:t.tar/3.png" and not source.given[source.test].any()
    both = tmp_path / "both"
    both.mkdir()
    os.rename(root, both / "train")
    os.rename(tmp_path / "held", both / "test")
    source = sources.load(both)
    assert len(source) == 28 and source.test.sum() == 4 and source.ids[0] == "test/t.tar/0.png"
    with pytest.raises(ConfigError, match="has its own test part"):
        sources.load(both, test=both / "test")


def test_a_test_image_needs_a_known_label(tarred, tmp_path, pictures_of):
    a, b = pictures_of(2, seed=9)
    pack(tmp_path / "held" / "t.tar", {"1.png": a, "2.png": b, "2.cls": b"cow"})
    with pytest.raises(DataError) as caught:
        sources.load(tarred[0], test=tmp_path / "held")
    assert [place for place, _ in caught.value.problems] == ["test:t.tar/1.png", "test:t.tar/2.png"]


def test_flags_that_do_not_fit(tarred, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n")
    with pytest.raises(ConfigError, match="tar shards, which carry their labels; leave out --labels"):
        sources.load(tarred[0], labels=table)
    with pytest.raises(ConfigError, match="the test part of tar shards is a folder"):
        sources.load(tarred[0], test=table)


def test_an_archive_among_class_folders_is_no_shard(folder, digit_files):
    data = folder({**digit_files, "photos.tar": b"whatever"})
    assert not shards.sharded(data) and sources.load(data).warnings == ["passed over for want of an image's suffix: 1 ('photos.tar')"]


def test_shards_that_cannot_be_read(tmp_path, tarred, encoded, pictures_of):
    packed = pack(tmp_path / "zipped" / "x.tar", {"a/1.png": pictures_of(1)[0]}, "w:gz")
    with pytest.raises(DataError, match=r"x\.tar cannot be read as an uncompressed tar file .*; pack it anew with tar -cf"):
        sources.load(packed.parent)
    twice = tmp_path / "twice" / "x.tar"
    pack(twice, {"a/1.png": b"1", "b/2.png": b"2"})
    pack(twice, {"a/1.png": b"3"}, "a")
    with pytest.raises(DataError, match=r"x\.tar/a/1\.png: comes twice in its shard"):
        sources.load(twice.parent)
    words = pack(tmp_path / "words" / "x.tar", {"1.png": b"1", "1.json": b"{"})
    with pytest.raises(DataError, match=r"1\.json is not JSON"):
        sources.load(words.parent)


@pytest.mark.parametrize("pipeline", ["resident", "dali"])
def test_broken_members_are_quarantined(tarred, pipeline, monkeypatch, pictures_of):
    monkeypatch.setattr("fastssl.pipelines.file_set.dali_version", lambda: "2.4.0")
    root, _ = tarred
    (good,) = pictures_of(1, seed=3)
    pack(root / "set-2.tar", {"cat/1.png": good, "cat/2.png": b"no image"})
    source = sources.load(root, pipeline=pipeline, max_bad=0.2)
    assert [(name, reason[:20]) for name, reason in source.quarantine] == [("set-2.tar/cat/2.png", "not an image in one ")]
    assert len(source) == 25 and source.ids[-1] == "set-2.tar/cat/1.png"
    assert np.array_equal(source.images[[24]][0], images.decode(good, 16))


def test_a_shard_that_was_cut_off_is_refused_and_one_that_is_cut_later_loses_its_end(tarred, monkeypatch):
    """How many are missing from a cut shard nobody can tell, so it is not let pass as a few bad images."""
    monkeypatch.setattr("fastssl.pipelines.file_set.dali_version", lambda: "2.4.0")
    root, _ = tarred
    source = sources.load(root, pipeline="dali")
    with tarfile.open(root / "set-1.tar") as archive:
        member = archive.getmember("1007.png")
    os.truncate(root / "set-1.tar", member.offset_data + 100)
    with pytest.raises(DataError) as caught:
        source.images[np.arange(24)]
    assert caught.value.problems[0] == ("set-1.tar/1007.png", f"its shard ends early: 100 of {member.size} bytes")
    assert len(caught.value.problems) == 5
    with pytest.raises(DataError, match="unexpected end of data"):
        sources.load(root, pipeline="dali")


def test_members_are_remembered_until_the_shard_changes(tarred, monkeypatch):
    root, _ = tarred
    first = sources.load(root)
    asked = []
    real = shards.members
    monkeypatch.setattr(shards, "members", lambda path: asked.append(path.name) or real(path))
    again = sources.load(root)
    assert asked == [] and again.ids == first.ids and np.array_equal(again.images, first.images) and (again.label == first.label).all()
    os.utime(root / "set-1.tar", ns=(1, 1))
    sources.load(root)
    assert asked == ["set-1.tar"]
