"""timm:NAME: features, checkpoints that timm itself saved, the hub's cache, sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm", reason="timm comes with pip install 'fastssl[vision]'")
import timm
from safetensors.torch import save_file

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.models import Report, hub
from fastssl.pipelines.errors import ConfigError, SetupError

NAMES = ("timm:vit_tiny_patch16_224", "timm:resnet18", "timm:convnext_atto", "timm:mobilenetv3_small_050")


def random_model(name, **options):
    """timm's own network with its classifier and random weights, batch statistics off their start, in evaluation mode."""
    torch.manual_seed(3)
    model = timm.create_model(name.removeprefix("timm:"), **options).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))
    return model


def save(model, path, prefix=""):
    save_file({prefix + key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return str(path)


def ours(name, weights, report=None, **options):
    return models.build(ModelConfig(name=name, weights=weights, **options), ("a", "b"), report=report).encoder.eval()


def features(model, x):
    """timm's own pooled features: those that its classifier reads."""
    return model.forward_head(model.forward_features(x), pre_logits=True)


@pytest.mark.parametrize(("name", "prefix"), [*((name, "") for name in NAMES), (NAMES[1], "module."), (NAMES[1], "encoder.model.")])
@torch.no_grad()
def test_a_checkpoint_that_timm_saved_gives_timms_features(tmp_path, name, prefix):
    theirs, report = random_model(name), Report()
    encoder = ours(name, save(theirs, tmp_path / "w.safetensors", prefix), report)
    x = torch.randn(1, 3, 224, 224) if "vit" in name else torch.randn(2, 3, 64, 64)
    assert (encoder(x) - features(theirs, x)).abs().max() <= 1e-6
    assert not report.warnings and len(report.notes) == 1
    count = len([key for key in encoder.model.state_dict() if not key.endswith("num_batches_tracked")])
    assert f"{count} of the {count} tensors" in report.notes[0]


@torch.no_grad()
def test_positions_and_patches_of_another_size_are_resampled_as_timm_does(tmp_path):
    name, report = "timm:vit_tiny_patch16_224", Report()
    file = save(random_model(name), tmp_path / "w.safetensors")
    small = {"img_size": 32, "patch_size": 4}
    encoder = ours(name, file, report, **small)
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay={"file": file}, **small).eval()
    x = torch.randn(2, 3, 32, 32)
    assert (encoder(x) - features(theirs, x)).abs().max() <= 1e-6
    assert "pos_embed" in report.notes[0] and "patch_embed.proj.weight" in report.notes[0] and not report.warnings


@torch.no_grad()
def test_an_image_tower_of_open_clip_loads_into_the_trunk_that_timm_calls_by_the_same_name(tmp_path):
    theirs = random_model("vit_tiny_patch16_224", num_classes=0)
    encoder = ours("timm:vit_tiny_patch16_224", save(theirs, tmp_path / "w.safetensors", "visual.trunk."))
    x = torch.randn(1, 3, 224, 224)
    assert (encoder(x) - theirs(x)).abs().max() <= 1e-6


def cached(tmp_path, monkeypatch, repository, file, name="model.safetensors"):
    """Puts a file where huggingface_hub would have fetched it."""
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "snapshots" / revision / name).symlink_to(file)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@torch.no_grad()
def test_weights_by_tag_come_from_the_hubs_cache(tmp_path, monkeypatch):
    theirs, report = random_model("resnet18"), Report()
    cached(tmp_path, monkeypatch, "timm/resnet18.a2_in1k", save(theirs, tmp_path / "w.safetensors"))
    encoder = ours("timm:resnet18.a2_in1k", None, report)
    x = torch.randn(2, 3, 64, 64)
    assert (encoder(x) - features(theirs, x)).abs().max() <= 1e-6
    assert report.notes == ["weights: timm/resnet18.a2_in1k, revision 01234567"]
    with pytest.raises(SetupError, match="resnet18.a1_in1k"):
        ours("timm:resnet18", None)  # the default tag is another one


def test_the_hubs_weights_that_do_not_fit_are_one_sentence(tmp_path, monkeypatch):
    theirs = random_model("resnet18")
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3)
    cached(tmp_path, monkeypatch, "timm/resnet18.a2_in1k", save(theirs, tmp_path / "w.safetensors"))
    with pytest.raises(SetupError, match="do not fit timm:resnet18.a2_in1k") as caught:
        ours("timm:resnet18.a2_in1k", None)
    assert "\n" not in str(caught.value)


def test_offline_names_the_file_and_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError) as caught:
        ours("timm:resnet18", None)
    for fragment in ("model.safetensors", "timm/resnet18.a1_in1k", str(tmp_path), "offline", "--weights"):
        assert fragment in str(caught.value)


def test_a_fetch_that_fails_is_one_sentence(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def absent(repository, name, local_files_only=False, **options):
        raise LocalEntryNotFoundError("no answer\nfrom the hub") if local_files_only else next(errors)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    wanted = ("no answer", "connection reset", "has no model.safetensors")
    errors = iter([LocalEntryNotFoundError("no answer\nfrom the hub"), OSError("connection reset"), EntryNotFoundError("404")])
    for sentence in wanted:
        with pytest.raises(SetupError) as caught:
            hub.fetch("timm/resnet18.a1_in1k", ("model.safetensors",), "timm:resnet18")
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_the_input_is_the_tags_own():
    spec = models.describe(ModelConfig(name="timm:vit_tiny_patch16_224"))
    assert spec[:4] == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    tv = models.describe(ModelConfig(name="timm:resnet18.tv_in1k"))
    assert tv.interpolation == "bilinear" and tv.mean == pytest.approx((0.485, 0.456, 0.406))
    assert models.describe(ModelConfig(name="timm:resnet18"), 40).size == 40
    assert models.describe(ModelConfig(name="timm:vit_tiny_patch16_224", img_size=32, patch_size=2)).size == 32


def test_describing_draws_nothing_and_makes_no_weights():
    before = torch.get_rng_state()
    models.describe(ModelConfig(name="timm:vit_giant_patch14_224"))  # a billion weights: seconds and 4 GB, were they made
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("config", "size", "fragments"),
    [
        ({"name": "timm:resnett18"}, None, ("unknown model 'timm:resnett18'", "timm:resnet18")),
        ({"name": "timm:zzzzzz"}, None, ("timm.list_models()",)),
        ({"name": "timm:resnet18.bogus"}, None, ("'bogus'", "a1_in1k")),
        ({"name": "timm:resnet18", "img_size": 32}, None, ("model.img_size", "data.size")),
        ({"name": "timm:resnet18", "patch_size": 2}, None, ("model.patch_size",)),
        ({"name": "timm:vit_tiny_patch16_224"}, 64, ("64 pixels", "model.img_size=64")),
        ({"name": "timm:vit_tiny_patch16_224", "img_size": 32}, 64, ("64 pixels", "data.size")),
        ({"name": "timm:convnext_atto"}, 8, ("8 pixels", "another size")),
        ({"name": "timm:gemma4_vit_167m_enc"}, None, ("[2, d]", "[2, 256, 768]")),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_sentence(config, size, fragments):
    with pytest.raises(ConfigError) as caught:
        models.describe(ModelConfig(weights="random", **config), size)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_class_prompts_need_a_text_tower():
    with pytest.raises(ConfigError, match="text tower, and timm:resnet18 has none"):
        ours("timm:resnet18", "random", head_init="text")


def test_a_network_without_weights_on_the_hub_says_so():
    with pytest.raises(SetupError, match="no safetensors weights for timm:botnet50ts_256"):
        ours("timm:botnet50ts_256", None)


def test_what_a_checkpoint_holds_is_not_asked_for_again(tmp_path):
    """A finished run is judged, and a stopped one goes on, without the file and without the hub."""
    from fastssl import methods
    from fastssl.config import resolve
    from fastssl.engine.assemble import assemble
    from fastssl.engine.inference import load_trained
    from fastssl.engine.run import Run

    file = save(random_model("mobilenetv3_small_050"), tmp_path / "w.safetensors")
    layer = {"model.name": "timm:mobilenetv3_small_050", "model.weights": file, "data.size": 32, "data.labels_per_class": 1}
    layer |= {"train.device": "cpu", "train.steps": 1, "train.batch_size": 4}
    config = resolve("supervised", methods.find("supervised").Config, [("test", layer)])
    parts = assemble(config)
    assert any("tensors of timm:mobilenetv3_small_050" in note for note in parts.notes)
    Run(parts, tmp_path / "run", quiet=True).train()
    (tmp_path / "w.safetensors").unlink()
    trained = load_trained(tmp_path / "run", config)
    for key, value in parts.method.network.state_dict().items():
        assert torch.equal(trained.networks["raw"].state_dict()[key], value), key
    with pytest.raises(SetupError, match="no such file"):
        assemble(config)
    for weights in (file, None):
        model = {"model.weights": weights}
        again = assemble(resolve("supervised", methods.find("supervised").Config, [("test", layer | model)]), restored=True)
        assert again.config.model.weights == weights
