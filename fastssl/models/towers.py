"""Vision transformers of others, seen alike: where their blocks are, what a block is made of, which layer a weight belongs to.

A tower is timm's VisionTransformer, open_clip's, or our own (vit.py), wherever it sits inside an encoder. Nothing here imports a
library: an encoder can hold a library's classes only once that library is loaded.

Legend: d width, a width of all heads together, L blocks.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from . import text_tower, vit


class Tower(NamedTuple):
    """The one vision transformer of an encoder."""

    module: nn.Module
    name: str  # the module's place in the encoder, "" for the encoder itself
    blocks: nn.Sequential | nn.ModuleList
    blocks_name: str  # place of the blocks in the module
    embeddings: tuple[str, ...]  # members of the module that come before the blocks
    norms: tuple[str, ...]  # members that norm the last block's output, or its pooled tokens
    width: int  # d
    patch: int  # side of a patch in pixels
    class_token_only: bool  # of the last block's output, the encoder reads the class token alone
    rewritten: bool = False  # blocks run in our form (TunedBlock) even without adapters, because their own is slow


class Parts(NamedTuple):
    """What a pre-norm block is made of: x + path1(scale1(attention(norm1(x)))), then x + path2(scale2(mlp(norm2(x))))."""

    norm1: Callable[[Tensor], Tensor]
    attention: Attention | Callable[[Tensor], Tensor]  # its parts, or the whole of one whose inside is not known
    scale1: Callable[[Tensor], Tensor]
    path1: Callable[[Tensor], Tensor]
    norm2: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]
    layers: tuple[nn.Linear, Callable[[Tensor], Tensor], nn.Linear, Callable[[Tensor], Tensor]] | None  # fc1, between, fc2, after
    scale2: Callable[[Tensor], Tensor]
    path2: Callable[[Tensor], Tensor]


class Attention(NamedTuple):
    weight: Tensor  # [3 a, d] of query, key and value
    bias: Tensor | None  # [3 a]
    heads: int
    q_norm: Callable[[Tensor], Tensor]
    k_norm: Callable[[Tensor], Tensor]
    dropout: float  # of the attention weights, now
    norm: Callable[[Tensor], Tensor]  # of the heads' output
    gate: nn.Module | None
    proj: nn.Linear
    after: Callable[[Tensor], Tensor]


def find(encoder: nn.Module) -> Tower | None:
    """The encoder's vision transformer; None where it has none, or more than one."""
    found = [(name, m, kind) for name, m in encoder.named_modules() for kind in KINDS if isinstance(m, _classes(*kind))]
    if len(found) != 1:
        return None
    name, module, kind = found[0]
    # Only where all of the code between the blocks and the features is known may the last block leave tokens out.
    known = module is encoder or type(encoder).__module__.split(".")[0] == __name__.split(".")[0]
    return KINDS[kind](module, name, known)


def parts(block: nn.Module) -> Parts | None:
    """A block's parts, None for a block whose make-up is not known."""
    if type(block) is vit.Block:
        return _own_parts(block)
    if type(block) is _class("timm.models.vision_transformer", "Block"):
        return _timm_parts(block)
    if type(block) is _class("open_clip.transformer", "ResidualAttentionBlock"):
        return _open_clip_parts(block)
    return None


def layers(encoder: nn.Module) -> tuple[dict[str, int], int] | None:
    """Parameter name -> layer, and the layer of the head, for layer-wise learning rates; None where no order of layers is known.

    As in timm and USB: embeddings are layer 0, block l (from 0) and what was added to it layer l + 1, the final norm goes with the
    last block, pooling layers with the head at L + 1. Other networks of timm go by its own coarse groups (the stages of a
    convolutional network), text encoders by text_tower.py.
    """
    if isinstance(encoder, text_tower.TextEncoder):
        return text_tower.layer_numbers(encoder)
    tower = find(encoder)
    names = [name for name, _ in encoder.named_parameters()]
    if tower is None:
        return _timm_layers(encoder, names)
    depth, start = len(tower.blocks), tower.name + "." if tower.name else ""
    result = {}
    for name in names:
        inner = name.removeprefix(start) if name.startswith(start) else ""
        first = inner.split(".")[0]
        if inner.startswith(tower.blocks_name + "."):
            result[name] = int(inner.removeprefix(tower.blocks_name + ".").split(".")[0]) + 1
        else:
            # timm's fc_norm, the second of its norms, follows the pooling: it goes with the head, there and here.
            result[name] = 0 if first in tower.embeddings else depth if first == tower.norms[0] else depth + 1
    return result, depth + 1


def _timm_layers(encoder: nn.Module, names: list[str]) -> tuple[dict[str, int], int] | None:
    found = [(place, m) for place, m in encoder.named_modules() if hasattr(m, "group_matcher") and type(m).__module__.startswith("timm.")]
    if not found:
        return None
    place, model = found[0]
    start = place + "." if place else ""
    if not all(other.startswith(start) for other, _ in found[1:]):
        return None  # two networks side by side: neither comes before the other
    from timm.models import group_parameters

    # The model has no classifier of its own here: a stand-in, last of all, tells which layer that would be.
    stand_in = types.SimpleNamespace(named_parameters=lambda: itertools.chain(model.named_parameters(), [("head", None)]))
    groups = group_parameters(stand_in, model.group_matcher(coarse=True), reverse=True)
    head = groups.pop("head")
    return {name: groups.get(name.removeprefix(start), head) if name.startswith(start) else head for name in names}, head


def _own(module: nn.Module, name: str, known: bool) -> Tower:
    # forward_features itself asks the last block for the class token alone.
    before = ("stem", "cls_token", "pos_embed")
    return Tower(module, name, module.blocks, "blocks", before, ("norm",), module.num_features, module.patch, False)


def _timm(module: nn.Module, name: str, known: bool) -> Tower:
    exact = type(module) is _class("timm.models.vision_transformer", "VisionTransformer")
    only = known and exact and module.global_pool == "token" and module.attn_pool is None
    before = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
    patch = max(module.patch_embed.patch_size)
    return Tower(module, name, module.blocks, "blocks", before, ("norm", "fc_norm"), module.embed_dim, patch, only)


def _open_clip(module: nn.Module, name: str, known: bool) -> Tower:
    exact = type(module) is _class("open_clip.transformer", "VisionTransformer")
    only = known and exact and module.pool_type == "tok" and module.attn_pool is None and not module.output_tokens
    before = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
    body, place, patch = module.transformer, "transformer.resblocks", max(module.patch_size)
    # nn.MultiheadAttention copies its weights for every token when they are frozen, or in training mode without gradients: 20 to 40
    # times slower in bf16 on a CPU (measured, torch 2.15), and every step's teacher pass is of that kind.
    return Tower(module, name, body.resblocks, place, before, ("ln_post",), body.width, patch, only, rewritten=True)


KINDS: dict[tuple[str, str], Callable[[Any, str, bool], Tower]] = {
    (vit.__name__, "VisionTransformer"): _own,
    ("timm.models.vision_transformer", "VisionTransformer"): _timm,
    ("open_clip.transformer", "VisionTransformer"): _open_clip,
}


def _class(module: str, name: str) -> type | None:
    return getattr(sys.modules.get(module), name, None)


def _classes(module: str, name: str) -> tuple[type, ...]:
    found = _class(module, name)
    return () if found is None else (found,)


def _same(x: Tensor) -> Tensor:
    return x


def _own_parts(block: Any) -> Parts:
    attn, (fc1, act, fc2) = block.attn, block.mlp
    inside = Attention(attn.qkv.weight, attn.qkv.bias, attn.heads, _same, _same, 0.0, _same, None, attn.proj, _same)
    return Parts(block.norm1, inside, _same, _same, block.norm2, block.mlp, (fc1, act, fc2, _same), _same, _same)


def _timm_parts(block: Any) -> Parts:
    attn, mlp = block.attn, block.mlp
    inside: Any = attn
    if type(attn) is _class("timm.models.vision_transformer", "Attention"):
        dropout = attn.attn_drop.p if attn.training else 0.0
        gate, norm = getattr(attn, "gate", None), getattr(attn, "norm", _same)  # older timm has neither
        weight, bias = attn.qkv.weight, attn.qkv.bias
        inside = Attention(weight, bias, attn.num_heads, attn.q_norm, attn.k_norm, dropout, norm, gate, attn.proj, attn.proj_drop)
    inner = None
    if type(mlp) is _class("timm.models.vision_transformer", "Mlp"):
        inner = (mlp.fc1, lambda x: mlp.norm(mlp.drop1(mlp.act(x))), mlp.fc2, mlp.drop2)
    return Parts(block.norm1, inside, block.ls1, block.drop_path1, block.norm2, mlp, inner, block.ls2, block.drop_path2)


def _open_clip_parts(block: Any) -> Parts | None:
    attn, mlp = block.attn, block.mlp
    plain = type(attn) is nn.MultiheadAttention and attn.in_proj_weight is not None and attn.bias_k is None and not attn.add_zero_attn
    if not plain or not attn.batch_first or hasattr(block, "ln_1_kv"):
        return None
    dropout = attn.dropout if attn.training else 0.0
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    inside = Attention(weight, bias, attn.num_heads, _same, _same, dropout, _same, None, attn.out_proj, _same)
    inner = (mlp.c_fc, mlp.gelu, mlp.c_proj, _same)
    return Parts(block.ln_1, inside, block.ls_1, _same, block.ln_2, mlp, inner, block.ls_2, _same)
