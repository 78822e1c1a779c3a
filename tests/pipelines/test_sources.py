"""Names and folders -> Source: digits, layouts, test parts, quarantine."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.pipelines import sources
from fastssl.pipelines.errors import ConfigError, DataError


def same(a, b):
    arrays = ("label", "given", "test", "images", "content")
    return a.ids == b.ids and a.classes == b.classes and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)


def test_digits():
    digits = sources.load("digits")
    assert len(digits) == 1797 and digits.images.shape == (1797, 3, 8, 8) and digits.images.dtype == np.uint8
    assert digits.classes == tuple("0123456789") and not digits.flip
    assert digits.ids[7] == "digits/0007" and digits.ids == sorted(digits.ids)
    assert digits.images.max() == 255 and (digits.images[:, 0] == digits.images[:, 2]).all()
    share = np.bincount(digits.label[digits.test]) / np.bincount(digits.label)
    assert digits.test.sum() == 450 and ((share > 0.245) & (share < 0.255)).all()
    assert np.array_equal(digits.given, ~digits.test)
    # The fixed test part never moves: published numbers hang on it.
    assert np.flatnonzero(digits.test)[:6].tolist() == [1, 6, 7, 16, 18, 25]
    assert len(np.unique(digits.content)) == 1797


def test_digits_enlarged():
    small, large = sources.load("digits"), sources.load("digits", size=32)
    assert large.images.shape == (1797, 3, 32, 32) and np.array_equal(small.test, large.test)
    back = torch.nn.functional.avg_pool2d(torch.from_numpy(large.images[:, :1]).float(), 4)[:, 0].numpy()
    assert np.abs(back - small.images[:, 0]).mean() < 12, "the same digits, larger"


def test_digits_take_no_files():
    with pytest.raises(ConfigError, match="digits brings its own labels and test part; --labels goes with a folder"):
        sources.load("digits", labels="x.csv")


def test_without_scikit_learn_the_message_names_the_command():
    code = (
        "import sys; sys.modules['sklearn'] = None; sys.modules['sklearn.datasets'] = None\n"
        "from fastssl.pipelines import errors, sources\n"
        "try: sources.load('digits')\n"
        "except errors.SetupError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "the digits come with scikit-learn, which is not installed; run: pip install scikit-learn", out.stderr


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, r"unknown data 'digit'; did you mean digits\?; and there is no folder of that name"),
        ("photos/nowhere", {}, "unknown data 'photos/nowhere'; known: cifar10, cifar100, digits, .*; and there is no folder of that name"),
        ("cifar", {}, r"unknown data 'cifar'; did you mean cifar10 or cifar100\?"),
        ("digits", {"size": 0}, "image size 0 is out of range"),
        ("digits", {"max_bad": 1.5}, "--max-bad 1.5 is out of range"),
    ],
)
def test_unknown_names_and_values(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        sources.load(name, **options)
    assert caught.value.exit_code == 2


def test_paths_that_do_not_fit(folder):
    data = folder()
    for options, message in [
        ({"labels": data / "none.csv"}, "--labels .*none.csv: no such file"),
        ({"test": data / "none"}, "--test .*none: no such file"),
        ({"labels": data}, "takes a CSV with the columns path,label"),
        ({"test": data}, "holds the data folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            sources.load(data, **options)
    with pytest.raises(ConfigError, match="is a file; --data takes a folder"):
        sources.load(data / "0" / os.listdir(data / "0")[0])


def test_class_folders(folder, digit_files):
    source = sources.load(folder())
    assert source.name == "data" and source.classes == ("0", "1", "2", "3") and source.ids == sorted(digit_files)
    assert source.images.shape == (48, 3, 16, 16) and source.flip
    assert [source.classes[c] for c in source.label] == [name[0] for name in source.ids]
    assert source.given.all() and not source.test.any() and not source.quarantine and not source.warnings


def test_the_order_of_files_does_not_matter(folder):
    assert same(sources.load(folder(root="a")), sources.load(folder(root="b", order=-1)))


def test_hidden_files_other_files_links_and_loose_images(folder, digit_files):
    image = next(iter(digit_files.values()))
    data = folder(
        {**digit_files, ".cache/x.jpg": image, "0/._0001.jpg": b"x", "0/notes.txt": b"x", "loose.JPG": image, "1/deep/er/y.jpeg": image}
    )
    (data / "linked").symlink_to(data / "0", target_is_directory=True)
    source = sources.load(data)
    assert len(source) == 50 and source.classes == ("0", "1", "2", "3")
    loose, deep = source.ids.index("loose.JPG"), source.ids.index("1/deep/er/y.jpeg")
    assert source.label[loose] == -1 and not source.given[loose] and source.label[deep] == 1
    assert source.warnings == [
        "passed over for want of an image's suffix: 1 ('0/notes.txt')",
        f"links to folders are not followed: 1 ('linked'); move their images below {data}",
        "images in no class's sub-folder, taken as unlabelled: 1 ('loose.JPG')",
    ]


def test_train_and_test_folders(folder, digit_files):
    files = {f"{'test' if i % 4 == 0 else 'train'}/{name}": data for i, (name, data) in enumerate(digit_files.items())}
    source = sources.load(folder(files))
    assert len(source) == 48 and source.test.sum() == 12 and source.ids == sorted(files)
    assert [name.startswith("test/") for name in source.ids] == source.test.tolist()
    assert np.array_equal(source.given, ~source.test) and (source.label >= 0).all()
    with pytest.raises(ConfigError, match="has its own test part"):
        sources.load(folder(files), test=folder(digit_files, root="other"))


def test_test_folder_beside_and_inside(folder, digit_files):
    names = sorted(digit_files)
    train, test = {n: digit_files[n] for n in names if names.index(n) % 4}, {n: digit_files[n] for n in names[::4]}
    beside = sources.load(folder(train), test=folder(test, root="held"))
    assert [n for n, t in zip(beside.ids, beside.test, strict=True) if t] == [f"test:{n}" for n in sorted(test)]
    inside_root = folder({**train, **{f"held out/{n}": d for n, d in test.items()}}, root="both")
    inside = sources.load(inside_root, test=inside_root / "held out")
    assert inside.classes == ("0", "1", "2", "3") and inside.test.sum() == 12
    assert sorted(inside.label[inside.test]) == sorted(beside.label[beside.test])


def test_test_csv_takes_rows_out_of_class_folders(folder, digit_files, tmp_path):
    names = sorted(digit_files)[::6]
    table = tmp_path / "test.csv"
    table.write_text("path,label\n" + "".join(f"{n},{n[0]}\n" for n in names))
    source = sources.load(folder(), test=table)
    assert [n for n, t in zip(source.ids, source.test, strict=True) if t] == names
    assert np.array_equal(source.given, ~source.test)


def test_test_part_faults(folder, digit_files, tmp_path):
    image = next(iter(digit_files.values()))
    with pytest.raises(DataError) as caught:
        sources.load(folder(), test=folder({"7/a.jpg": image, "b.jpg": image}, root="held"))
    assert [what for _, what in caught.value.problems] == [
        "images in no class's sub-folder: 1 ('test:b.jpg')",
        "unknown class '7'; known: 0, 1, 2, 3",
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="the test folder .* holds no images"):
        sources.load(folder(), test=empty)


def test_folders_without_use(tmp_path, folder, digit_files):
    image = next(iter(digit_files.values()))
    for files, message in [
        ({"a.jpg": image}, "has no sub-folders to be classes; name the labelled images with --labels"),
        ({"only/a.jpg": image}, "has 1 class; a classifier needs at least two"),
        ({"a/x.txt": b"", "b/y.txt": b""}, "holds no images"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            sources.load(folder(files, root=message[:8]))
        assert caught.value.exit_code == 3


def odd_files(encoded):
    """Every odd kind of file that decodes, and every kind that does not."""
    colour = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 8
    jpeg = encoded(colour, "JPEG")
    good = {
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "grey.png": encoded(colour.convert("L"), "PNG"),
        "deep.png": encoded(Image.fromarray(np.full((16, 16), 40_000, np.uint16)), "PNG"),
        "palette.gif": encoded(colour.quantize(8), "GIF"),
        "alpha.png": encoded(colour.convert("RGBA"), "PNG"),
        "animated.gif": encoded(colour, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16))]),
        "turned.jpg": encoded(colour, "JPEG", exif=exif),
        "dot.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "png in.jpg": encoded(colour, "PNG"),
    }
    bad = {"cut.jpg": jpeg[: len(jpeg) // 2], "zero.png": b"", "text.jpg": b"not an image"}
    return good, bad


def test_odd_images_are_read_and_bad_ones_quarantined(folder, digit_files, encoded):
    good, bad = odd_files(encoded)
    data = folder({**digit_files, **{f"3/{n}": d for n, d in {**good, **bad}.items()}})
    source = sources.load(data, max_bad=0.1)
    assert len(source) == 48 + len(good) and not {f"3/{n}" for n in bad} & set(source.ids)
    assert [name for name, _ in source.quarantine] == ["3/cut.jpg", "3/text.jpg", "3/zero.png"]
    assert "Truncated" in source.quarantine[0][1] and source.quarantine[2][1] == "empty file"
    assert source.warnings == [
        "undecodable images, left out of 60: 3 ('3/cut.jpg', '3/text.jpg', '3/zero.png')",
        "labels lost with undecodable images: 3 ('3/cut.jpg', '3/text.jpg', '3/zero.png')",
    ]
    clean = sources.load(folder({**digit_files, **{f"3/{n}": d for n, d in good.items()}}, root="clean"))
    assert same(source, clean), "rows close up around what is missing"


def test_too_many_bad_images_end_the_run(folder, digit_files, encoded):
    _, bad = odd_files(encoded)
    data = folder({**digit_files, **{f"3/{n}": d for n, d in bad.items()}})
    with pytest.raises(
        DataError, match=r"3 of 51 images .* cannot be decoded, 5\.9% where --max-bad allows 1\.0%; .* raise --max-bad"
    ) as caught:
        sources.load(data)
    assert caught.value.problems[2] == ("3/zero.png", "empty file")
    with pytest.raises(DataError, match="none of the 2 images"):
        sources.load(folder({"a/x.png": b"", "b/y.png": b""}, root="all"), max_bad=1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_a_name_that_is_not_utf8_is_quarantined(folder, digit_files):
    data = folder()
    (data / "0" / os.fsdecode(b"\xff.jpg")).write_bytes(next(iter(digit_files.values())))
    source = sources.load(data, max_bad=0.1)
    assert len(source) == 48 and source.quarantine == [("0/\ufffd.jpg", "its name is not UTF-8; rename it")]


def test_a_folder_that_cannot_be_listed_is_an_error(folder, monkeypatch):
    data = folder()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("2"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot list .*2: Permission denied"):
        sources.load(data)


def test_equal_small_squares_may_stay_as_they_are(folder, digit_files):
    data = folder()
    assert sources.load(data, size=40, enlarge=False).images.shape[3] == 16 and sources.load(data, size=40).images.shape[3] == 40
    assert sources.load(data, size=8, enlarge=False).images.shape[3] == 8
    wide = {**digit_files, "3/wide.png": b""}
    image = Image.new("RGB", (20, 16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    wide["3/wide.png"] = buffer.getvalue()
    assert sources.load(folder(wide, root="wide"), size=40, enlarge=False).images.shape[3] == 40


def test_interpolation_reaches_the_decoder(folder):
    data = folder()
    two = [sources.load(data, size=11, interpolation=name).images for name in ("bilinear", "bicubic")]
    assert not np.array_equal(*two) and np.array_equal(two[1], sources.load(data, size=11).images)
