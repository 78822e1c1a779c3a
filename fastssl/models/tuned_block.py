"""A transformer block with adapters: the block's own modules, and what tuning adds between them.

Legend: N images, T tokens, P prompt vectors, d width, a width of all heads together.

Deep prompts run in the exact cheap form (see vit.py): keys and values of the prompts are computed once a batch, and no prompt token
is ever carried along. Where of the last block only the class token is read, only that token is computed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from . import adapters
from .towers import Attention, Parts, parts
from .vit import attend, split_heads

DROPOUT = 0.1  # of AdaptFormer (Chen et al. 2022)


class TunedBlock(nn.Module):
    """Stands in a tower where `block` stood, and keeps its names in every state_dict.

    With y the MLP branch and x the residual before it, adapters act in this order: y = scale2(SSF(fc2(...))), y += Adapter(y),
    y += AdaptFormer(x) (parallel) or AdaptFormer(y) (sequential), and path2(y) is added to x. Of queries, keys and values, SSF comes
    before LoRA's update.

    Args:
        block: a block whose parts are known.
        names: of lora, adapter, adaptformer, ssf: what to add.
        config: ranks, factors, forms.

    Attributes:
        prompts: "deep" and "last" prompt vectors [P, d] of this block alone.
        shallow: prompt vectors [P, d] that enter here as tokens, or None.
        leaving: how many trailing tokens end here (shallow prompts, in the last block).
        class_token_only: the result is the class token alone, [N, 1, d].
    """

    def __init__(self, block: nn.Module, names: tuple[str, ...], config: ModelConfig):
        super().__init__()
        self.block = block
        self.prompts = nn.ParameterDict()
        self.shallow: nn.Parameter | None = None
        self.leaving = 0
        self.class_token_only = False
        self.sequential = config.adaptformer_form == "sequential"
        p, like = self.parts(), next(block.parameters())
        if isinstance(p.attention, Attention):
            three, width = p.attention.weight.shape
        else:
            width = like.shape[-1]
        lora, ssf = "lora" in names, "ssf" in names
        self.lora_q = adapters.LowRank(width, three // 3, config.lora_rank, like) if lora else None
        self.lora_v = adapters.LowRank(width, three // 3, config.lora_rank, like) if lora else None
        self.ssf_qkv = adapters.ScaleShift(three, like) if ssf else None
        self.ssf_proj = adapters.ScaleShift(p.attention.proj.out_features, like) if ssf else None
        self.ssf_fc1 = adapters.ScaleShift(p.layers[0].out_features, like) if ssf else None
        self.ssf_fc2 = adapters.ScaleShift(p.layers[2].out_features, like) if ssf else None
        self.adapter = self.adaptformer = None
        if "adapter" in names:
            self.adapter = adapters.Bottleneck(width, config.adapter_rank, config.adapter_scale, like, normal=True)
        if "adaptformer" in names:
            self.adaptformer = adapters.Bottleneck(width, config.adaptformer_rank, config.adapter_scale, like, dropout=DROPOUT)

    def parts(self) -> Parts:
        found = parts(self.block)
        assert found is not None  # tune() lets no other block in
        return found

    def forward(
        self,
        x: Tensor,
        prefix: Tensor | None = None,
        queries: int | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """[N, T, d] -> [N, T', d]. Signature of the blocks it stands for: timm's, open_clip's and ours.

        Args:
            prefix: [P, d] further prompt vectors.
            queries: how many leading tokens have to come out; None for what this block is set to.

        Raises:
            ValueError: an attention mask, which no adapter here knows.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("a block with adapters takes no attention mask")
        if self.shallow is not None:
            x = torch.cat([x, self.shallow.to(x.dtype).expand(len(x), -1, -1)], dim=1)
        if queries is None:
            queries = 1 if self.class_token_only else x.shape[1] - self.leaving
        p = self.parts()
        h = p.norm1(x)
        if isinstance(p.attention, Attention):
            given = [prefix] if prefix is not None else []
            out = self._attend(p, p.attention, h, [*given, *self.prompts.values()], queries)
        else:
            out = p.attention(h)[:, :queries]
        x = x[:, :queries] + p.path1(p.scale1(out))
        y = p.scale2(self._mlp(p, p.norm2(x)))
        if self.adapter is not None:
            y = y + self.adapter(y)
        if self.adaptformer is not None:
            y = y + self.adaptformer(y if self.sequential else x)
        return x + p.path2(y)

    def _attend(self, p: Parts, attn: Attention, h: Tensor, prompts: list[Tensor], queries: int) -> Tensor:
        """[N, T, d] normed tokens -> [N, queries, d]."""
        if queries == h.shape[1]:
            q, k, v = self._project(attn, h, 0, 3)
        else:
            (q,) = self._project(attn, h[:, :queries], 0, 1)
            k, v = self._project(attn, h, 1, 3)
        if prompts:
            shared = [t.to(k.dtype).expand(len(h), -1, -1) for t in self._project(attn, p.norm1(torch.cat(prompts)), 1, 3)]
            k, v = torch.cat([k, shared[0]], dim=1), torch.cat([v, shared[1]], dim=1)
        q, k, v = (split_heads(t, attn.heads) for t in (q, k, v))
        out = attn.norm(attend(attn.q_norm(q), attn.k_norm(k), v, attn.dropout))
        if attn.gate is not None:
            out = out * attn.gate(h[:, :queries]).sigmoid()
        out = attn.proj(out)
        return attn.after(out if self.ssf_proj is None else self.ssf_proj(out))

    def _project(self, attn: Attention, x: Tensor, begin: int, end: int) -> list[Tensor]:
        """Of query (0), key (1) and value (2) those from `begin` to before `end`, [..., a] each."""
        a = attn.weight.shape[0] // 3
        part = slice(begin * a, end * a)
        y = F.linear(x, attn.weight[part], None if attn.bias is None else attn.bias[part])
        if self.ssf_qkv is not None:
            y = self.ssf_qkv(y, part)
        pieces = list(y.split(a, dim=-1))
        for place, update in ((0, self.lora_q), (2, self.lora_v)):
            if update is not None and begin <= place < end:
                pieces[place - begin] = pieces[place - begin] + update(x)
        return pieces

    def _mlp(self, p: Parts, x: Tensor) -> Tensor:
        if self.ssf_fc1 is None or self.ssf_fc2 is None:
            return p.mlp(x)
        fc1, between, fc2, after = p.layers
        return after(self.ssf_fc2(fc2(between(self.ssf_fc1(fc1(x))))))

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The block's own weights under the names that they have without tuning, and what was added beside them."""
        state = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        inner = prefix + "block."
        for key in [key for key in state if key.startswith(inner)]:
            state[prefix + key.removeprefix(inner)] = state.pop(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called on this module's part of the state, before its members take theirs: names go back to where the weights are.
        members = {*self._modules, *self._parameters}
        for key in [key for key in state_dict if key.startswith(prefix)]:
            rest = key.removeprefix(prefix)
            if rest.split(".")[0] not in members:
                state_dict[f"{prefix}block.{rest}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def kept(self) -> list[str]:
        """What of this block cannot be folded into its weights, in words."""
        found = ["prompts"] if len(self.prompts) or self.shallow is not None else []
        found += [name for name in ("adapter", "adaptformer") if getattr(self, name) is not None]
        if self.ssf_qkv is not None:
            p = self.parts()
            maps = (p.attention, p.attention.proj, p.layers[0], p.layers[2])
            found += ["ssf on a map without bias"] if any(m.bias is None for m in maps) else []
        return found

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The block itself, with LoRA and SSF folded into its weights (changed in place). To be called where `kept` is empty."""
        p = self.parts()
        if self.ssf_qkv is not None:
            attn, (fc1, _, fc2, _) = p.attention, p.layers
            maps = ((attn, self.ssf_qkv), (attn.proj, self.ssf_proj), (fc1, self.ssf_fc1), (fc2, self.ssf_fc2))
            for linear, ssf in maps:
                scale, shift = ssf.scale.double(), ssf.shift.double()
                linear.weight.copy_(linear.weight.double() * scale[:, None])
                linear.bias.copy_(linear.bias.double() * scale + shift)
        for place, update in ((0, self.lora_q), (2, self.lora_v)):
            if update is not None:
                a = p.attention.weight.shape[0] // 3
                rows = p.attention.weight[place * a : (place + 1) * a]
                rows.copy_(rows.double() + update.weight())
        return self.block
