"""Repositories of the hub as folders: the cache first, nothing fetched offline, and what is asked for when there is a network."""

from __future__ import annotations

import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from fastssl import models
from fastssl.models import hub
from fastssl.pipelines.errors import SetupError

from . import text_cases as cases

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def keep(cache, name: str = "someone/tiny", *, weights: bool = True):
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(SHA)
    left_out = None if weights else shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(cases.folder(), place / "snapshots" / SHA, ignore=left_out)


def test_what_lies_in_the_cache_is_taken(cache):
    place = keep(cache)
    config = cases.config("someone/tiny")
    assert models.describe(config).text == (str(place), 64)
    report = models.Report()
    encoder = models.build(config, ("a", "b"), report=report).encoder.eval()
    assert encoder(cases.ids()).equal(cases.encoder()(cases.ids())) and SHA in report.notes[0]
    assert models.describe(cases.config(f"someone/tiny@{SHA}")).text.longest == 64


def test_offline_and_not_there(cache):
    with pytest.raises(
        SetupError, match="there is no folder someone/tiny, .* is not in the cache .*hub, and this run is offline; give a folder"
    ):
        models.describe(cases.config("someone/tiny"))
    keep(cache, weights=False)
    models.describe(cases.config("someone/tiny"))
    with pytest.raises(SetupError, match="its safetensors weights among it is not in the cache"):
        models.build(cases.config("someone/tiny"), ("a",))
    assert models.build(cases.config("someone/tiny", weights="random"), ("a",)).encoder.num_features == 32


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(cache, name):
    with pytest.raises(SetupError, match=f"there is no folder {name}"):
        models.describe(cases.config(name))


class Network:
    """Stands for huggingface_hub's two calls; keeps what was asked."""

    def __init__(self, monkeypatch, cache, error=None):
        self.asked, self.cache, self.error = [], cache, error
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        self.snapshot = huggingface_hub.snapshot_download
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.one)

    def download(self, name, *, local_files_only=False, allow_patterns=None, ignore_patterns=None, **options):
        if local_files_only:
            return self.snapshot(name, local_files_only=True, **options)
        if self.error is not None:
            raise self.error
        self.asked.append(tuple(allow_patterns))
        shutil.rmtree(self.cache, ignore_errors=True)
        return str(keep(self.cache, weights="*.safetensors" in allow_patterns))

    def one(self, name, file, **options):
        self.asked.append(file)
        absent = self.cache / f"models--{name.replace('/', '--')}" / ".no_exist" / SHA
        absent.mkdir(parents=True)
        (absent / file).touch()
        raise EntryNotFoundError("no such file")


def test_the_network_is_asked_for_what_is_needed_and_once(cache, monkeypatch):
    network = Network(monkeypatch, cache)
    hub.folder("someone/tiny", "x", weights=False)
    assert network.asked == [hub.SMALL, "modules.json"]
    hub.folder("someone/tiny", "x", weights=False)
    assert len(network.asked) == 2
    place = hub.folder("someone/tiny", "x", weights=True)
    assert network.asked[2:] == [hub.SMALL + hub.WEIGHTS, "modules.json"] and (place / "model.safetensors").is_file()


def test_a_cache_that_another_program_left_is_asked_about_its_card(cache, monkeypatch):
    keep(cache)
    network = Network(monkeypatch, cache)
    hub.folder("someone/tiny", "x", weights=True)
    assert network.asked == [hub.SMALL + hub.WEIGHTS, "modules.json"]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no answer"), OSError("disk full"), ValueError("odd")])
def test_a_network_that_fails(cache, monkeypatch, error):
    Network(monkeypatch, cache, error)
    with pytest.raises(SetupError, match=f"there is no folder someone/tiny, and .* cannot be fetched \\({error}\\); give a folder"):
        hub.folder("someone/tiny", "x", weights=True)
    assert issubclass(RepositoryNotFoundError, OSError)  # a hub's refusal is told alike
