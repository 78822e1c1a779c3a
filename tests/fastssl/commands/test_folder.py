"""A user's own folder: train, eval, predict, with the odd file among it. The images are digits saved as JPEG, so it always runs."""

import csv
import json
import os
from pathlib import Path

import pytest

from fastssl.cli import main

FAST = ["--model", "wrn-28-2", "--method", "fixmatch", "--steps", "3", "--batch-size", "8", "--ratio", "2", "--quiet"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """80 JPEGs in one folder, a labels.csv of 40 rows, and 20 test images in class folders."""
    from PIL import Image
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    seen = dict.fromkeys(range(10), 0)
    rows = []
    for image, label in zip(digits.images, digits.target, strict=True):
        seen[label] += 1
        if seen[label] > 10:
            continue
        picture = Image.fromarray((image * 255 / 16).round().astype("uint8")).resize((16, 16)).convert("RGB")
        if seen[label] > 8:
            path = root / "test" / f"is{label}" / f"{seen[label]}.jpg"
        else:
            path = root / "all" / f"{label}-{seen[label]}.jpg"
            if seen[label] <= 4:
                rows.append((path.name, f"is{label}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=95)
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return root


@pytest.fixture(scope="module")
def trained(photos):
    out = photos / "run"
    given = ["--data", str(photos / "all"), "--labels", str(photos / "labels.csv"), "--test", str(photos / "test")]
    assert main(["train", *FAST, *given, "--out", str(out)]) == 0
    return out


def test_folder_with_labels_csv_trains(trained):
    result = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert result["labels"] == 40 and result["accuracy"] is not None and result["ema"]["rows"] == 20
    assert result["model"] == "wrn-28-2" and result["steps"] == 3


def test_eval_gives_the_runs_own_number(trained, capsys):
    result = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert main(["eval", str(trained), "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["accuracy"] == result["accuracy"] and judged["ece"] == pytest.approx(result["ece"], abs=1e-6)
    assert main(["eval", str(trained)]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_eval_on_another_folder(trained, photos, capsys):
    assert main(["eval", str(trained), "--data", str(photos / "test"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 20


def test_predict_in_input_order_with_a_broken_file(trained, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    files = [photos / "all" / "9-1.jpg", broken, photos / "all" / "0-1.jpg", photos / "all" / "5-2.jpg"]
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(trained), *map(str, files), "--out", str(out)]) == 0
    assert "broken.jpg" in capsys.readouterr().err
    rows = list(csv.DictReader(out.open()))
    assert [row["path"] for row in rows] == list(map(str, files))
    assert list(rows[0])[:3] == ["path", "label", "confidence"] and list(rows[0])[3:] == [f"is{i}" for i in range(10)]
    assert rows[1]["label"] == "" and rows[1]["confidence"] == ""
    for row in rows[:1] + rows[2:]:
        shares = {name: float(row[name]) for name in list(row)[3:]}
        assert abs(sum(shares.values()) - 1) < 1e-4
        assert shares[row["label"]] == max(shares.values()) == pytest.approx(float(row["confidence"]), abs=1e-6)
    # one image alone gives the same row: no dependence on the batch around it
    assert main(["predict", str(trained), str(files[3]), "--out", str(tmp_path / "one.csv")]) == 0
    alone = next(csv.DictReader((tmp_path / "one.csv").open()))
    assert all(abs(float(alone[k]) - float(rows[3][k])) < 1e-4 for k in list(alone)[2:])


def test_predict_takes_a_folder_and_prints(trained, photos, capsys):
    assert main(["predict", str(trained), str(photos / "test")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21 and lines[0].startswith("path,label,confidence")


def test_predict_refuses_what_is_not_there(trained, tmp_path, capsys):
    out = tmp_path / "p.csv"
    assert main(["predict", str(trained), str(tmp_path / "no.jpg"), str(tmp_path / "nor.jpg"), "--out", str(out)]) == 3
    assert "no.jpg" in (text := capsys.readouterr().err) and "nor.jpg" in text and not out.exists()
    out.write_text("mine")
    assert main(["predict", str(trained), str(trained), "--out", str(out)]) == 2
    assert out.read_text() == "mine"
    assert main(["predict", str(tmp_path), str(tmp_path)]) == 6


def test_a_run_is_found_from_another_folder(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    assert main(["train", *FAST, "--data", "all", "--labels", "labels.csv", "--test", "test", "--out", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "run", "--json"]) == 0


def test_an_edited_split_is_noticed_by_eval(photos, tmp_path, capsys):
    given = ["--data", str(photos / "all"), "--labels", str(photos / "labels.csv"), "--test", str(photos / "test")]
    assert main(["train", *FAST, *given, "--out", str(tmp_path / "run")]) == 0
    split = tmp_path / "run" / "split.csv"
    split.write_text("".join(line for i, line in enumerate(split.open()) if "test" not in line or i % 2))
    assert main(["eval", str(tmp_path / "run")]) == 6
    assert "split.csv" in capsys.readouterr().err


def test_holdout_of_a_folder_without_test(photos, tmp_path, capsys):
    given = ["--data", str(photos / "all"), "--labels", str(photos / "labels.csv")]
    assert main(["train", *FAST, *given, "--holdout", "0.25", "--json", "--out", str(tmp_path / "a")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["labels"] == 30 and result["ema"]["rows"] == 10
    assert main(["train", *FAST, *given, "--json", "--out", str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert json.loads(text.splitlines()[-1])["accuracy"] is None and "--holdout" in text


def test_all_faults_of_labels_csv_at_once(photos, tmp_path, capsys):
    bad = tmp_path / "labels.csv"
    bad.write_text("path,label\n0-1.jpg,zero\nnot-there.jpg,zero\n1-1.jpg,one\n1-1.jpg,two\n../../etc/passwd,zero\n")
    out = tmp_path / "run"
    code = main(["train", *FAST, "--data", str(photos / "all"), "--labels", str(bad), "--out", str(out)])
    text = capsys.readouterr().err
    assert code == 3 and not out.exists()
    for fragment in ("labels.csv:3", "not-there.jpg", "labels.csv:5", "labels.csv:6"):
        assert fragment in text, text


def test_undecodable_images_are_quarantined_and_counted(photos, tmp_path, capsys):
    import shutil

    folder = tmp_path / "all"
    shutil.copytree(photos / "all", folder)
    (folder / "zz.jpg").write_bytes(b"")
    given = ["--data", str(folder), "--labels", str(photos / "labels.csv"), "--out", str(tmp_path / "run")]
    assert main(["train", *FAST, *given]) == 3
    assert "--max-bad" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(["train", *FAST, *given, "--max-bad", "0.05"]) == 0
    assert "zz.jpg" in (tmp_path / "run" / "quarantine.csv").read_text()


@pytest.mark.skipif("FASTSSL_DATA" not in os.environ, reason="FASTSSL_DATA names no folder with cifar10-jpeg.tar.xz")
def test_cifar_folder_trains_and_predicts(tmp_path, capsys):
    """CIFAR-10 (JPEG): 40 labels by CSV, 400 unlabelled images, WRN-28-2 at 32 pixels."""
    import tarfile

    root = tmp_path / "cifar"
    rows = [("path", "label")]
    with tarfile.open(Path(os.environ["FASTSSL_DATA"]) / "cifar10-jpeg.tar.xz") as archive:
        taken: dict[str, int] = {}
        for member in archive:
            parts = Path(member.name).parts
            if not member.isfile() or "train" not in parts or taken.get(parts[-2], 0) >= 44:
                continue
            taken[parts[-2]] = taken.get(parts[-2], 0) + 1
            target = root / f"{parts[-2]}-{parts[-1]}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(archive.extractfile(member).read())
            if taken[parts[-2]] <= 4:
                rows.append((target.name, parts[-2]))
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    given = ["--data", str(root), "--labels", str(tmp_path / "labels.csv"), "--amp", "bf16", "--out", str(tmp_path / "run")]
    assert main(["train", *FAST, *given]) == 0
    assert main(["predict", str(tmp_path / "run"), str(root), "--out", str(tmp_path / "p.csv")]) == 0
    assert sum(1 for _ in open(tmp_path / "p.csv")) == 441
