"""Every bad input ends in one sentence, the right exit code, and no run directory."""

import json

import pytest

from fastssl.cli import main


def fails(capsys, tmp_path, args, code, *fragments):
    out = tmp_path / "made"
    assert main(["train", "--quiet", "--steps", "2", *args, "--out", str(out)]) == code
    text = capsys.readouterr().err
    assert text.startswith("fastssl: ") and "Traceback" not in text
    for fragment in fragments:
        assert fragment in text, text
    assert not out.exists(), "no run directory may be left"
    return text


@pytest.mark.parametrize(
    ("args", "code", "fragments"),
    [
        (["--method", "finesll"], 2, ("unknown method 'finesll'", "finessl")),
        (["--method", "fixmatch", "--model", "wrn-28-0"], 2, ("unknown model 'wrn-28-0'", "wrn-28-2")),
        (["--data", "digit"], 2, ("digit", "digits")),
        (["--set", "train.stepps=3"], 2, ("train.stepps", "train.steps")),
        (["--set", "steps=3"], 2, ("--set takes section.option=value",)),
        (["--method", "fixmatch", "--set", "method.margin_scale=3"], 2, ("fixmatch has no such option", "method.margin_scale", "mixup")),
        (
            ["--method", "vat", "--set", "method.xii=3"],
            2,
            ("did you mean method.xi or", "It has ctaugment", "epsilon, lambda_u", "power_iterations"),
        ),
        (["--method", "finessl", "--set", "method.margin_scal=3"], 2, ("method.margin_scale",)),
        (["--lr", "fast"], 2, ("train.lr", "a number", "'fast'")),
        (["--steps", "1.5"], 2, ("train.steps", "a whole number")),
        (["--amp", "bf61"], 2, ("bf61", "bf16")),
        (["--amp", "fp16", "--device", "cpu"], 4, ("fp16", "CUDA", "bf16")),
        (["--device", "cuda:77"], 4, ("cuda:77",)),
        (["--device", "gpu"], 2, ("--device", "gpu")),
        (["--labels-per-class", "1000"], 3, ("1000",)),
        (["--labels-total", "5"], 2, ("5", "10")),
        (["--labels-per-class", "2", "--labels-total", "20"], 2, ()),
        (["--label-fraction", "1.5"], 2, ("1.5",)),
        (["--model", "wrn-28-2", "--tune", "vpt_deep"], 2, ("vpt_deep", "wrn-28-2")),
        (["--model", "wrn-28-2", "--set", "model.head_init=text"], 2, ("text tower", "wrn-28-2")),
        (["--weights", "nowhere.safetensors"], 4, ("nowhere.safetensors",)),
        (["--set", "data.size=64"], 2, ("32", "64")),
        (["--policy", "fixmach"], 2, ("fixmach", "fixmatch")),
        (["--stepz", "3"], 2, ("--stepz", "--steps")),
        (["--lr", "1", "--set", "train.lr=2"], 2, ("given twice",)),
        (["--config", "nowhere.yaml"], 2, ("nowhere.yaml",)),
        (["--batch-size", "0"], 2, ("batch_size", "at least 1")),
        (["--steps", "0"], 2, ("train.steps", "at least 1")),
        (["--dry-run", "--profile"], 2, ("--dry-run writes nothing", "--profile")),
        (["--lr", "nan"], 2, ("train.lr", "nan")),
        (["--ema", "1.5"], 2, ("train.ema", "at most 1")),
        (["--set", "train.keep=-1"], 2, ("train.keep",)),
        (["--set", "train.report_every=0"], 2, ("train.report_every",)),
        (["--set", "method.smoothing=1.5"], 2, ("method.smoothing", "at most 1")),
        (["--set", "train.lr=1", "--set", "train.lr=2"], 2, ("given twice",)),
        (["--seed", "99999999999999999999"], 2, ("train.seed",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_sentence_and_the_right_code(capsys, tmp_path, args, code, fragments):
    fails(capsys, tmp_path, args, code, *fragments)


def test_losses_that_cannot_serve_are_refused_before_a_run_is_made(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTSSL_KERNELS", "triton")
    fails(capsys, tmp_path, [], 4, "FASTSSL_KERNELS=triton")


def test_several_processes_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(capsys, tmp_path, [], 2, "one process")


def test_out_of_memory_is_exit_7(capsys, tmp_path):
    assert main(["train", "--batch-size", "1000000000000", "--steps", "2", "--quiet", "--out", str(tmp_path / "run")]) == 7
    assert "out of memory" in capsys.readouterr().err


def test_a_flag_goes_over_the_files_way_of_choosing_labels(capsys, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data: {labels_per_class: 2}\n")
    assert main(["train", "--dry-run", "--json", "--config", str(file), "--labels-total", "30"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["labelled"] == 30 and shown["config"]["data"]["labels_per_class"] is None


def test_a_labels_csv_of_the_file_stays_when_a_flag_chooses_among_it(tmp_path):
    from fastssl.cli import parser
    from fastssl.commands.train import configure

    file = tmp_path / "c.yaml"
    file.write_text("data: {name: photos, labels: labels.csv}\n")
    config = configure(parser().parse_args(["train", "--config", str(file), "--labels-per-class", "2"]))
    assert config.data.labels.endswith("labels.csv") and config.data.labels_per_class == 2
    config = configure(parser().parse_args(["train", "--data", "digits", "--labels", "labels.csv"]))
    assert config.data.labels_per_class is None


def test_runs_without_a_name_get_one_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", "--method", "supervised", "--steps", "1", "--quiet"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["supervised-digits-1", "supervised-digits-2"]


def test_overwrite_replaces_runs_alone(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("mine")
    assert main(["train", "--steps", "1", "--overwrite", "--out", str(photos)]) == 2
    assert "no run of fastssl" in capsys.readouterr().err and (photos / "a.jpg").exists()


def test_missing_split_file(capsys, tmp_path):
    fails(capsys, tmp_path, ["--split", str(tmp_path / "nowhere.csv")], 3, "nowhere.csv")


def test_a_run_that_exists_is_kept(capsys, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert main(["train", "--steps", "2", "--out", str(out)]) == 2
    assert "exists" in (text := capsys.readouterr().err) and "--overwrite" in text
    assert (out / "mine.txt").read_text() == "keep" and len(list(out.iterdir())) == 1


def test_resume_without_a_run(capsys, tmp_path):
    assert main(["train", "--resume", str(tmp_path)]) == 6
    assert "config.yaml" in capsys.readouterr().err


def test_unknown_command(capsys):
    assert main(["trian"]) == 2
    assert "train" in capsys.readouterr().err


def test_an_unsafe_yaml_is_not_run(capsys, tmp_path):
    bomb = tmp_path / "bomb.yaml"
    bomb.write_text(f"train: !!python/object/apply:os.mkdir ['{tmp_path}/bombed']\n")
    fails(capsys, tmp_path, ["--config", str(bomb)], 2, "bomb.yaml")
    assert not (tmp_path / "bombed").exists()


def test_unexpected_errors_leave_a_traceback_in_a_file(capsys, monkeypatch):
    import fastssl.commands.methods as command

    def broken(args):
        raise RuntimeError("inside")

    monkeypatch.setattr(command, "run", broken)
    assert main(["methods"]) == 1
    text = capsys.readouterr().err
    path = text.rsplit(" ", 1)[1].strip()
    assert "inside" in text and "Traceback" in open(path).read()


def test_dry_run_writes_nothing(capsys, tmp_path):
    out = tmp_path / "run"
    assert main(["train", "--method", "finessl", "--dry-run", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "margin_scale: 8.0" in text and "40 labelled" in text and not out.exists()
