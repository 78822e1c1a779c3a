"""`fastssl presets`, `--preset` among the layers, and `--dry-run` with its estimate."""

import json

import pytest
import yaml

from fastssl import methods, presets
from fastssl.cli import main, parser
from fastssl.commands.train import configure
from tests.pipelines import fake_sets


def configured(*args):
    return configure(parser().parse_args(["train", *args]))


def test_the_table_lists_each_with_its_number_and_source(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["name", "method", "data", "model"]
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(presets.PRESETS)]}
    assert set(rows) == set(presets.PRESETS)
    assert rows["finessl_cifar100_n4"].endswith("4 a class    80.44") and rows["fixmatch_cifar10_40"].endswith("86.19 +- 3.37")
    assert "img_size=32 patch_size=2" in rows["usb_cifar100_200"]
    sources = [line.split(":")[0] for line in lines[2 + len(presets.PRESETS) :]]
    assert sources[:3] == ["finessl_*", "fixmatch_*", "usb_*"] and sources.count("freematch_*") == 2, (
        "a line for each table that numbers are of"
    )


def test_the_table_as_json(capsys):
    assert main(["presets", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(entries) == set(presets.PRESETS)
    entry = entries["fixmatch_svhn_250"]
    assert entry["published"] == {"fixmatch": {"accuracy": 97.52, "deviation": 0.38}} and "2001.07685" in entry["source"]
    assert (entry["data"], entry["model"], entry["labels"], entry["method"]) == ("svhn", "wrn-28-2", "250", "fixmatch")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_show_prints_is_a_configuration(name, capsys, tmp_path):
    assert main(["presets", "show", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"# {name}: ") and "# published accuracy of " in text
    file = tmp_path / "shown.yaml"
    file.write_text(text)
    ours, theirs = configured("--config", str(file)), configured("--preset", name)
    values = presets.find(name).values()
    flat = {f"{section}.{key}": value for section, body in ours.nested().items() for key, value in body.items()}
    assert {key: flat[key] for key in values} == values
    assert theirs.nested()["train"]["steps"] == values["train.steps"]
    assert main(["presets", "show", name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["values"] == values and shown["notes"] and shown["name"] == name


def test_methods_that_are_not_built_are_not_quoted(capsys, monkeypatch):
    assert main(["presets", "show", "usb_cifar100_200"]) == 0
    assert "of simmatch: 76.22 +- 1.08 %" in capsys.readouterr().out
    monkeypatch.delitem(methods.METHODS, "simmatch")
    assert main(["presets", "show", "usb_cifar100_200"]) == 0
    text = capsys.readouterr().out
    assert "of fixmatch: 70.40 +- 0.90 %" in text and "of supervised: 64.12" in text and "simmatch" not in text


def test_layers_go_over_the_preset(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("train: {lr: 0.5, steps: 7}\n")
    config = configured("--preset", "fixmatch_cifar10_40", "--config", str(file), "--steps", "9")
    assert (config.train.lr, config.train.steps, config.train.ema) == (0.5, 9, 0.999)
    assert config.origins["train.ema"] == "preset fixmatch_cifar10_40" and config.origins["train.lr"] == str(file)
    assert config.data.labels_total == 40 and config.data.name == "cifar10"


def test_nothing_of_the_plain_command_is_left_in_a_preset():
    config = configured("--preset", "finessl_cifar10_n4", "--model", "glyph_clip", "--data", "digits")
    assert config.model.prompts == 50 and config.train.steps == 15_000 and config.model.head_init == "random"


def test_a_way_of_choosing_labels_goes_over_the_presets():
    config = configured("--preset", "fixmatch_cifar10_40", "--labels-per-class", "25")
    assert config.data.labels_per_class == 25 and config.data.labels_total is None


def test_another_method_keeps_the_setting():
    config = configured("--preset", "usb_cifar100_400", "--method", "supervised")
    assert config.method_name == "supervised" and config.data.labels_total == 400 and config.train.layer_decay == 0.5


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["train", "--preset", "finessl_cifar100_n3"], ("unknown preset", "finessl_cifar100_n4")),
        (["presets", "show", "usb_cifar100_20"], ("unknown preset", "usb_cifar100_200")),
        (["presets", "show"], ("show NAME",)),
        (["presets", "list"], ("show NAME",)),
    ],
)
def test_bad_names(args, fragments, capsys):
    assert main(args) == 2
    text = capsys.readouterr().err
    assert all(fragment in text for fragment in fragments), text


def test_the_published_batch_is_kept_where_labels_are_fewer(tmp_path, monkeypatch, capsys):
    """40 labels and a batch of 64: rows repeat with fresh views, as in the paper. A plain command's batch shrinks."""
    pytest.importorskip("torchvision", reason="torchvision comes with the vision extra: pip install '.[vision]'")
    fake_sets.cifar10(tmp_path, monkeypatch)
    given = [
        "--preset",
        "fixmatch_cifar10_40",
        "--root",
        str(tmp_path),
        "--ratio",
        "1",
        "--set",
        "data.size=8",
        "--dry-run",
        "--json",
        "--quiet",
    ]
    assert main(["train", *given]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["labelled"] == 40 and shown["config"]["train"]["batch_size"] == 64 and shown["config"]["train"]["steps"] == 2**20


def test_dry_run_says_what_a_run_would_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--method", "supervised", "--steps", "1000", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.err == "measuring 5 steps after 3 others\n"
    assert not list(tmp_path.iterdir()), "nothing is written"
    (tmp_path / "again.yaml").write_text(said.out)
    comments = [line for line in said.out.splitlines() if line.startswith("# ")]
    assert "# 40 labelled, 1347 unlabelled, 450 test images" in comments
    assert sum(line.startswith("# estimate: ") for line in comments) == 2
    assert any("for 1,000 steps, evaluation and saving left out (median of 5 measured steps" in line for line in comments)
    assert main(["train", "--config", "again.yaml", "--dry-run", "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    shown = json.loads(said.out)
    assert shown["config"] == yaml.safe_load((tmp_path / "again.yaml").read_text()) and said.err == ""
    estimate = shown["estimate"]
    assert estimate["seconds"] == pytest.approx(1000 * estimate["seconds_per_step"]) and estimate["steps_measured"] == 5
    assert shown["trained_weights"] > 0 and shown["classes"] == 10 and estimate["memory_bytes"] > 50e6


def test_dry_run_finds_what_does_not_fit(capsys):
    assert main(["train", "--batch-size", "1000000000000", "--steps", "2", "--dry-run"]) == 7
    assert "out of memory" in capsys.readouterr().err


def test_dry_run_with_bad_input(capsys):
    assert main(["train", "--data", "nowhere", "--dry-run"]) == 2
    assert main(["train", "--labels-per-class", "1000", "--dry-run"]) == 3
