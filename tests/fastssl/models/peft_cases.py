"""Small vision transformers of each library, and what tuning must compute on them, put together from the libraries' own modules."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from open_clip.transformer import VisionTransformer as OpenClipTransformer
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import nn
from torch.func import functional_call

from fastssl.config import ModelConfig
from fastssl.models import peft, vit
from fastssl.models.tuned_block import TunedBlock

WIDTH, DEPTH = 32, 3
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 4, "mlp_ratio": 2, "num_classes": 0}
MAKERS = {
    "timm": lambda: TimmTransformer(**TIMM, pre_norm=True),
    "timm_avg": lambda: TimmTransformer(**TIMM, global_pool="avg", reg_tokens=2, init_values=0.3, qk_norm=True, scale_attn_norm=True),
    "timm_map": lambda: TimmTransformer(**TIMM, global_pool="map", class_token=False, qkv_bias=True),
    "open_clip": lambda: OpenClipTransformer(32, 8, WIDTH, DEPTH, 4, 2.0, output_dim=24, act_layer=QuickGELU),
    "own": lambda: vit.VisionTransformer(32, 3, WIDTH, DEPTH, 4, 2.0, stem=(4, 8)),
}


def make(kind: str, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A tiny transformer with no weight at a special value, so that each term shows."""
    torch.manual_seed(1)
    model = MAKERS[kind]().to(dtype).eval()
    shake(model.parameters(), 0.1)
    return model


def shake(parameters, amount: float) -> None:
    with torch.no_grad():
        for p in parameters:
            p.add_(amount * torch.randn_like(p))


def tuned(kind: str, how: str, *, dtype: torch.dtype = torch.float64, **options) -> tuple[nn.Module, nn.Module]:
    """(plain, tuned) copies of one transformer; the tuned one's own parameters are off their starting values."""
    plain = make(kind, dtype=dtype)
    options = {"prompts": 5, "lora_rank": 3, "adapter_rank": 4, "adaptformer_rank": 6, **options}
    encoder = peft.tune(copy.deepcopy(plain), ModelConfig(tune=how, **options), name=kind)
    shake(added(encoder).values(), 0.2)
    return plain, encoder.eval()


def added(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """What tuning added, by name: all of a TunedBlock but its block."""
    places = [place for place, m in encoder.named_modules() if isinstance(m, TunedBlock)]
    return {n: p for n, p in encoder.named_parameters() if any(n.startswith(f"{b}.") and not n.startswith(f"{b}.block.") for b in places)}


def images(n: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=dtype)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return list(model.transformer.resblocks if hasattr(model, "transformer") else model.blocks)


MAPS = {  # attention's fused map, its output map, fc1, fc2: names in a block
    "timm": ("attn.qkv.{}", "attn.proj.{}", "mlp.fc1.{}", "mlp.fc2.{}"),
    "open_clip": ("attn.in_proj_{}", "attn.out_proj.{}", "mlp.c_fc.{}", "mlp.c_proj.{}"),
    "own": ("attn.qkv.{}", "attn.proj.{}", "mlp.0.{}", "mlp.2.{}"),
}


class Oracle(nn.Module):
    """The plain form: prompt tokens go through whole blocks, the library's modules do the rest, LoRA and SSF sit in the weights."""

    def __init__(self, kind: str, plain: nn.Module, encoder: nn.Module):
        super().__init__()
        self.kind, self.model = kind.split("_")[0] if kind.startswith("timm") else kind, plain
        self.tuned = [b if isinstance(b, TunedBlock) else None for b in blocks_of(encoder)]  # a list: no part of this module

    def evaluate(self, x):
        return functional_call(self, self.weights(), (x,))

    def weights(self):
        changed = {}
        place = "model.transformer.resblocks" if self.kind == "open_clip" else "model.blocks"
        for i, block in enumerate(self.tuned):
            for j, name in enumerate(MAPS[self.kind]):
                if block is None:
                    continue
                keys = [f"{place}.{i}.{name.format(kind)}" for kind in ("weight", "bias")]
                weight, bias = (self.get_parameter(key) for key in keys)
                ssf = (block.ssf_qkv, block.ssf_proj, block.ssf_fc1, block.ssf_fc2)[j]
                if ssf is not None:
                    weight, bias = ssf.scale[:, None] * weight, ssf.scale * bias + ssf.shift
                if j == 0 and block.lora_q is not None:
                    update = [lora.up @ lora.down / lora.rank for lora in (block.lora_q, block.lora_v)]
                    weight = weight + torch.cat([update[0], torch.zeros_like(update[0]), update[1]])
                changed.update(zip(keys, (weight, bias), strict=True))
        return changed

    def forward(self, x):
        m = self.model
        if self.kind == "timm":
            tokens = m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(x))))
        else:
            tokens = m._embeds(x) if self.kind == "open_clip" else m.embed_patches(x)
        count = tokens.shape[1]
        for block, tuning in zip(blocks_of(m), self.tuned, strict=True):
            if tuning is not None and tuning.shallow is not None:
                tokens = torch.cat([tokens, tuning.shallow.expand(len(x), -1, -1)], dim=1)
            here = tokens.shape[1]
            for prompts in tuning.prompts.values() if tuning is not None else ():
                tokens = torch.cat([tokens, prompts.expand(len(x), -1, -1)], dim=1)
            tokens = self.block(block, tuning, tokens)[:, :here]
        tokens = tokens[:, :count]
        if self.kind == "timm":
            return m.forward_head(m.norm(tokens))
        if self.kind == "own":
            return m.norm(tokens[:, 0])
        pooled = m._pool(tokens)[0]
        return pooled if m.proj is None else pooled @ m.proj

    def block(self, block, tuning, x):
        if tuning is None or tuning.adapter is None and tuning.adaptformer is None:
            return block(x)
        if self.kind == "timm":
            x = x + block.ls1(block.attn(block.norm1(x)))
            y = block.ls2(block.mlp(block.norm2(x)))
        elif self.kind == "open_clip":
            x = x + block.ls_1(block.attention(block.ln_1(x)))
            y = block.ls_2(block.mlp(block.ln_2(x)))
        else:
            x = x + block.attn(block.norm1(x))
            y = block.mlp(block.norm2(x))
        if tuning.adapter is not None:
            y = y + bottleneck(tuning.adapter, y)
        if tuning.adaptformer is not None:
            y = y + bottleneck(tuning.adaptformer, y if tuning.sequential else x)
        return x + y


def bottleneck(b, x):
    """0.1 U relu(D LN(x)), by hand."""
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * b.norm.weight + b.norm.bias
    return 0.1 * (F.relu(normed @ b.down.weight.T + b.down.bias) @ b.up.weight.T + b.up.bias)
