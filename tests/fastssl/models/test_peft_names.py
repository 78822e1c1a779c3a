"""Tuning by name: counts of FineSSL's table on ViT-B/16, what combines, what a network refuses, the order of layers."""

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer as OpenClipTransformer
from timm.models import group_parameters
from timm.models.vision_transformer import ParallelScalingBlock
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import nn

from fastssl.config import ModelConfig
from fastssl.models import build, peft, towers
from fastssl.models.wrn import WideResNet
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.models.peft_cases import DEPTH, TIMM, make


def vit_b16(library):
    """CLIP's ViT-B/16 image tower on the meta device: shapes without numbers."""
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model("vit_base_patch16_clip_224", num_classes=0)
        return OpenClipTransformer(224, 16, 768, 12, 12, 4.0, output_dim=512)


# Heads not counted. last_k: a block of 7,087,872 and the final norm's 1,536; full: timm's has no projection, open_clip's 768 x 512.
TABLE = {
    "vpt_deep": 460_800,
    "vpt_shallow": 38_400,
    "vpt_last": 38_400,
    "lora": 589_824,
    "adapter": 175_200,
    "adaptformer": 1_208_064,
    "ssf": 165_888,
    "bias": 102_912,
    "last_k": 7_089_408,
    "linear": 0,
    "vpt_deep+lora": 460_800 + 589_824,
    "adaptformer+ssf+bias": 1_208_064 + 165_888 + 102_912,
    "full": 85_799_424,
}


@pytest.mark.parametrize("how", TABLE)
@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_vit_b16_trains_as_many_weights_as_the_table_says(library, how):
    encoder = vit_b16(library)
    with torch.device("meta"):
        peft.tune(encoder, ModelConfig(tune=how), name="ViT-B/16")
    count = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert count == TABLE[how] + (768 * 512 if (library, how) == ("open_clip", "full") else 0)


def test_partial_counts_go_by_blocks():
    for how, blocks, expected in (("lora", 3, 589_824 // 4), ("vpt_deep", 6, 230_400), ("last_k", 2, 2 * 7_087_872 + 1_536)):
        encoder = vit_b16("timm")
        with torch.device("meta"):
            peft.tune(encoder, ModelConfig(tune=how, partial=blocks), name="ViT-B/16")
        assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("vpt_dep", ("vpt_dep", "vpt_deep")),
        ("lora+", ("''",)),
        ("lora+lora", ("twice",)),
        ("full+lora", ("full", "alone")),
        ("vpt_deep+linear", ("linear", "alone")),
        ("vpt_deep+vpt_shallow", ("vpt_shallow", "one of the two")),
        ("bn", ("batch-norm", "tiny")),
    ],
)
def test_names_that_do_not_fit_are_refused(how, words):
    with pytest.raises(ConfigError) as error:
        peft.tune(make("timm"), ModelConfig(tune=how), name="tiny")
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("partial", [DEPTH + 1, 50])
def test_more_blocks_than_there_are(partial):
    with pytest.raises(ConfigError, match=f"at most the {DEPTH} blocks of tiny, got {partial}"):
        peft.tune(make("open_clip"), ModelConfig(tune="lora", partial=partial), name="tiny")


@pytest.mark.parametrize("how", ["full", "linear", "lp_ft", "vpt_last"])
def test_partial_where_nothing_goes_by_blocks(how):
    with pytest.raises(ConfigError, match="model.partial"):
        peft.tune(make("timm"), ModelConfig(tune=how, partial=1), name="tiny")


def test_convolutional_networks():
    trains = {"full": None, "linear": set(), "lp_ft": None, "bias": {"bias"}, "bn": {"weight", "bias"}, "bn+bias": {"weight", "bias"}}
    for how, endings in trains.items():
        encoder = peft.tune(WideResNet(10, 1), ModelConfig(tune=how), name="wrn")
        named = [n for n, p in encoder.named_parameters() if p.requires_grad]
        norms = {n for n, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
        if endings is None:
            assert len(named) == len(list(encoder.parameters()))
        else:
            assert {n.rsplit(".", 1)[1] for n in named} == endings and all(n.rsplit(".", 1)[0] in norms for n in named)
    for how in ("last_k", "vpt_deep", "vpt_shallow", "vpt_last", "lora", "adapter", "adaptformer", "ssf", "bias+lora"):
        with pytest.raises(ConfigError, match=f"--tune {how.split('+')[-1]} needs a network with transformer blocks.* wrn has none"):
            peft.tune(WideResNet(10, 1), ModelConfig(tune=how), name="wrn")
    with pytest.raises(ConfigError, match="model.partial needs"):
        peft.tune(WideResNet(10, 1), ModelConfig(tune="bias", partial=2), name="wrn")


def parallel():
    return TimmTransformer(**TIMM, block_fn=ParallelScalingBlock)


def differential():
    return TimmTransformer(**TIMM, attn_layer="diff")


def gated():
    return TimmTransformer(**TIMM, mlp_layer=timm.layers.SwiGLUPacked)


def normformer():
    return OpenClipTransformer(32, 8, 32, 3, 4, 2.0, scale_fc=True)


@pytest.mark.parametrize(
    ("maker", "refused", "taken"),
    [
        (parallel, ("vpt_deep", "vpt_shallow", "lora", "adapter", "ssf"), ("last_k", "bias", "full", "linear")),
        (differential, ("vpt_deep", "vpt_last", "lora", "ssf"), ("adapter", "adaptformer", "last_k")),
        (gated, ("ssf", "lora+ssf"), ("vpt_deep", "lora", "adaptformer")),
        (normformer, ("vpt_deep", "adapter"), ("last_k", "bias")),
    ],
)
def test_blocks_with_an_unknown_inside_are_refused_or_left_to_themselves(maker, refused, taken):
    for how in refused:
        with pytest.raises(ConfigError, match=f"{how.replace('+', '.')} does not know the .* of odd"):
            peft.tune(maker(), ModelConfig(tune=how), name="odd")
    for how in taken:
        torch.manual_seed(0)
        plain, x = maker().eval(), torch.randn(2, 3, 32, 32)
        encoder = peft.tune(maker().eval(), ModelConfig(tune=how, prompts=1), name="odd")
        encoder.load_state_dict(encoder.state_dict() | plain.state_dict())
        shift = (encoder(x) - plain(x)).abs().max()
        assert shift < 1e-5 or how == "vpt_deep"


def test_two_transformers_in_one_encoder_are_not_guessed_at():
    both = nn.ModuleList([make("timm"), make("own")])
    with pytest.raises(ConfigError, match="two has none"):
        peft.tune(both, ModelConfig(tune="lora"), name="two")


def test_layers_are_those_of_timm():
    for model in (make("timm"), make("timm_avg"), make("timm_map")):
        whole = timm.models.vision_transformer.VisionTransformer(**TIMM | {"num_classes": 5})
        theirs = group_parameters(whole, whole.group_matcher(), reverse=True)
        ours, head = towers.layers(peft.tune(model, ModelConfig(tune="lora+vpt_deep"), name="x"))
        assert head == theirs["head.weight"] == DEPTH + 1
        assert all(theirs[n.replace(".block.", ".")] == i for n, i in ours.items() if n.replace(".block.", ".") in theirs)
        assert ours["blocks.1.lora_q.down"] == ours["blocks.1.prompts.deep"] == 2
    ours, head = towers.layers(make("open_clip"))
    assert {ours[n] for n in ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.bias")} == {0}
    assert ours["transformer.resblocks.2.ln_1.weight"] == ours["ln_post.weight"] == 3 and ours["proj"] == head == 4
    ours, head = towers.layers(make("own"))
    assert ours["stem.0.weight"] == ours["cls_token"] == 0 and ours["blocks.0.norm1.bias"] == 1 and ours["norm.bias"] == 3 == head - 1


def test_layers_of_convolutional_networks_are_their_stages():
    with torch.device("meta"):
        model = timm.create_model("convnext_atto", num_classes=0)
        ours, head = towers.layers(model)
    assert ours["stem.0.weight"] == 0 and [ours[f"stages.{i}.blocks.0.conv_dw.weight"] for i in range(4)] == [1, 2, 3, 4] and head == 5
    assert towers.layers(WideResNet(10, 1)) is None


def test_glyph_clip_takes_every_tuning():
    x = torch.randn(2, 3, 32, 32)
    for how in ("vpt_deep+lora", "vpt_shallow", "vpt_last", "adapter", "adaptformer", "ssf", "bias", "last_k", "lp_ft", "linear"):
        network = build(ModelConfig(tune=how, prompts=4, lora_rank=2), ("a", "b", "c")).train()
        network(x).logits.sum().backward()
        assert all(p.grad is not None for p in network.parameters() if p.requires_grad), how
