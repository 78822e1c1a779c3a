"""Published sets through the command line: train, eval, resume, moved roots, --download and --offline. The sets are tiny and made here."""

import json
import os
import shutil

import pytest
import yaml

from fastssl.cli import main
from tests.pipelines import fake_sets

pytest.importorskip("torchvision", reason="torchvision comes with the vision extra: pip install '.[vision]'")
FAST = [
    "--method",
    "fixmatch",
    "--model",
    "wrn-28-2",
    "--steps",
    "2",
    "--batch-size",
    "4",
    "--ratio",
    "2",
    "--quiet",
    "--set",
    "data.size=8",
]


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    fake_sets.cifar10(tmp_path / "sets", monkeypatch)
    return tmp_path / "sets"


def result(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_named_set_trains_and_is_judged_on_its_own_test_part(cifar10, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *FAST, "--data", "cifar10", "--root", str(cifar10), "--labels-per-class", "2", "--out", str(run), "--json"]) == 0
    trained = result(capsys)
    assert trained["labels"] == 20 and trained["data"] == "cifar10" and trained["ema"]["rows"] == 20
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["data"]["name"] == "cifar10" and saved["data"]["root"] == str(cifar10)
    assert main(["eval", str(run), "--json"]) == 0
    assert result(capsys)["accuracy"] == trained["accuracy"]
    assert main(["eval", str(run), "--data", "cifar10", "--root", str(cifar10), "--json"]) == 0
    again = result(capsys)
    assert again["rows"] == 20 and again["accuracy"] == trained["accuracy"], "by name the test part alone is judged"


@pytest.mark.parametrize(("size", "resize"), [(40, 48), (12, 16), (24, 40)])
def test_eval_sees_the_images_that_training_judged(size, resize, cifar10, tmp_path, capsys):
    """Enlarged on the device, held at the larger side and shrunk from there, or enlarged for crops alone."""
    run, sized = (
        tmp_path / "run",
        [*FAST[:-1], f"data.size={size}", "--set", "data.interpolation=bilinear", "--set", f"data.resize={resize}"],
    )
    given = ["--data", "cifar10", "--root", str(cifar10), "--labels-per-class", "2", "--out", str(run), "--json"]
    assert main(["train", *sized, *given]) == 0
    trained = result(capsys)
    assert main(["eval", str(run), "--json"]) == 0
    judged = result(capsys)
    assert judged["accuracy"] == trained["accuracy"] and judged["ece"] == pytest.approx(trained["ece"], abs=1e-6)


def test_a_root_that_has_moved(cifar10, tmp_path, capsys):
    run = tmp_path / "run"
    given = ["--data", "cifar10", "--root", str(cifar10), "--labels-per-class", "2", "--set", "train.stop_at=1"]
    assert main(["train", *FAST, *given, "--out", str(run)]) == 0
    moved = shutil.move(cifar10, tmp_path / "elsewhere")
    assert main(["eval", str(run)]) == 4
    assert "--root" in capsys.readouterr().err
    assert main(["eval", str(run), "--root", str(moved)]) == 0
    assert main(["train", "--resume", str(run), "--quiet"]) == 4
    assert main(["train", "--resume", str(run), "--root", str(moved), "--quiet", "--json"]) == 0
    assert result(capsys)["steps"] == 2


def test_the_environment_names_the_root(cifar10, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTSSL_DATA", str(cifar10))
    assert main(["train", *FAST, "--data", "cifar10", "--labels-per-class", "1", "--dry-run", "--json"]) == 0
    assert result(capsys)["config"]["data"]["root"] == str(cifar10)


def test_a_set_that_is_not_there(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *FAST, "--data", "cifar10", "--root", str(tmp_path), "--out", str(out)]) == 4
    text = capsys.readouterr().err
    assert str(tmp_path / "cifar-10-batches-py") in text and "--download" in text and "--root" in text and not out.exists()


def test_a_set_whose_files_were_changed(cifar10, tmp_path, capsys):
    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(b"x")
    assert main(["train", *FAST, "--data", "cifar10", "--root", str(cifar10), "--out", str(tmp_path / "run")]) == 3
    assert "checksums differ" in capsys.readouterr().err


def test_download_fetches_first(tmp_path, monkeypatch, capsys):
    from torchvision import datasets

    def fetch(self):
        if not (tmp_path / "sets").exists():
            fake_sets.cifar10(tmp_path / "sets", monkeypatch)

    monkeypatch.setattr(datasets.CIFAR10, "download", fetch)
    given = ["--data", "cifar10", "--root", str(tmp_path / "sets"), "--labels-per-class", "1", "--json"]
    assert main(["train", *FAST, *given, "--out", str(tmp_path / "a")]) == 4
    assert main(["train", *FAST, *given, "--download", "--out", str(tmp_path / "b")]) == 0
    assert result(capsys)["labels"] == 10
    assert "download:" not in (tmp_path / "b" / "config.yaml").read_text(), "a permission is no part of a run"


def test_download_that_fails_is_one_sentence(tmp_path, monkeypatch, capsys):
    from urllib.error import URLError

    def refuse(*args, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    out = tmp_path / "run"
    assert main(["train", *FAST, "--data", "cifar10", "--root", str(tmp_path), "--download", "--out", str(out)]) == 4
    text = capsys.readouterr().err
    assert "cannot download cifar10" in text and "no route to host" in text and not out.exists()


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["--data", "cifar10", "--download", "--offline"], ("--offline", "--download")),
        (["--download"], ("--download", "digits")),
        (["--root", "."], ("--root", "digits")),
        (["--data", "cifar10", "--labels", "x.csv"], ("cifar10", "--labels")),
        (["--set", "data.extra=true"], ("data.extra", "svhn")),
        (["--set", "data.interpolation=nearest"], ("data.interpolation", "nearest")),
        (["--set", "data.resize=0"], ("data.resize", "at least 1")),
        (["--set", "data.resize=16"], ("data.resize 16", "32")),
        (["--sampling", "frist"], ("frist", "first")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_flags_that_do_not_fit(args, fragments, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--steps", "2", "--quiet", *args, "--out", str(out)]) == 2
    text = capsys.readouterr().err
    assert all(fragment in text for fragment in fragments), text
    assert "Traceback" not in text and not out.exists()


def test_eval_refuses_the_same(cifar10, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *FAST, "--data", "cifar10", "--root", str(cifar10), "--labels-per-class", "1", "--out", str(run)]) == 0
    assert main(["eval", str(run), "--download", "--offline"]) == 2
    assert main(["eval", str(run), "--data", "cifar100", "--root", str(tmp_path)]) == 4
    assert "cifar-100-python" in capsys.readouterr().err
    fake_sets.svhn(tmp_path / "other", pytest.MonkeyPatch())
    assert main(["eval", str(run), "--data", "svhn", "--root", str(tmp_path / "other")]) == 3
    assert "classes that the run never saw" in capsys.readouterr().err


def test_offline_reaches_the_hubs_clients(monkeypatch, tmp_path):
    from fastssl.commands.places import OFFLINE

    for name in OFFLINE:
        monkeypatch.setenv(name, "0")
    assert main(["train", "--steps", "1", "--offline", "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert [os.environ[name] for name in OFFLINE] == ["1"] * 3


def test_the_first_of_each_class_for_every_seed(cifar10, tmp_path):
    """FineSSL's split through the command line, and in the file that a run keeps."""
    files = []
    for seed in ("0", "1"):
        run = tmp_path / seed
        given = ["--data", "cifar10", "--root", str(cifar10), "--labels-per-class", "2", "--sampling", "first", "--seed", seed]
        assert main(["train", *FAST, *given, "--out", str(run)]) == 0
        files.append((run / "split.csv").read_text())
    assert files[0] == files[1]
    labelled = [line for line in files[0].splitlines() if ",labelled," in line]
    assert len(labelled) == 20 and max(int(line.split(",")[0].rsplit("/", 1)[1]) for line in labelled) < 20
