"""Attention and masks of encoders of the transformers library, in forms that ask the device nothing.

The library looks into its masks (are there any pads?) to choose a kernel, which stops a captured step; here a mask is always made.
On a CPU in bf16 two matrix products are taken in place of torch's fused attention: see vit.py, and docs/performance.md for
a text encoder's step.

Legend: N texts, T tokens, h heads, k depth of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "fastssl"  # under which the library finds both
HIDDEN = -1e4  # added to the scores of what is not seen: its weight is exactly zero, in fp16 too


def register() -> str:
    """Makes the library know them.

    Returns:
        What a network is built with as `attn_implementation`: the library's own plain form where it is too old to take others.
    """
    try:
        from transformers import AttentionInterface, masking_utils
    except ImportError:
        return "eager"
    AttentionInterface.register(NAME, attend)
    masking_utils.AttentionMaskInterface.register(NAME, mask)
    return NAME


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Softmax attention by the library's signature: query [N, h, T, k], key and value alike or with fewer heads -> [N, T, h, k].

    Args:
        attention_mask: [N, 1, 1 or T, T], added to the scores.

    Raises:
        ValueError: capped scores or attention sinks, which this form does not have.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError("attention with capped scores or sinks is not known here")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            scores = (query * scale) @ key.transpose(-2, -1)
            weights = (scores if attention_mask is None else scores + attention_mask.to(scores.dtype)).softmax(-1)
            out = (F.dropout(weights, dropout) if dropout else weights) @ value
    else:
        given = None if attention_mask is None else attention_mask.to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=given, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).contiguous(), None


def mask(
    batch_size: int,
    q_length: int | Tensor,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor | None:
    """What is added to the scores, by the library's signature: [N, 1, 1, T] where only padding is hidden, else [N, 1, T, T]."""
    from transformers import masking_utils

    both = getattr(masking_utils, "bidirectional_mask_function", None)
    if mask_function is both and both is not None and not options.get("use_vmap"):
        if attention_mask is None:
            return None
        seen = attention_mask[:, None, None, :kv_length].bool()
    else:
        options.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        options.pop("dtype", None)
        seen = masking_utils.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **options,
        )
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, HIDDEN)
