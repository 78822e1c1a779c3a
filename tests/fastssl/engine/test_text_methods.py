"""Every method of the registry, by a plain command on a table of texts: a few whole steps, and the same again."""

import pytest

from fastssl.cli import main
from fastssl.methods import METHODS
from tests.fastssl import text_runs

SHORT = ["--labels-per-class", "3", "--batch-size", "4", "--ratio", "2", "--steps", "4", "--quiet", "--set", "train.eval_every=4"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return text_runs.made(tmp_path_factory.mktemp("texts"), rows=60)


@pytest.fixture(scope="module")
def teacher(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    assert main(["train", "--method", "finessl", *texts.flags, *SHORT, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_on_texts(texts, teacher, tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    more = {
        "semikd": ["--set", f"method.teacher={teacher}"],
        "sentaugment": ["--set", "method.bank=own"],
    }.get(name, [])
    results = []
    for out in ("one", "two"):
        assert main(["train", "--method", name, *texts.flags, *SHORT, *more, "--out", str(tmp_path / out)]) == 0
        results.append(text_runs.result_of(tmp_path / out))
    assert results[0]["accuracy"] is not None and results[0]["skipped"] == 0
    assert {k: results[0][k] for k in ("accuracy", "ece", "raw")} == {k: results[1][k] for k in ("accuracy", "ece", "raw")}
