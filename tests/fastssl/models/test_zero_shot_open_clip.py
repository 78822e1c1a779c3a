"""Zero-shot classifiers of open_clip: its own numbers, its own factor, its own prompts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("open_clip", reason="open_clip comes with pip install 'fastssl[vision]'")
import open_clip

from fastssl.config import ModelConfig
from fastssl.models import Report, zero_shot
from fastssl.pipelines.errors import ConfigError, SetupError
from tests.fastssl.models.test_open_clip import architectures, images, library, save  # noqa: F401 - the fixture serves here too

CLASSES = ("sea_lion", "cat", "dog")
PROMPTS = ("a photo of a {}.", "a drawing of the {}, in ink")


def ours(name, path, asked=(), report=None):
    return zero_shot.build(ModelConfig(name=f"open_clip:{name}", weights=str(path)), CLASSES, asked, report=report)


@pytest.mark.parametrize("name", ["tiny-plain", "tiny-custom", "tiny-resnet"])
@pytest.mark.parametrize("asked", [(), PROMPTS])
@torch.no_grad()
def test_it_is_open_clips_own_zero_shot(tmp_path, name, asked):
    theirs, report = library(name), Report()
    network = ours(name, save(theirs, tmp_path / "w.safetensors"), asked, report)
    texts = [p.format(c.replace("_", " ")) for c in CLASSES for p in asked or PROMPTS[:1]]
    text = theirs.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    text = F.normalize(text.view(len(CLASSES), -1, text.shape[1]).mean(1), dim=1)
    x = images(theirs, 5)
    wanted = theirs.logit_scale.exp() * theirs.encode_image(x, normalize=True) @ text.T
    torch.testing.assert_close(network(x).logits, wanted, rtol=1e-5, atol=1e-5)
    assert not report.warnings and network(x).features.shape == (5, text.shape[1])


@torch.no_grad()
def test_the_factor_is_the_files(tmp_path):
    theirs = library("tiny-plain")
    theirs.logit_scale.fill_(1.25)
    path = save(theirs, tmp_path / "w.safetensors", prefix="module.")
    assert ours("tiny-plain", path).head.scale.item() == pytest.approx(torch.tensor(1.25).exp().item())
    del theirs.logit_scale
    report = Report()
    assert ours("tiny-plain", save(theirs, path), report=report).head.scale.item() == pytest.approx(1 / 0.07)
    assert "holds no logit_scale: confidences are those of the factor 14.29" in report.warnings[0]


def test_many_prompts_are_read_in_pieces(tmp_path, monkeypatch):
    from fastssl.models import open_clip_networks

    path = save(library("tiny-plain"), tmp_path / "w.safetensors")
    whole = ours("tiny-plain", path, PROMPTS).head.weight
    monkeypatch.setattr(open_clip_networks, "ASKED", 4)
    torch.testing.assert_close(ours("tiny-plain", path, PROMPTS).head.weight, whole)


def test_what_has_no_trained_text_tower_is_refused(tmp_path):
    path = save(library("tiny-plain").visual, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="needs a text tower, and .*w.safetensors holds none of open_clip:tiny-plain; other weights do"):
        ours("tiny-plain", path)
    with pytest.raises(ConfigError, match="learned nothing"):
        ours("tiny-plain", "random")
    with pytest.raises(ConfigError, match="does not say which weights"):
        zero_shot.build(ModelConfig(name="open_clip:tiny-plain"), CLASSES)
    with pytest.raises(SetupError, match="no such file"):
        ours("tiny-plain", tmp_path / "nowhere.safetensors")
