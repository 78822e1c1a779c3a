"""scikit-learn's peers on texts: what a direct call on TF-IDF of the training texts gives on the same split, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from fastssl import environment
from fastssl.config import DataConfig, RunConfig, TrainConfig
from fastssl.engine import classical, tfidf
from fastssl.pipelines import sources, splits
from fastssl.pipelines.errors import ConfigError, DataError, ResourceError
from fastssl.sections import ModelConfig
from tests import text_set

DIRECT = {
    "sklearn:LogisticRegression": lambda: LogisticRegression(max_iter=1000),
    "sklearn:LabelSpreading": lambda: LabelSpreading(kernel="knn", n_neighbors=7, max_iter=200),
    "sklearn:SelfTraining": lambda: SelfTrainingClassifier(LogisticRegression(max_iter=1000), threshold=0.75),
}


def configured(peer, seed=0, **data):
    return RunConfig(peer, classical.find(peer)(), ModelConfig(), DataConfig(**data), TrainConfig(seed=seed))


def written(path, rows, header=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return text_set.made(tmp_path_factory.mktemp("texts"), 160)


@pytest.mark.parametrize("name", DIRECT)
def test_accuracy_is_that_of_a_direct_call(name, files, tmp_path):
    config = configured(name, seed=2, name=str(files.train), test=str(files.test), labels_per_class=3)
    result = classical.run(config, tmp_path / "run")
    source = sources.load(files.train, test=files.test)
    split = splits.make(source, per_class=3, seed=2)
    texts = np.array(source.texts)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts[split.unlabelled])
    rows = split.labelled if name.endswith("LogisticRegression") else split.unlabelled  # the labelled ones are among them
    target = np.full(len(source), -1)
    target[split.labelled] = split.label
    model = DIRECT[name]().fit(vectorizer.transform(texts[rows]), target[rows])
    right = model.predict(vectorizer.transform(texts[split.test])) == source.label[split.test]
    assert result["accuracy"] == pytest.approx(right.mean(), abs=1e-12) and 0.4 < right.mean() < 1
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["accuracy"] == result["accuracy"] and record["split_hash"] == split.hash and record["labels"] == 12
    assert splits.load(tmp_path / "run" / "split.csv", source).hash == split.hash


def test_features_are_tf_idf_of_words_and_pairs(tmp_path):
    train = written(tmp_path / "t.csv", [("red red Red sea", "a"), ("blue sea", "b")])
    source = sources.load(train, test=written(tmp_path / "e.csv", [("sea, unheard unheard", "a")]))
    made = tfidf.features(tfidf.Words(), source, np.array([0, 1])).toarray()
    # blue, "blue sea", red, "red red", "red sea", sea: no feature is of the test text alone.
    rare, common = math.log(3 / 2) + 1, 1.0
    first = np.array([0, 0, (1 + math.log(3)) * rare, (1 + math.log(2)) * rare, rare, common])
    assert np.allclose(made[0], first / np.linalg.norm(first))
    assert np.allclose(made[2], [0, 0, 0, 0, 0, 1])


def test_options_of_the_features_are_theirs(tmp_path):
    source = sources.load(written(tmp_path / "t.csv", [("red sea red", "a"), ("blue sea", "b")]))
    rows = np.array([0, 1])
    assert tfidf.features(tfidf.Words(ngrams=1), source, rows).shape[1] == 3
    assert tfidf.features(tfidf.Words(min_df=2), source, rows).shape[1] == 1
    plain = tfidf.features(tfidf.Words(ngrams=1, sublinear_tf=False), source, rows).toarray()[0]
    assert plain[1] / plain[2] == pytest.approx(2 * (math.log(3 / 2) + 1))
    assert all(field.metadata["source"] for kind in classical.PEERS.values() for field in dataclasses.fields(kind))


def test_unlabelled_texts_from_elsewhere_are_trained_on(files, tmp_path, monkeypatch):
    seen = []
    features = tfidf.features
    monkeypatch.setattr(tfidf, "features", lambda words, source, rows: seen.append(rows) or features(words, source, rows))
    extra = written(tmp_path / "more.csv", [("something else entirely",), ("and more of it",)], header=("text",))
    data = dict(name=str(files.train), test=str(files.test), labels_per_class=3)
    classical.run(configured("sklearn:SelfTraining", **data), tmp_path / "a")
    classical.run(configured("sklearn:SelfTraining", **data, extra_unlabelled=extra), tmp_path / "b")
    assert [len(rows) for rows in seen] == [160, 162]


def test_columns_are_those_of_the_configuration(tmp_path):
    rows = [(f"{word} {word} number {i}", word) for i in range(10) for word in ("cats", "dogs")]
    name = written(tmp_path / "t.csv", rows, header=("said", "kind"))
    with pytest.raises(DataError, match="text"):
        classical.run(configured("sklearn:LogisticRegression", name=name, labels_per_class=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    data = dict(name=name, labels_per_class=2, holdout=0.3, text_column="said", label_column="kind")
    assert classical.run(configured("sklearn:LogisticRegression", **data), tmp_path / "run")["accuracy"] == 1.0


def test_what_cannot_be_done_is_one_sentence(files, tmp_path, monkeypatch):
    data = dict(name=str(files.train), labels_per_class=2)
    assert classical.run(configured("sklearn:LogisticRegression", **data), tmp_path / "run")["why_no_accuracy"].startswith("no test texts;")
    with pytest.raises(ConfigError, match="data.size"):
        config = dataclasses.replace(configured("sklearn:SelfTraining", **data, size=9), origins={"data.size": "the command line"})
        classical.run(config, tmp_path / "size")
    empty = written(tmp_path / "t.csv", [("🙂 a", "a"), ("b 🚀", "b"), ("?", "a")])
    with pytest.raises(DataError, match="no training text of t has a word of two letters"):
        classical.run(configured("sklearn:LogisticRegression", name=empty, labels_per_class=1), tmp_path / "empty")
    monkeypatch.setattr(environment, "memory", lambda: (1 << 30, 1_000_000))
    for name in DIRECT:
        with pytest.raises(ResourceError, match=f"{name} would take about .* GiB for (160|8) texts, and 0.0 are free"):
            classical.run(configured(name, **data), tmp_path / "large")
    assert not (tmp_path / "large").exists()


def test_a_size_of_a_preset_says_nothing_of_texts(files, tmp_path):
    config = configured("sklearn:LogisticRegression", name=str(files.train), labels_per_class=2, size=9)
    assert classical.run(dataclasses.replace(config, origins={"data.size": "preset"}), tmp_path / "run")["labels"] == 8


@pytest.mark.skipif("FASTSSL_DATA" not in os.environ, reason="FASTSSL_DATA names no folder with ag_news_train.csv")
def test_ag_news(tmp_path):
    root = Path(os.environ["FASTSSL_DATA"])
    if not (root / "ag_news_train.csv").exists():
        pytest.skip("FASTSSL_DATA names no folder with ag_news_train.csv")
    data = dict(name=str(root / "ag_news_train.csv"), test=str(root / "ag_news_test.csv"), labels_per_class=10)
    result = classical.run(configured("sklearn:LogisticRegression", **data), tmp_path / "run")
    assert result["labels"] == 40 and 0.4 < result["accuracy"] < 0.8
