"""Unlabelled images from elsewhere: they come after the set's own rows, change none of them, and are held as those are."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.pipelines import choice, extra, sources, splits
from fastssl.pipelines.batch import Views
from fastssl.pipelines.errors import DataError
from fastssl.pipelines.file_set import Taking
from fastssl.pipelines.imbalance import Imbalance
from fastssl.pipelines.resident import ResidentPipeline
from tests.pipelines import fake_sets

VIEWS = Views(("weak",), ("weak", "strong"), 1)


@pytest.fixture()
def others(folder, encoded):
    """Seven images of noise in other sizes, one of them two folders deep, beside a text file."""
    rng = np.random.default_rng(1)
    sizes = [(16, 16), (16, 16), (20, 30), (8, 8), (64, 48), (16, 16), (16, 16)]
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    names = ["a.png", "b.png", "cats/c.png", "cats/deep/d.png", "dogs/e.jpg", "f.png", "g.png"]
    files = {name: encoded(image, "JPEG" if name.endswith("jpg") else "PNG") for name, image in zip(names, pictures, strict=True)}
    return folder({**files, "notes.txt": b"nothing"}, root="others")


@pytest.fixture()
def data(folder, encoded):
    """Forty PNG images in four classes, 16 pixels wide."""
    rng = np.random.default_rng(0)
    image = lambda: Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))  # noqa: E731
    return folder({f"{c}/{i}.png": encoded(image(), "PNG") for c in range(4) for i in range(10)})


NAMES = [f"extra:{name}" for name in ("a.png", "b.png", "cats/c.png", "cats/deep/d.png", "dogs/e.jpg", "f.png", "g.png")]


def pixels(path, side):
    """A file as the specification has it: the largest centred square, resized by Pillow's bicubic."""
    image = Image.open(path)
    least = min(image.size)
    left, top = (image.width - least) / 2, (image.height - least) / 2
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + least, top + least))).transpose(2, 0, 1)


def own_rows_are(source, alone):
    n = len(alone)
    assert source.own == n and source.ids[:n] == alone.ids and source.classes == alone.classes
    for name in ("label", "given", "test", "content"):
        assert np.array_equal(getattr(source, name)[:n], getattr(alone, name)), name
    assert np.array_equal(source.images[np.arange(n)], alone.images[np.arange(n)])
    assert (source.mean, source.std, source.flip) == (alone.mean, alone.std, alone.flip)


@pytest.mark.parametrize("pipeline", ["resident", "dali"])
def test_a_folder_beside_a_folder(data, others, pipeline):
    alone = sources.load(data, pipeline=pipeline)
    source = sources.load(data, pipeline=pipeline, extra_unlabelled=others)
    own_rows_are(source, alone)
    assert source.extra == 7 and source.ids[40:] == NAMES and source.images.shape == (47, 3, 16, 16)
    assert (source.label[40:] == -1).all() and not source.given[40:].any() and not source.test[40:].any()
    for row, name in enumerate(NAMES):
        assert np.array_equal(source.images[[40 + row]][0], pixels(others / name.removeprefix("extra:"), 16)), name
    assert any("notes.txt" in text for text in source.warnings) and source.choice.name == pipeline
    assert len(np.unique(source.content)) == 47


@pytest.mark.parametrize("size", [8, 20])
def test_beside_digits_at_their_size(others, size):
    source = sources.load("digits", size=size, extra_unlabelled=others)
    own_rows_are(source, sources.load("digits", size=size))
    assert source.images.shape == (1804, 3, size, size) and "1,804 images" in source.choice.reason
    assert np.array_equal(source.images[-3], pixels(others / "dogs" / "e.jpg", size))


def test_beside_a_published_set_that_stays_small(tmp_path, monkeypatch, others):
    pytest.importorskip("torchvision", reason="torchvision comes with the vision extra: pip install '.[vision]'")
    fake_sets.cifar10(tmp_path, monkeypatch)
    options = {"root": tmp_path, "size": 48, "enlarge": False}
    source = sources.load("cifar10", extra_unlabelled=others, **options)
    own_rows_are(source, sources.load("cifar10", **options))
    assert source.images.shape[3] == 32 and np.array_equal(source.images[-1], pixels(others / "g.png", 32))
    (tmp_path / "cifar-10-batches-py" / "more").mkdir()
    for place in (tmp_path, tmp_path / "cifar-10-batches-py" / "more"):
        with pytest.raises(DataError, match="holds the data set itself|lies inside the data set"):
            sources.load("cifar10", extra_unlabelled=place, **options)


def test_a_csv_names_files_by_its_own_folder_or_whole(data, others, tmp_path):
    far = tmp_path / "far" / "away.png"
    far.parent.mkdir()
    far.write_bytes((others / "a.png").read_bytes())
    table = others / "list.csv"
    table.write_text(f"caption;path;label\na;cats\\c.png;7\nb;./g.png;x\nc;{far};\nd;cats/deep/../c.png;\n\n")
    source = sources.load(data, extra_unlabelled=table)
    assert source.ids[40:] == sorted(["extra:cats/c.png", "extra:g.png", f"extra:{far}"])
    row = source.ids.index(f"extra:{far}")
    assert np.array_equal(source.images[row], pixels(far, 16)) and (source.label[40:] == -1).all(), "labels of the CSV are not read"
    assert any("list.csv repeats images that it already has, in line 5" in text for text in source.warnings)


def test_all_faults_of_a_csv_at_once(data, others):
    table = others / "list.csv"
    table.write_text(f"path\na.png\nno.png\n\n''\n{data}/0/1.png\ncats\n")
    with pytest.raises(DataError, match="--extra-unlabelled .*list.csv cannot be used as it is") as caught:
        sources.load(data, extra_unlabelled=table)
    places = {place: what for place, what in caught.value.problems}
    assert set(places) == {"list.csv:3", "list.csv:5", "list.csv:6", "list.csv:7"}
    assert "no file 'no.png'" in places["list.csv:3"] and "lies inside the data set" in places["list.csv:6"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("file,label\na.png,x\n", "column 'path' is missing"), ("path\n", "has no row below its header"), ("", "the file is empty")],
)
def test_a_csv_that_names_no_image(data, others, text, said):
    table = others / "list.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        sources.load(data, extra_unlabelled=table)
    assert caught.value.exit_code == 3


def test_places_that_cannot_be_used(data, others, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, said in (
        (tmp_path / "nowhere", "no such folder or file"),
        (empty, "holds no images"),
        (data, "holds the data set itself"),
        (tmp_path, "holds the data set itself"),
        (data / "1", "lies inside the data set"),
        (others / "a.png", "is not UTF-8 text"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            sources.load(data, extra_unlabelled=place)
        assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="holds the data set itself, .*others"):
        sources.load(data, test=_classed(tmp_path, others), extra_unlabelled=others)


def _classed(tmp_path, others):
    """A test folder inside the extra images."""
    test = others / "test"
    for c in range(4):
        (test / str(c)).mkdir(parents=True)
        (test / str(c) / "t.png").write_bytes((others / "a.png").read_bytes())
    return test


def test_an_id_that_would_clash_is_refused(data, others):
    source = sources.load(data)
    clashing = dataclasses.replace(source, ids=[*source.ids[:-1], "extra:a.png"])
    with pytest.raises(DataError, match="which marks the images of --extra-unlabelled"):
        extra.joined(clashing, extra.listed(others, []), Taking())


@pytest.mark.parametrize("pipeline", ["resident", "dali"])
def test_broken_files_are_quarantined_and_counted(data, others, pipeline):
    (others / "broken.png").write_bytes(b"no image")
    (others / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 8 images in .*others cannot be decoded, 25.0% where --max-bad allows 1.0%"):
        sources.load(data, pipeline=pipeline, extra_unlabelled=others)
    source = sources.load(data, pipeline=pipeline, extra_unlabelled=others, max_bad=0.3)
    assert [name for name, _ in source.quarantine] == ["extra:b.png", "extra:broken.png"] and source.extra == 6
    assert source.ids[40:] == [name for name in NAMES if "b.png" not in name] and len(source.images) == 46
    assert np.array_equal(source.images[[41]][0], pixels(others / "cats" / "c.png", 16)), "rows close up"


def test_all_broken_is_an_error(data, others):
    for file in others.rglob("*.*"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 7 images"):
        sources.load(data, extra_unlabelled=others, max_bad=1)


def test_room_is_asked_for_all_images_together(data, others):
    need = 47 * 3 * 16 * 16
    for free, wanted in ((2 * need, "resident"), (2 * need - 2, "dali")):
        chosen = choice.choose("auto", 40 + 7, 16, choice.Room("cpu", free, free), "2.4")
        assert chosen.name == wanted
    room = choice.Room("cpu", 2 * need, 2 * need)
    assert "47 images" in sources.load(data, pipeline="auto", room=room, extra_unlabelled=others).choice.reason


def split_of(source, **options):
    return splits.make(source, **{"per_class": 2, "warn": lambda text: None, **options})


def test_they_are_unlabelled_rows_and_change_no_other_role(data, others, tmp_path):
    alone, source = sources.load(data), sources.load(data, extra_unlabelled=others)
    for options in ({}, {"holdout": 0.2}, {"per_class": None, "total": 9}, {"per_class": None, "fraction": 0.5}):
        a, b = split_of(alone, **options), split_of(source, **options)
        assert np.array_equal(a.labelled, b.labelled) and np.array_equal(a.label, b.label) and np.array_equal(a.test, b.test)
        assert b.unlabelled.tolist() == [*a.unlabelled.tolist(), *range(40, 47)] and a.hash != b.hash
    splits.save(b, source, tmp_path / "split.csv")
    again = split_of(source, per_class=None, split_file=tmp_path / "split.csv")
    assert again.hash == b.hash and np.array_equal(again.unlabelled, b.unlabelled)
    text = (tmp_path / "split.csv").read_text()
    assert text.count("extra:") == 7 and "extra:cats/deep/d.png,unlabelled,," in text


def test_a_profile_is_one_of_the_sets_own_images(data, others):
    source = sources.load(data, extra_unlabelled=others)
    split = split_of(source, per_class=4, imbalance=Imbalance(4.0, 2.0, 4))
    own = split.unlabelled[split.unlabelled < 40]
    assert np.bincount(source.label[own]).tolist() == [4, 3, 2, 2] and split.unlabelled[len(own) :].tolist() == list(range(40, 47))


def test_split_files_of_other_sets_of_images(data, others, tmp_path):
    alone, source = sources.load(data), sources.load(data, extra_unlabelled=others)
    said, file = [], tmp_path / "split.csv"
    splits.save(split_of(alone), alone, file)
    split = split_of(source, per_class=None, split_file=file, warn=said.append)
    assert split.unlabelled.tolist() == list(range(47)) and split.hash == split_of(source).hash
    assert said == ["the split file names no extra image; all 7 are taken as unlabelled"]
    splits.save(split_of(source), source, file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if "extra:a" not in line and "extra:g" not in line))
    some = split_of(source, per_class=None, split_file=file)
    assert some.unlabelled[-5:].tolist() == [41, 42, 43, 44, 45], "a file that names some takes those"
    (others / "b.png").unlink()
    with pytest.raises(DataError, match="'extra:b.png' is not among the images of --extra-unlabelled; bring it back"):
        split_of(sources.load(data, extra_unlabelled=others), per_class=None, split_file=file)
    file.write_text("\n".join([*lines[:1], "extra:a.png,labelled,0,1"]))
    with pytest.raises(DataError, match="'extra:a.png' is an extra image, and those are unlabelled only"):
        split_of(source, per_class=None, split_file=file)


def test_copies_of_test_images_are_told_of_or_left_out(data, others):
    (others / "copy.png").write_bytes((data / "0" / "3.png").read_bytes())
    source = sources.load(data, extra_unlabelled=others)
    row, said = source.ids.index("extra:copy.png"), []
    for seed in range(20):
        split = split_of(source, holdout=0.5, seed=seed, warn=said.append)
        assert (row in split.unlabelled) == (source.ids.index("0/3.png") not in split.test)
    assert any("copies of held-out images, left out of training: 1" in text for text in said)


def drawn(pipeline, count):
    """Rows and images of a few batches."""
    return [
        (batch.unlabelled_index.clone(), batch.hidden_label.clone(), batch.unlabelled[0].clone())
        for batch in map(lambda _: pipeline.draw(), range(count))
    ]


def test_batches_hold_them_in_both_pipelines(data, others):
    for file, image in {name: Image.open(others / name).resize((16, 16)) for name in ("cats/c.png", "cats/deep/d.png")}.items():
        image.save(others / file)
    (others / "dogs" / "e.jpg").unlink()  # PNG of the stored side: both decoders give the same bits
    made = []
    kinds = {"resident": ResidentPipeline}
    if choice.dali_version():
        from fastssl.pipelines.streamed import DaliPipeline

        kinds["dali"] = DaliPipeline
    for name, kind in kinds.items():
        source = sources.load(data, pipeline=name, extra_unlabelled=others)
        pipeline = kind(source, split_of(source), VIEWS, batch_size=4, ratio=3, **({"workers": 1} if name == "dali" else {}))
        assert pipeline.spec.extra == 6 and pipeline.spec.rows == 46 and pipeline.spec.unlabelled == 46
        made.append(drawn(pipeline, 8))
        rows, hidden = (torch.cat(column) for column in list(zip(*made[-1], strict=True))[:2])
        assert set(rows.tolist()) == set(range(46)) and (hidden[rows >= 40] == -1).all() and (hidden[rows < 40] >= 0).all()
        swept = list(pipeline.sweep(np.array([45, 3, 41]), 2))
        assert torch.cat([piece.index for piece in swept]).tolist() == [45, 3, 41]
        assert torch.cat([piece.label for piece in swept]).tolist() == [-1, 0, -1]
        with pytest.raises(ValueError, match="rows to sweep"):
            next(pipeline.sweep(np.array([46])))
        pipeline.use(dataclasses.replace(pipeline.split, unlabelled=np.array([41, 44])))
        assert set(pipeline.draw().unlabelled_index.tolist()) == {41, 44}
    for a, b in zip(*made, strict=True) if len(made) > 1 else ():
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_shards_take_them_too(tmp_path, others, encoded):
    import tarfile

    rng = np.random.default_rng(0)
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        for i in range(8):
            for suffix, content in (
                (".png", encoded(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), "PNG")),
                (".cls", b"%d" % (i % 2)),
            ):
                member = tarfile.TarInfo(f"{i}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    for pipeline in ("resident", "dali"):
        source = sources.load(tmp_path / "shards", pipeline=pipeline, extra_unlabelled=others)
        assert source.own == 8 and np.array_equal(source.images[[8]][0], pixels(others / "a.png", 16))
