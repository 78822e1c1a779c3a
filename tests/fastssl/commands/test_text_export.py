"""`fastssl export` of a run on texts: files that transformers loads strictly, and our own layout where it cannot."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fastssl.cli import main
from fastssl.models import exported
from tests.fastssl.text_runs import fails, rows_of, trained


def predicted(run, texts, out):
    assert main(["predict", str(run), str(texts.files.test), "--out", str(out), "--overwrite"]) == 0
    rows = rows_of(out)
    return torch.tensor([[float(row[name]) for name in list(row)[3:]] for row in rows])


@pytest.mark.parametrize("tune", ["full", "lora", "last_k"])
def test_transformers_loads_the_files_and_says_the_same(tmp_path, capsys, monkeypatch, texts, tune):
    run = trained(tmp_path / "run", texts, "--method", "supervised", "--tune", tune, "--steps", "4", "--ema", "0")
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--out", "net.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "as transformers names its weights" in said and "two random texts" in said
    about = json.loads((tmp_path / "net.json").read_text())
    assert about["input"]["tokenizer"] == str(texts.encoder) and about["largest_difference"] < 1e-4 and about["kept"] == []
    scope = {"texts": [row["text"] for row in rows_of(texts.files.test)]}
    with torch.no_grad():
        exec("\n".join(about["python"]), scope)
    assert torch.allclose(scope["logits"].softmax(1), predicted(run, texts, tmp_path / "p.csv"), atol=1e-4)


def test_the_file_is_taken_as_weights(tmp_path, texts, run):
    out = tmp_path / "net.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    again = trained(tmp_path / "again", texts, "--method", "supervised", "--weights", str(out), "--steps", "1", "--lr", "1e-9")
    assert main(["export", str(again), "--out", str(tmp_path / "b.safetensors"), "--network", "raw"]) == 0
    one, other = load_file(out), load_file(tmp_path / "b.safetensors")
    assert one.keys() == other.keys() and all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)


def test_prompts_are_kept_in_our_own_layout(tmp_path, capsys, texts):
    run = trained(tmp_path / "run", texts, "--method", "supervised", "--tune", "vpt_deep", "--set", "model.prompts=2", "--steps", "4")
    out = tmp_path / "net.safetensors"
    fails(capsys, ["export", run, "--out", out, "--merged"], 2, "--merged", "cannot be folded")
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert "kept" in capsys.readouterr().err
    network, about = exported.load(out)
    from fastssl.commands.train import saved_config
    from fastssl.engine.inference import load_trained

    judged, ids = load_trained(run, saved_config(run)).network, torch.randint(5, 60, (3, 9))
    with torch.no_grad():
        assert torch.equal(network(ids).logits, judged(ids).logits) and about["layout"] == "fastssl"
