"""Zero-shot classifiers: exactly the libraries' own, prompts averaged, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.config import ModelConfig
from fastssl.models import Report, glyph_clip, zero_shot
from fastssl.models.names import DIGITS, prompts
from fastssl.pipelines.errors import ConfigError


@torch.no_grad()
def test_glyph_clip_is_its_own_zero_shot():
    clip, x = glyph_clip.load(), torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = zero_shot.build(ModelConfig(), tuple(DIGITS))
    torch.testing.assert_close(network(x).logits, clip.zero_shot(x, list(DIGITS)), rtol=1e-5, atol=1e-5)
    assert not network.training and network.head.scale.item() == pytest.approx(clip.logit_scale.exp().item())


@torch.no_grad()
def test_glyph_clip_takes_other_prompts():
    clip = glyph_clip.load()
    network = zero_shot.build(ModelConfig(), ("7", "B"), ("the sign {}", "a {}"))
    each = [clip.embed_prompts(prompts(name, ("the sign {}", "a {}"))).mean(0) for name in ("7", "B")]
    torch.testing.assert_close(network.head.weight, F.normalize(torch.stack(each), dim=1), rtol=1e-5, atol=1e-6)
    assert prompts("seven_up", ("the {}", "{}")) == ["the seven up", "seven up"] and prompts("7")[0] == "digit seven"


def test_prompts_that_are_cut_are_told_of():
    report = Report()
    zero_shot.build(ModelConfig(), ("sea_lion",), ("a photo that somebody took at the shore of a {}",), report=report)
    assert report.warnings == [
        "prompts that glyph_clip cuts at 48 bytes: 1 of 1, such as 'a photo that somebody took at the shore of a sea lion'"
    ]


@pytest.mark.parametrize("name", ["wrn-28-2", "wrn-10-1", "preact-resnet-18", "timm:resnet18", "torch.nn:Identity"])
def test_a_model_without_a_text_tower(name):
    with pytest.raises(
        ConfigError, match=f"needs a text tower, and {name} has none; take glyph_clip, open_clip:ARCH/TAG, or transformers:NAME for texts"
    ):
        zero_shot.check(ModelConfig(name=name))


def test_an_unknown_name_is_told_as_one():
    with pytest.raises(ConfigError, match="unknown model 'glyph_clop'; did you mean glyph_clip?"):
        zero_shot.check(ModelConfig(name="glyph_clop"))


def test_random_weights_cannot_label():
    with pytest.raises(ConfigError, match="--weights random: a text tower that has learned nothing"):
        zero_shot.build(ModelConfig(weights="random"), tuple(DIGITS))


def test_an_image_tower_alone_takes_the_packages_text_tower(tmp_path):
    from safetensors.torch import save_file

    clip = glyph_clip.load()
    save_file({key: value.clone() for key, value in clip.vision.state_dict().items()}, tmp_path / "tower.safetensors")
    network = zero_shot.build(ModelConfig(weights=str(tmp_path / "tower.safetensors")), tuple(DIGITS))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(x).logits, clip.zero_shot(x, list(DIGITS)), rtol=1e-5, atol=1e-5)
