"""The door to torchvision's sets: where they lie, what is fetched, and how files that are missing, changed or broken end."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from fastssl.pipelines import sources
from fastssl.pipelines.errors import DataError, SetupError
from fastssl.pipelines.set_facts import SETS, default_root, root_of
from fastssl.pipelines.torchvision_sets import download
from tests.pipelines import fake_sets

pytest.importorskip("torchvision", reason="torchvision comes with the vision extra: pip install '.[vision]'")


def test_a_batch_of_unknown_checksum_is_never_unpickled(tmp_path, monkeypatch):
    fake_sets.cifar10(tmp_path, monkeypatch)

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "bombed"),)

    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="not the published ones: their checksums differ; move .*cifar-10-batches-py away") as caught:
        sources.load("cifar10", root=tmp_path)
    assert caught.value.exit_code == 3 and not (tmp_path / "bombed").exists()
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        sources.load("cifar10", root=tmp_path)
    assert not (tmp_path / "bombed").exists()


def test_files_of_an_old_torchvision_are_not_read(tmp_path, monkeypatch):
    fake_sets.fashion_mnist(tmp_path, monkeypatch)
    old = tmp_path / "FashionMNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)), old / name)
    with pytest.raises(DataError, match="files of an old torchvision; move that folder away"):
        sources.load("fashion_mnist", root=tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_names_place_and_flags(name, tmp_path):
    with pytest.raises(SetupError, match=rf"{name} is not in {tmp_path} \(looked for .*{SETS[name].place}\); .* --root, or --download"):
        sources.load(name, root=tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "data"),
    [
        ("svhn", "train_32x32.mat", b"no matrix"),
        ("stl10", "stl10_binary/train_X.bin", b"short"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte", b"\x00\x00\x08\x03"),
        ("food101", "food-101/meta/train.json", b"{"),
        ("flowers102", "flowers-102/setid.mat", b"no matrix"),
    ],
)
def test_broken_files_end_in_one_sentence(name, file, data, tmp_path, monkeypatch):
    getattr(fake_sets, name)(tmp_path, monkeypatch)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(DataError, match=rf"the files of {name} in .* move .* away and give --download") as caught:
        sources.load(name, root=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTSSL_DATA", str(tmp_path / "sets"))
    assert root_of(None) == tmp_path / "sets"
    monkeypatch.delenv("FASTSSL_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "fastssl" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "fastssl" / "data"
    monkeypatch.chdir(tmp_path)
    assert root_of("here") == tmp_path / "here"


def test_downloads_are_torchvisions(tmp_path, monkeypatch, capsys):
    from urllib.error import URLError

    from torchvision import datasets

    calls = []

    class Fetching:
        def __init__(self, root, download=False, **options):
            print("some older torchvision says something")
            calls.append((root, download, options))

    monkeypatch.setattr(datasets, "SVHN", Fetching)
    download("svhn", tmp_path, extra=True)
    assert calls == [(tmp_path, True, {"split": part}) for part in ("train", "test", "extra")]
    assert capsys.readouterr().out == "", "stdout is for results"

    def fails(error):
        class Failing:
            def __init__(self, *args, **options):
                raise error

        monkeypatch.setattr(datasets, "CIFAR10", Failing)
        with pytest.raises(SetupError) as caught:
            download("cifar10", tmp_path)
        return str(caught.value)

    assert "cannot download cifar10" in fails(URLError("no route to host")) and "--root" in fails(URLError("no route"))
    assert "gdown" in fails(RuntimeError("To download files from GDrive, 'gdown' is required."))
    full = OSError(28, "No space left on device")

    class Full:
        def __init__(self, *args, **options):
            raise full

    monkeypatch.setattr(datasets, "CIFAR10", Full)
    with pytest.raises(OSError) as caught:
        download("cifar10", tmp_path)
    assert caught.value is full, "a full disk is exit 7, by the command line"


def test_a_set_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    fake_sets.cifar10(tmp_path, monkeypatch)

    def refuse(*args, **options):
        raise AssertionError("fetched")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    download("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("wall", "name", "mend"),
    [
        ("torchvision", "cifar10", "pip install 'fastssl[vision]'"),
        ("scipy", "svhn", "pip install scipy"),
        ("h5py", "pcam", "pip install h5py"),
    ],
)
def test_a_missing_package_names_its_command(wall, name, mend, tmp_path, monkeypatch, python):
    (tmp_path / SETS[name].place).mkdir(parents=True)
    code = f"""
import importlib.util, sys
sys.modules[{wall!r}] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {wall!r} else find(name, *rest)
from fastssl.pipelines import errors, sources
try: sources.load({name!r}, root={str(tmp_path)!r})
except errors.SetupError as error: print(error)
"""
    text = python("-c", code).stdout.strip()
    assert wall in text and text.endswith(f"run: {mend}"), text
