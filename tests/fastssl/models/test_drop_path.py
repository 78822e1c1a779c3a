"""model.drop_path: branches of timm's networks dropped at random, in training alone, and again the same after a resume."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm", reason="timm comes with pip install 'fastssl[vision]'")
pytest.importorskip("open_clip", reason="open_clip comes with pip install 'fastssl[vision]'")

from fastssl import models, presets
from fastssl.cli import main
from fastssl.config import ModelConfig
from fastssl.engine import checkpoint
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.models.test_open_clip import architectures  # noqa: F401 - a fixture

VIT = {"name": "timm:test_vit", "weights": "random", "img_size": 32, "patch_size": 8}


def build(**options):
    torch.manual_seed(5)
    return models.build(ModelConfig(**{**VIT, **options}), ("a", "b"), size=32)


def rates(network):
    return [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]


def test_rates_rise_from_block_to_block_to_the_one_that_is_asked_for():
    depth = len(build().encoder.model.blocks)
    found = rates(build(drop_path=0.3))
    assert found == pytest.approx([0.3 * i / (depth - 1) for i in range(1, depth) for _ in range(2)])
    assert rates(build()) == []


def test_branches_are_dropped_in_training_alone():
    plain, network = build().eval(), build(drop_path=0.5).eval()
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        expected = plain(x).features
        assert torch.equal(network(x).features, expected)
        network.train()
        first, second = network(x).features, network(x).features
        assert not torch.equal(first, second) and not torch.equal(first, expected)
        # Whole branches of whole images: the first image is kept or dropped without a look at the others.
        torch.manual_seed(0)
        network(x)
        drawn = torch.get_rng_state()
        torch.manual_seed(0)
        network(torch.zeros_like(x))
        assert torch.equal(torch.get_rng_state(), drawn), "what is drawn does not depend on the images"
    frozen = build(drop_path=0.5, tune="linear").train()
    assert torch.equal(frozen(x).features, frozen(x).features), "an encoder that is held still is not disturbed"


def test_tuned_blocks_drop_the_same_branches():
    """LoRA starts at nothing: with the same draws the tuned network is the plain one."""
    x, out = torch.randn(8, 3, 32, 32), []
    for how in ("full", "lora"):
        network = build(drop_path=0.5, tune=how).train()
        torch.manual_seed(1)
        out.append(network(x).features.detach())
    assert (out[0] - out[1]).abs().max() < 1e-5
    torch.manual_seed(2)
    assert (network(x).features - out[1]).abs().max() > 1e-3


def test_trunks_of_timm_in_open_clip_drop_paths_too():
    network = models.build(ModelConfig(name="open_clip:tiny-timm", weights="random", drop_path=0.2), ("a", "b"))
    assert max(rates(network)) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["glyph_clip", "wrn-28-2", "open_clip:tiny-plain", "timm:vgg11", "torch.nn:Identity"])
def test_networks_without_it_refuse_it(name):
    with pytest.raises(ConfigError, match="model.drop_path") as caught:
        models.describe(ModelConfig(name=name, weights="random", drop_path=0.1))
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["-0.1", "1", "1.5", "nan", "much"])
def test_a_share_out_of_range_is_exit_2(value, capsys):
    assert main(["train", "--model", "timm:test_vit", "--set", f"model.drop_path={value}", "--dry-run"]) == 2
    assert "model.drop_path" in capsys.readouterr().err


def test_usbs_settings_have_its_share():
    """semilearn/nets/vit/vit.py: vit_small_patch2_32 and vit_base_patch16_96 are built with 0.2."""
    usb = [preset.values() for name, preset in presets.PRESETS.items() if name.startswith("usb_") and "model.drop_path" in preset.values()]
    assert len(usb) == 6 and all(values["model.drop_path"] == 0.2 for values in usb)


ARGS = [
    "--method",
    "fixmatch",
    "--model",
    "timm:test_vit",
    "--weights",
    "random",
    "--set",
    "model.img_size=32",
    "--set",
    "model.patch_size=8",
]
ARGS += ["--labels-per-class", "2", "--batch-size", "8", "--ratio", "1", "--steps", "4", "--ema", "0.5", "--quiet"]
ARGS += ["--set", "method.threshold=0.1"]


def train(folder, *more, rate="0.5"):
    torch.manual_seed(0)
    assert main(["train", *ARGS, "--set", f"model.drop_path={rate}", "--out", str(folder), *more]) == 0
    return folder


def method_of(folder):
    return checkpoint.newest(folder / "checkpoints")[0]["method"]


def test_a_resumed_run_drops_what_an_unbroken_one_drops(tmp_path):
    whole = method_of(train(tmp_path / "whole"))
    broken = train(tmp_path / "broken", "--set", "train.stop_at=2")
    torch.rand(7)  # another process would stand elsewhere
    assert main(["train", "--resume", str(broken), "--quiet"]) == 0
    resumed = method_of(broken)
    assert whole.keys() == resumed.keys() and all(torch.equal(value, resumed[key]) for key, value in whole.items())
    without = method_of(train(tmp_path / "without", rate="0"))
    assert not torch.equal(without["network.head.weight"], whole["network.head.weight"])
