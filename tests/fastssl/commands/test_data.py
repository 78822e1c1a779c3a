"""`fastssl data preview` and `data check`: the sheet holds the views themselves, the counts are the set's, errors are one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fastssl.cli import main
from fastssl.commands import data
from fastssl.pipelines import sources
from fastssl.pipelines.policies import policy
from fastssl.pipelines.views import Augmenter


@pytest.fixture()
def photos(tmp_path, monkeypatch):
    """A folder of two classes with four parts of a photograph each, one of them broken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(photo[40 * i : 40 * i + 120, 60 * i : 60 * i + 120]).save(folder / name / f"{i}.jpg", quality=92)
    (folder / "china" / "3.jpg").write_bytes(b"no image")
    return folder


def refused(capsys, *args, code=2):
    assert main(["data", *args]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("fastssl: ") and captured.err.count("\n") == 1
    return captured.err


def test_the_sheet_holds_originals_and_views(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    args = ["preview", "--size", "16", "--views", "weak,strong,strong", "--policy", "digits", "--count", "3", "--seed", "4"]
    assert main(["data", *args, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["views"] == ["weak", "strong", "strong"] and told["policy"] == "digits" and len(told["images"]) == 3
    page = np.asarray(Image.open(out).convert("RGB"))
    source = sources.load("digits", size=16)
    rows, images = data.pictured(source, Augmenter(policy("digits"), (16, 16), flip=False), ["weak", "strong", "strong"], 3, 4)
    assert [source.ids[row] for row in rows] == told["images"] and len(set(rows)) == 3
    assert np.array_equal(images[0], source.images[rows])
    for column in images:
        for picture in column:
            # Shown at a whole multiple of its size, so the pixels can be found again.
            large = np.kron(picture.transpose(1, 2, 0), np.ones((5, 5, 1), np.uint8))
            assert found(page, large)
    assert any(not np.array_equal(a, b) for a, b in zip(images[2], images[3], strict=True)), "two strong views differ"


def found(page: np.ndarray, part: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(page[..., 0], part.shape[:2])
    corners = np.argwhere((windows[:, :, 0, 0] == part[0, 0, 0]) & (windows[:, :, -1, -1] == part[-1, -1, 0]))
    height, width = part.shape[:2]
    return any(np.array_equal(page[y : y + height, x : x + width], part) for y, x in corners)


def test_a_seed_draws_the_same_sheet_and_another_another(tmp_path, capsys):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, seed in zip(files, ("1", "1", "2"), strict=True):
        assert main(["data", "preview", "--count", "4", "--seed", seed, "--out", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert "4 images of digits and their views weak, strong, 8 pixels" in capsys.readouterr().out


def test_a_folder_with_every_view(photos, tmp_path):
    for views, name in (("plain,weak,strong,simclr", "fixmatch"), ("strong,probe", "ctaugment"), ("weak,strong", "usb_224")):
        out = tmp_path / f"{name}.png"
        options = ["--size", "48", "--resize", "56", "--policy", name, "--max-bad", "0.5", "--interpolation", "bilinear"]
        assert main(["data", "preview", "--data", str(photos), "--views", views, *options, "--out", str(out)]) == 0
        page = Image.open(out)
        assert page.width >= 72 * (views.count(",") + 2) and page.height >= 72 * 7


def test_nothing_is_overwritten_unasked(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    out.write_bytes(b"mine")
    assert "exists; give another --out, or --overwrite" in refused(capsys, "preview", "--out", str(out))
    assert out.read_bytes() == b"mine"
    assert main(["data", "preview", "--count", "1", "--out", str(out), "--overwrite"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["preview"], "data preview needs --out FILE.png"),
        (["previw", "--out", "x.png"], "unknown action of data 'previw'; did you mean preview?"),
        (["preview", "--views", "weak,storng", "--out", "x.png"], "unknown view 'storng'; did you mean strong?"),
        (["preview", "--policy", "usb_22", "--out", "x.png"], "unknown policy 'usb_22'; did you mean usb_224"),
        (["preview", "--count", "0", "--out", "x.png"], "--count 0 is out of range; give 1 to 64 images"),
        (["preview", "--out", "x.jpg"], "the sheet is a PNG file; give a name that ends in .png"),
        (["preview", "--out", "nowhere/x.png"], "there is no folder nowhere"),
        (["preview", "--data", "digit", "--out", "x.png"], "unknown data 'digit'; did you mean digits?"),
        (["preview", "--views", "probe", "--out", "x.png"], "the view probe needs the rates of CTAugment; take --policy ctaugment"),
        (["preview", "--resize", "40", "--out", "x.png"], "--resize goes with --size"),
        (["preview", "--size", "32", "--resize", "24", "--out", "x.png"], "data.resize 24 is below the image size 32"),
        (["check", "--seed", "3", "--overwrite"], "data check draws nothing; leave out --seed, --overwrite"),
        (["check", "--pollicy", "usb"], "unknown flag '--pollicy'; did you mean --policy"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *args)
    assert not list(tmp_path.iterdir())


def test_check_counts_and_lists_what_cannot_be_decoded(photos, capsys):
    assert main(["data", "check", "--data", str(photos), "--max-bad", "0.2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "photos: 7 images of 120 pixels in 2 classes; mirroring keeps labels"
    assert said[1].split() == "china 3 images, 3 with a label for training, 0 for testing".split()
    assert any(line.startswith("cannot be decoded: china/3.jpg: ") for line in said)
    assert main(["data", "check", "--data", str(photos)]) == 3
    assert "1 of 8 images" in (error := capsys.readouterr().err) and "china/3.jpg: " in error, "above --max-bad"


def test_check_as_json(capsys):
    assert main(["data", "check", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    source = sources.load("digits")
    assert report["images"] == len(source) and report["pixels"] == 8 and report["mirroring_keeps_labels"] is False
    assert sum(entry["test"] for entry in report["classes"]) == source.test.sum() and report["undecodable"] == []
    assert sum(entry["labelled"] for entry in report["classes"]) == (source.given & ~source.test).sum()


def test_check_takes_a_labels_file(photos, tmp_path, capsys):
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nchina/0.jpg,china\nflower/0.jpg,flower\n")
    assert main(["data", "check", "--data", str(photos), "--labels", str(table), "--max-bad", "0.2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["labelled"] for entry in report["classes"]] == [1, 1] and report["images"] == 7


def test_preview_leaves_torchs_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    assert main(["data", "preview", "--count", "2", "--views", "strong,simclr", "--out", str(tmp_path / "s.png")]) == 0
    assert torch.equal(before, torch.random.get_rng_state())
