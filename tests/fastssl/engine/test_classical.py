"""scikit-learn's peers: what comes out is what a direct call gives on the same split, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from fastssl import environment
from fastssl.config import DataConfig, RunConfig, TrainConfig
from fastssl.engine import classical
from fastssl.pipelines import sources, splits
from fastssl.pipelines.errors import ConfigError, DataError, ResourceError
from fastssl.sections import ModelConfig

DIRECT = {
    "sklearn:LogisticRegression": lambda: LogisticRegression(max_iter=1000),
    "sklearn:LabelSpreading": lambda: LabelSpreading(kernel="rbf", gamma=20, max_iter=200),
    "sklearn:SelfTraining": lambda: SelfTrainingClassifier(LogisticRegression(max_iter=1000), threshold=0.75),
}


def configured(peer, seed=0, **data):
    return RunConfig(peer, classical.find(peer)(), ModelConfig(), DataConfig(**data), TrainConfig(seed=seed))


@pytest.mark.parametrize("name", DIRECT)
def test_accuracy_is_that_of_a_direct_call(name, tmp_path):
    result = classical.run(configured(name, seed=2, labels_per_class=3), tmp_path / "run")
    source = sources.load("digits")
    split = splits.make(source, per_class=3, seed=2)
    pixels = source.images[:, 0].reshape(len(source), -1) / 255
    target = np.full(len(source), -1)
    target[split.labelled] = split.label
    rows = split.labelled if name.endswith("LogisticRegression") else split.unlabelled  # the labelled ones are among them
    model = DIRECT[name]().fit(pixels[rows], target[rows])
    right = model.predict(pixels[split.test]) == source.label[split.test]
    assert result["accuracy"] == pytest.approx(right.mean(), abs=1e-12) and 0.3 < right.mean() < 1
    confidence = model.predict_proba(pixels[split.test]).max(axis=1)
    gap = sum(
        abs((right[inside] - confidence[inside]).sum())
        for k in range(15)
        if (inside := (confidence > k / 15) & (confidence <= (k + 1) / 15)).any()
    )
    assert result["ece"] == pytest.approx(gap / len(right), abs=1e-9)
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["event"] == "result" and record["accuracy"] == result["accuracy"] and record["split_hash"] == split.hash
    assert splits.load(tmp_path / "run" / "split.csv", source).hash == split.hash


def test_pixels_are_the_sets_own_unless_the_user_asks_for_a_size(monkeypatch, tmp_path):
    asked = []
    load = sources.load
    monkeypatch.setattr(sources, "load", lambda name, **options: asked.append(options["size"]) or load(name, **options))
    config = configured("sklearn:SelfTraining", labels_per_class=1, size=10)
    classical.run(dataclasses.replace(config, origins={"data.size": "preset"}), tmp_path / "a")
    classical.run(dataclasses.replace(config, origins={"data.size": "the command line"}), tmp_path / "b")
    assert asked == [None, 10]


def test_colours_are_kept_and_grey_is_one_channel():
    source = sources.load("digits")
    assert classical.flat(source).shape == (1797, 64)
    images = source.images.copy()
    images[5, 1, 0, 0] ^= 1
    assert classical.flat(dataclasses.replace(source, images=images)).shape == (1797, 192)


def test_without_test_images_there_is_no_accuracy(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "set" / name / f"{i}.png")
    config = configured("sklearn:SelfTraining", name=str(tmp_path / "set"), labels_per_class=2)
    result = classical.run(config, tmp_path / "run")
    assert result["accuracy"] is None and "--holdout" in result["why_no_accuracy"]


def test_what_does_not_fit_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="sklearn:SelfTraining"):
        classical.find("sklearn:SelfTrainings")
    monkeypatch.setattr(environment, "memory", lambda: (1 << 30, 10_000_000))
    with pytest.raises(ResourceError, match="would take about 0.0 GiB for 1347 images"):
        classical.run(configured("sklearn:LabelSpreading", labels_per_class=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_are_refused():
    source = sources.load("digits")
    split = splits.make(source, per_class=1)
    split = dataclasses.replace(split, weight=split.weight * 2)
    with pytest.raises(DataError, match="takes no weights"):
        classical.fitted(configured("sklearn:SelfTraining"), source, classical.flat(source), split)
