"""Exported networks: every named network in its own library gives our logits; what is not ours is refused."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("timm", reason="timm comes with pip install 'fastssl[vision]'")
pytest.importorskip("open_clip", reason="open_clip comes with pip install 'fastssl[vision]'")
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.models import exported, plain
from fastssl.pipelines.errors import ConfigError, SetupError
from tests.fastssl.models import network_table
from tests.fastssl.models.test_open_clip import architectures  # noqa: F401 - a fixture

CLASSES = ("a", "b", "c")
TINY = {"name": "timm:test_vit", "weights": "random", "img_size": 32, "patch_size": 8}


def network(**options):
    """A network off every special value, so that each weight shows."""
    torch.manual_seed(4)
    config = ModelConfig(**options)
    made = models.build(config, CLASSES, size=32).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return config, made


def written(tmp_path, config, made, size=32, **options):
    packed = exported.pack(made, config, size, tmp_path / "net.safetensors", **options)
    about = {"schema": 1, "classes": CLASSES, "input": {"size": size}, "model": vars(config), **packed.about}
    exported.write(packed, tmp_path / "net.json", about)
    return packed


def logits(tmp_path, monkeypatch, images):
    """What the description's own Python says of images, without a word of ours."""
    monkeypatch.chdir(tmp_path)
    names = {"images": images}
    with torch.no_grad():
        exec("\n".join(json.loads((tmp_path / "net.json").read_text())["python"]), names)
    return names["logits"]


def off(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


APART = ("glyph_clip", "wrn-28-2", "wrn-28-8", "wrn-37-2", "preact-resnet-18", "open_clip:ViT-S-32-alt", "open_clip:RN50")


@pytest.mark.parametrize("row", network_table.ROWS, ids=lambda row: row.name)
@torch.no_grad()
def test_every_named_network_gives_its_logits_in_its_own_library(row, tmp_path, monkeypatch):
    made = network_table.build(row).eval()
    side = models.describe(row.config, row.size).size
    packed = written(tmp_path, row.config, made, side, merged=True)
    assert packed.about["layout"] == (row.name.split(":")[0] if ":" in row.name else "torch")
    assert (len(packed.files) == 2) == (row.name in APART)
    x = torch.randn(2, 3, side, side)
    assert off(logits(tmp_path, monkeypatch, x), made(x).logits) < 1e-5


BUILT = {
    "a cosine head": ({**TINY, "head": "cosine"}, 2),
    "adapters": ({**TINY, "tune": "lora+ssf+bias"}, 1),
    "dropped paths": ({**TINY, "drop_path": 0.5}, 1),
    "two classifiers of timm's own": ({**TINY, "name": "timm:deit_tiny_distilled_patch16_224", "patch_size": 16}, 2),
    "a tower with adapters and patches of another size": ({"name": "open_clip:tiny-plain", "patch_size": 4, "tune": "lora+ssf"}, 2),
    "a tower for another image": ({"name": "open_clip:tiny-custom", "img_size": 48, "head": "cosine"}, 2),
    "a trunk of timm for another image": ({"name": "open_clip:tiny-timm", "img_size": 32, "drop_path": 0.1}, 2),
    "a convolutional tower": ({"name": "open_clip:tiny-resnet"}, 2),
}


@pytest.mark.parametrize("case", BUILT)
@torch.no_grad()
def test_what_was_built_otherwise_is_built_so_again(case, tmp_path, monkeypatch):
    options, files = BUILT[case]
    config, made = network(**{"weights": "random", **options})
    size = config.img_size or (64 if "resnet" in config.name else 32)
    packed = written(tmp_path, config, made, size)
    assert len(packed.files) == files and packed.about["largest_difference"] < 1e-5 and packed.note is None
    x = torch.randn(2, 3, size, size)
    assert off(logits(tmp_path, monkeypatch, x), made(x).logits) < 1e-5


@torch.no_grad()
def test_a_tags_activation_is_said(tmp_path, monkeypatch):
    """OpenAI's ViT-B-32 has QuickGELU, and open_clip's own description of the architecture has not."""
    import open_clip

    from tests.fastssl.models.test_open_clip import TEXT, VISION

    small = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", small)
    config, made = network(name="open_clip:ViT-B-32/openai", weights="random")
    packed = written(tmp_path, config, made)
    assert "quick_gelu=True" in "".join(packed.about["python"])
    x = torch.randn(2, 3, 32, 32)
    assert off(logits(tmp_path, monkeypatch, x), made(x).logits) < 1e-5


@pytest.mark.parametrize("how", ["vpt_deep", "adapter+adaptformer+vpt_last", "lora"])
@torch.no_grad()
def test_kept_adapters_load_through_fastssl(how, tmp_path, monkeypatch):
    config, made = network(**TINY, tune=how, head="cosine", prompts=3)
    packed = written(tmp_path, config, made, merged=False if how == "lora" else None)
    assert packed.about["layout"] == "fastssl" and list(packed.files) == [tmp_path / "net.safetensors"]
    assert ("cannot be folded" in (packed.note or "")) == (how != "lora")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(logits(tmp_path, monkeypatch, x), made(x).logits)
    if how != "lora":
        with pytest.raises(ConfigError, match="--merged: .*cannot be folded"):
            exported.pack(made, config, 32, tmp_path / "net.safetensors", merged=True)


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet", "open_clip:tiny-plain", "wrn-28-2", "glyph_clip"])
@torch.no_grad()
def test_an_export_starts_another_run(name, tmp_path):
    """--weights takes it: the encoder's features are those of the exported one."""
    sizes = {"img_size": 32, "patch_size": 8} if name == "timm:test_vit" else {}
    config, made = network(name=name, weights="random", **sizes)
    written(tmp_path, config, made)
    report = models.Report()
    again = models.build(ModelConfig(name=name, weights=str(tmp_path / "net.safetensors"), **sizes), CLASSES, report=report).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x).features, made(x).features) and len(report.notes) == 1 and not report.warnings


def test_the_file_says_what_it_is(tmp_path):
    config, made = network(**TINY)
    written(tmp_path, config, made)
    with safe_open(str(tmp_path / "net.safetensors"), framework="pt") as file:
        meta = file.metadata()
    assert meta["format"] == "pt" and json.loads(meta["fastssl"]) == json.loads((tmp_path / "net.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1, "who may read the one may read the other"


def test_what_is_no_export_of_ours_is_refused(tmp_path):
    config, made = network(**TINY, tune="vpt_deep", prompts=2)
    file = tmp_path / "net.safetensors"
    written(tmp_path, config, made)
    state = load_file(file)
    with safe_open(str(file), framework="pt") as opened:
        about = opened.metadata()["fastssl"]
    state.pop("head.weight")
    cases = {"does not fit its own description": (state, {"fastssl": about}), "no export that this version": (state, None)}
    cases["cannot read the description"] = (state, {"fastssl": "{"})
    cases["reads; write it"] = (state, {"fastssl": json.dumps({**json.loads(about), "schema": 99})})
    for sentence, (tensors, metadata) in cases.items():
        save_file(tensors, file, metadata=metadata)
        with pytest.raises(SetupError, match=sentence) as caught:
            exported.load(file)
        assert "\n" not in str(caught.value)
    file.write_bytes(b"junk")
    with pytest.raises(SetupError, match="as safetensors"):
        exported.load(file)
    with pytest.raises(SetupError, match="no such file"):
        exported.load(tmp_path / "gone.safetensors")
    written(tmp_path, *network(**TINY))
    with pytest.raises(ConfigError, match="laid out for timm"):
        exported.load(file)


def test_a_network_that_answers_otherwise_is_not_written(tmp_path):
    config, made = network(**TINY)
    made.head.weight.data[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="off by nan of the largest; give --kept"):
        exported.pack(made, config, 32, tmp_path / "net.safetensors")


def test_the_difference_is_a_share_of_the_largest_logit():
    assert plain.difference(torch.tensor([100.0, 1.0]), torch.tensor([100.0, 2.0])) == pytest.approx(0.01)
    assert plain.difference(torch.tensor([0.1]), torch.tensor([0.2])) == pytest.approx(0.1)


def test_the_documents_example_is_what_a_description_says(root, tmp_path):
    config = ModelConfig(name="timm:vit_small_patch16_224", weights="random", img_size=32, patch_size=2)
    made = models.build(config, tuple(f"class {i}" for i in range(100))).eval()
    said = exported.pack(made, config, 32, tmp_path / "net.safetensors").about["python"]
    section = (root / "docs" / "networks.md").read_text(encoding="utf-8").split("## A trained network elsewhere")[1]
    block = section.split("```python\n")[1].split("```")[0].splitlines()
    assert [line.split("  #")[0] for line in block] == said
