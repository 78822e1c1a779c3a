"""Merging: LoRA and SSF go into the weights of a plain library model; what cannot go in is named."""

import copy

import pytest
import torch

from fastssl.config import ModelConfig
from fastssl.models import peft
from fastssl.models.open_clip_networks import OpenClipEncoder
from fastssl.models.timm_networks import TimmEncoder
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.models.peft_cases import MAKERS, TIMM, TimmTransformer, images, make, shake, tuned


@pytest.mark.parametrize("how", ["lora", "ssf", "lora+ssf+bias", "lora+last_k"])
@pytest.mark.parametrize("kind", MAKERS)
def test_merged_weights_load_strictly_into_the_plain_library_model(kind, how):
    _, encoder = tuned(kind, how, dtype=torch.float32)
    shake((p for p in encoder.parameters() if p.requires_grad), 0.02)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    merged = peft.merge(encoder)
    fresh = MAKERS[kind]().eval()
    fresh.load_state_dict(merged.state_dict(), strict=True)
    x = images(dtype=torch.float32)
    with torch.no_grad():
        expected = encoder(x)
        assert (fresh(x) - expected).abs().max() < 1e-5 * expected.abs().max()
        assert torch.equal(merged(x), fresh(x))
        assert (make(kind, dtype=torch.float32)(x) - expected).abs().max() > 1e-3, "the tuning does nothing"
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items()), "merging must not change the tuned encoder"


def test_towers_of_named_networks_are_the_librarys_after_merging():
    for kind, wrap, place in (("timm", TimmEncoder, "model"), ("open_clip", OpenClipEncoder, "visual")):
        for how in ("lora+ssf", "full"):
            encoder = peft.tune(wrap(MAKERS[kind]()), ModelConfig(tune=how), name=kind)
            MAKERS[kind]().load_state_dict(getattr(peft.merge(encoder), place).state_dict(), strict=True)


def test_an_encoder_without_adapters_merges_to_a_copy():
    plain = make("timm")
    merged = peft.merge(peft.tune(copy.deepcopy(plain), ModelConfig(tune="bias"), name="x"))
    assert all(torch.equal(v, merged.state_dict()[k]) for k, v in plain.state_dict().items())


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ("vpt_deep+lora", ("prompts",)),
        ("vpt_shallow", ("prompts",)),
        ("vpt_last+adapter+adaptformer+ssf", ("adapter", "adaptformer", "prompts")),
        ("lora+ssf", ()),
        ("full", ()),
    ],
)
def test_what_cannot_be_folded_is_named(how, kept):
    encoder = peft.tune(make("open_clip"), ModelConfig(tune=how), name="x")
    assert tuple(sorted(peft.kept(encoder))) == kept
    if kept:
        with pytest.raises(ConfigError, match=f"{kept[0]}.*cannot be folded"):
            peft.merge(encoder)


def test_ssf_needs_a_bias_to_be_folded():
    encoder = peft.tune(TimmTransformer(**TIMM, qkv_bias=False), ModelConfig(tune="ssf"), name="x")
    with pytest.raises(ConfigError, match="ssf on a map without bias"):
        peft.merge(encoder)
