"""FGSM of a finished network: signs against autograd's, steps of exactly epsilon, and `fastssl eval --fgsm` on a trained run."""

import json

import numpy as np
import pytest
import torch

from fastssl.cli import main
from fastssl.commands.train import saved_config
from fastssl.engine import robustness
from fastssl.engine.inference import load_trained, logits_at, logits_for
from fastssl.pipelines import sources
from fastssl.pipelines.errors import ConfigError

NET = ["--model", "wrn-10-1", "--set", "data.size=8", "--set", "model.batchnorm_momentum=0.1", "--ema", "0.9", "--quiet"]
LONG = ["--labels-per-class", "4", "--batch-size", "20", "--steps", "60", "--lr", "0.1", "--set", "train.eval_every=60"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("fgsm") / "run"
    assert main(["train", "--method", "supervised", *NET, *LONG, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def images(run):
    """(the run's networks, 100 images as pixels, their labels)"""
    trained, digits = load_trained(run, saved_config(run)), sources.load("digits", size=8)
    return trained, torch.from_numpy(digits.images[:100]).float().div(255), torch.from_numpy(digits.label[:100]).long()


def test_directions_are_autograds_and_in_evaluation_mode(images):
    trained, pixels, label = images
    network = trained.networks["raw"]
    assert not network.training
    before = {key: value.clone() for key, value in network.state_dict().items()}
    signs = robustness.direction(network, pixels, label, trained)
    at = pixels.clone().requires_grad_()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (trained.mean, trained.std))
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(network((at - mean) / std).logits, label, reduction="sum"), at)
    assert (signs == expected.sign()).float().mean() > 0.999 and set(signs.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_a_step_is_epsilon_in_each_pixel_away_from_the_borders(images):
    trained, pixels, label = images
    signs = robustness.direction(trained.network, pixels, label, trained)
    new = robustness.moved(pixels, signs, 0.03)
    assert new.min() >= 0 and new.max() <= 1
    inner = (pixels >= 0.03) & (pixels <= 0.97) & (signs != 0)
    assert inner.float().mean() > 0.2
    np.testing.assert_allclose((new - pixels)[inner].abs(), 0.03, atol=1e-7)
    assert ((new - pixels).abs() <= 0.03 + 1e-7).all()
    assert torch.equal(robustness.moved(pixels, signs, 0.0), pixels)


def test_logits_of_pixels_are_those_of_images(images):
    trained, pixels, _ = images
    whole = logits_for(trained.network, pixels.mul(255).round().byte().numpy(), trained, "off")
    assert torch.equal(whole, logits_at(trained.network, pixels, trained, "off")) and whole.shape == (100, 10)
    assert logits_for(trained.network, np.zeros((0, 3, 8, 8), np.uint8), trained, "off").shape == (0, 10)


def test_images_without_gradient_are_counted(images):
    trained, pixels, label = images
    network = trained.networks["raw"]
    kept = network.head.weight.detach().clone()
    with torch.no_grad():
        network.head.weight.zero_()
    _, still = robustness.attacked(network, pixels, label, trained, "off", (0.1,))
    with torch.no_grad():
        network.head.weight.copy_(kept)
    assert still == 100 and robustness.attacked(network, pixels, label, trained, "off", (0.1,))[1] == 0


def evaluated(capsys, run, *flags):
    capsys.readouterr()
    assert main(["eval", str(run), *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_accuracy_falls_as_the_steps_grow(run, capsys):
    """Measured: 0.864, 0.778 and 0.204 (averaged network), 0.849, 0.749 and 0.167 (raw)."""
    found = evaluated(capsys, run, "--fgsm", "0,0.02,0.1")
    plain = evaluated(capsys, run)
    assert "fgsm" not in plain and plain["accuracy"] == found["accuracy"]
    rows = found["fgsm"]
    assert [row["epsilon"] for row in rows] == [0, 0.02, 0.1]
    assert rows[0]["accuracy"] == found["accuracy"] == rows[1]["clean_accuracy"] and rows[0]["raw"] == found["raw"]["accuracy"]
    for name in ("accuracy", "raw", "ema"):
        assert rows[0][name] > rows[1][name] > rows[2][name], name
    assert rows[2]["accuracy"] < rows[0]["accuracy"] - 0.15 and rows[2]["unmoved"] == 0
    assert all(row["accuracy"] == row["ema"] for row in rows), "the averaged network is the judged one"


def test_the_table_has_a_line_for_each_size(run, capsys):
    capsys.readouterr()
    assert main(["eval", str(run), "--fgsm", "0.02, 0.1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "FGSM" in line]
    assert len(lines) == 2 and lines[0].startswith("accuracy under FGSM, epsilon 0.02  ") and "(clean " in lines[1]


def test_other_data_are_attacked_too(run, tmp_path, capsys):
    from PIL import Image

    digits = sources.load("digits", size=8)
    for row in range(40):
        path = tmp_path / "photos" / digits.classes[digits.label[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[row].transpose(1, 2, 0)).save(path)
    found = evaluated(capsys, run, "--data", str(tmp_path / "photos"), "--fgsm", "0,0.2")
    assert found["rows"] == 40 and found["fgsm"][0]["accuracy"] == found["accuracy"] > found["fgsm"][1]["accuracy"]


@pytest.mark.parametrize("text", ["much", "1.5", "-0.01", "nan", "0.1,,0.2", ""])
def test_a_size_outside_the_range_of_pixels_is_refused_in_one_sentence(run, capsys, text):
    with pytest.raises(ConfigError, match=r"--fgsm takes sizes in pixels of \[0, 1\]"):
        robustness.sizes(text)
    capsys.readouterr()
    assert main(["eval", str(run), f"--fgsm={text}"]) == 2
    told = capsys.readouterr()
    assert not told.out and len(told.err.strip().splitlines()) == 1


def test_sizes_are_read_in_their_order():
    assert robustness.sizes("0.03") == (0.03,) and robustness.sizes("0.1, 0,1") == (0.1, 0.0, 1.0)


def test_images_are_judged_by_their_own_labels_in_every_piece(run, capsys, monkeypatch):
    whole = evaluated(capsys, run, "--fgsm", "0.02")
    monkeypatch.setattr("fastssl.commands.eval.CHUNK", 100)
    pieces = evaluated(capsys, run, "--fgsm", "0.02")
    assert abs(whole["fgsm"][0]["accuracy"] - pieces["fgsm"][0]["accuracy"]) < 0.01 and whole["accuracy"] == pieces["accuracy"]
