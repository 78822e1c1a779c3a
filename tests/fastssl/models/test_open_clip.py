"""open_clip:ARCH/TAG: FineSSL's features, checkpoints that open_clip itself saved, class prompts, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("open_clip", reason="open_clip comes with pip install 'fastssl[vision]'")
import open_clip
from safetensors.torch import save_file

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.models import Report
from fastssl.models.open_clip_networks import OpenClipEncoder
from fastssl.pipelines.errors import ConfigError, SetupError
from tests.fastssl.models.test_timm import cached

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SMALL = {
    "tiny-plain": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-custom": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, "custom_text": True},
    "tiny-resnet": {"embed_dim": 16, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}, "text_cfg": TEXT},
    "tiny-timm": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
}


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory):
    """Small architectures beside open_clip's own, by its own way of adding some."""
    import json

    folder = tmp_path_factory.mktemp("configs")
    for name, config in SMALL.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in SMALL:
        open_clip.factory._MODEL_CONFIGS.pop(name)


def library(name, **options):
    """open_clip's own model, all of it, with random weights."""
    torch.manual_seed(3)
    model = open_clip.create_model(name, **options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


def save(model, path, prefix=""):
    save_file({prefix + key: value.clone().contiguous() for key, value in model.state_dict().items()}, path)
    return str(path)


def ours(name, weights, report=None, classes=("sea_lion", "cat"), **options):
    config = ModelConfig(name=f"open_clip:{name}", weights=weights, **options)
    return models.build(config, classes, report=report).eval()


def images(model, n=2):
    size = model.visual.image_size
    return torch.randn(n, 3, *(size if isinstance(size, tuple) else (size, size)))


def finessl_features(visual, x):
    """The final LayerNorm of the class token, the projection not applied, from the tower's parts alone."""
    patches = visual.conv1(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(len(x), 1, -1), patches], 1) + visual.positional_embedding
    return visual.ln_post(visual.transformer(visual.ln_pre(tokens)))[:, 0]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["tiny-plain", "tiny-custom", "tiny-resnet", "tiny-timm"])
@torch.no_grad()
def test_a_checkpoint_that_open_clip_saved_gives_open_clips_features(tmp_path, name, prefix):
    theirs, report = library(name), Report()
    encoder = ours(name, save(theirs, tmp_path / "w.safetensors", prefix), report).encoder
    x = images(theirs)
    features, joint = encoder(x), theirs.encode_image(x)
    assert features.shape == (2, encoder.num_features)
    if name.startswith(("tiny-plain", "tiny-custom")):
        assert encoder.num_features == 64
        assert (features - finessl_features(theirs.visual, x)).abs().max() <= 1e-6
        features = features @ encoder.visual.proj
    assert (features - joint).abs().max() <= 1e-6
    assert not report.warnings and f"{prefix}visual...." in report.notes[0]


@torch.no_grad()
def test_an_image_tower_saved_alone_loads(tmp_path):
    theirs = library("tiny-plain")
    encoder = ours("tiny-plain", save(theirs.visual, tmp_path / "w.safetensors")).encoder
    x = images(theirs)
    assert (encoder(x) @ encoder.visual.proj - theirs.encode_image(x)).abs().max() <= 1e-6


@torch.no_grad()
def test_positions_of_another_size_are_resampled_as_open_clip_does(tmp_path):
    report = Report()
    file = save(library("tiny-plain"), tmp_path / "w.safetensors")
    encoder = ours("tiny-plain", file, report, img_size=48).encoder
    theirs = open_clip.create_model("tiny-plain", pretrained=file, force_image_size=48).eval()
    x = torch.randn(2, 3, 48, 48)
    assert (encoder(x) @ encoder.visual.proj - theirs.encode_image(x)).abs().max() <= 1e-6
    assert "brought to this image and patch size: positional_embedding" in report.notes[0] and not report.warnings


@torch.no_grad()
def test_trunks_of_timm_take_another_size_too(tmp_path):
    file = save(library("tiny-timm"), tmp_path / "w.safetensors")
    encoder = ours("tiny-timm", file, img_size=32).encoder
    theirs = open_clip.create_model("tiny-timm", pretrained=file, force_image_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    assert (encoder(x) - theirs.encode_image(x)).abs().max() <= 1e-6
    assert models.describe(ModelConfig(name="open_clip:tiny-timm", weights="random", img_size=32)).size == 32


def test_the_projection_stays_and_never_trains():
    """No feature depends on it: it is no weight, but an exported tower still loads into open_clip."""
    encoder = OpenClipEncoder(library("tiny-plain").visual)
    assert "visual.proj" not in dict(encoder.named_parameters())
    other = open_clip.create_model("tiny-plain")
    other.visual.load_state_dict(encoder.visual.state_dict(), strict=True)
    encoder(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("name", ["tiny-plain", "tiny-custom", "tiny-resnet"])
@torch.no_grad()
def test_class_prompts_start_the_head_as_the_zero_shot_classifier(tmp_path, name):
    theirs, report = library(name), Report()
    network = ours(name, save(theirs, tmp_path / "w.safetensors"), report, head_init="text")
    x = images(theirs, 5)
    prompts = open_clip.get_tokenizer(name)(["a photo of a sea lion.", "a photo of a cat."])
    # Up to the norm of the joint features, which is one number a row: f (T P^T)^T = (f P) T^T.
    zero_shot = theirs.encode_image(x) @ theirs.encode_text(prompts, normalize=True).T
    torch.testing.assert_close(network(x).logits, zero_shot, rtol=1e-5, atol=1e-6)
    assert not report.warnings and len(report.notes) == 2


@torch.no_grad()
def test_a_cosine_head_takes_the_prompts_direction(tmp_path):
    theirs = library("tiny-plain")
    network = ours("tiny-plain", save(theirs, tmp_path / "w.safetensors"), head_init="text", head="cosine")
    text = theirs.encode_text(open_clip.get_tokenizer("tiny-plain")(["a photo of a sea lion.", "a photo of a cat."]), normalize=True)
    torch.testing.assert_close(network.head.weight, F.normalize(text @ theirs.visual.proj.T, dim=1))


def test_class_prompts_want_a_text_tower(tmp_path):
    file = save(library("tiny-plain").visual, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="needs a text tower, and .*w.safetensors holds none of open_clip:tiny-plain"):
        ours("tiny-plain", file, head_init="text")
    with pytest.raises(ConfigError, match="--weights random has none"):
        ours("tiny-plain", "random", head_init="text")


@torch.no_grad()
def test_a_tag_brings_its_weights_its_activation_and_its_constants(tmp_path, monkeypatch):
    """OpenAI's towers have QuickGELU, whatever open_clip's description of the bare architecture says."""
    small = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", small)
    theirs, report = library("ViT-B-32", force_quick_gelu=True), Report()
    repository = "timm/vit_base_patch32_clip_224.openai"
    cached(tmp_path, monkeypatch, repository, save(theirs, tmp_path / "w.safetensors"), "open_clip_model.safetensors")
    encoder = ours("ViT-B-32/openai", None, report).encoder
    x = images(theirs)
    assert (encoder(x) @ encoder.visual.proj - theirs.encode_image(x)).abs().max() <= 1e-6
    assert report.notes[0] == f"weights: {repository}, revision 01234567"
    spec = models.describe(ModelConfig(name="open_clip:ViT-B-32/openai"))
    assert spec.size == 32 and spec.mean == open_clip.OPENAI_DATASET_MEAN and spec.interpolation == "bicubic"
    assert models.describe(ModelConfig(name="open_clip:ViT-B-16-SigLIP/webli")).mean == (0.5, 0.5, 0.5)


def test_offline_names_the_tags_file_and_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError) as caught:
        ours("ViT-B-16/openai", None)
    for fragment in ("open_clip_model.safetensors", "timm/vit_base_patch16_clip_224.openai", str(tmp_path), "offline"):
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("config", "size", "fragments"),
    [
        ({"name": "open_clip:ViT-B-33"}, None, ("unknown model 'open_clip:ViT-B-33'", "open_clip:ViT-B-32")),
        ({"name": "open_clip:hf-hub:a/b"}, None, ("unknown model",)),
        ({"name": "open_clip:ViT-B-32/opena"}, None, ("'opena'", "openai")),
        ({"name": "open_clip:tiny-plain"}, 40, ("40 pixels", "model.img_size=40")),
        ({"name": "open_clip:tiny-resnet", "patch_size": 8}, None, ("model.patch_size",)),
        ({"name": "open_clip:tiny-timm", "patch_size": 8}, None, ("model.patch_size",)),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_sentence(config, size, fragments):
    with pytest.raises(ConfigError) as caught:
        models.describe(ModelConfig(weights="random", **config), size)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_an_architecture_without_a_tag_asks_for_one():
    with pytest.raises(ConfigError, match=r"open_clip:ViT-B-16/TAG \(openai"):
        ours("ViT-B-16", None)


def test_another_architectures_file_is_refused(tmp_path):
    file = save(library("tiny-resnet").visual, tmp_path / "w.safetensors")
    with pytest.raises(SetupError, match="not of open_clip:tiny-plain's image tower: 0 of its 32 tensors"):
        ours("tiny-plain", file)
    whole = save(library("tiny-resnet"), tmp_path / "whole.safetensors")  # its text tower bears the names of a vision transformer's blocks
    with pytest.raises(SetupError, match="do not fit open_clip:tiny-plain's image tower"):
        ours("tiny-plain", whole)
    wide = save(open_clip.CLIP(16, VISION | {"width": 128}, TEXT), tmp_path / "wide.safetensors")
    with pytest.raises(SetupError, match="other shapes, such as class_embedding"):
        ours("tiny-plain", wide)


def test_a_tower_of_unknown_width_is_refused():
    with pytest.raises(ValueError, match="width of a Linear's features"):
        OpenClipEncoder(torch.nn.Linear(2, 2))


def test_a_library_without_the_towers_parts_is_too_old(monkeypatch):
    monkeypatch.delattr(open_clip.transformer.VisionTransformer, "_embeds")
    with pytest.raises(SetupError, match="too old; run: pip install 'open_clip_torch>=2.32'"):
        models.describe(ModelConfig(name="open_clip:ViT-B-32", weights="random"))
