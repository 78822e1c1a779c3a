"""VPT's exact cheap form against the plain one, kept here as the oracle: prompts appended as tokens, outputs sliced off."""

import pytest
import torch

from fastssl.models import vit as vision
from fastssl.models.vit import VisionTransformer


def plain_forward(vit, x, prompts=None):
    """VPT-deep as published: append P tokens before each block, run all of it, drop them before the next."""
    tokens = vit.embed_patches(x)
    count = tokens.shape[1]
    for i, block in enumerate(vit.blocks):
        tokens = tokens[:, :count]
        if prompts is not None:
            tokens = torch.cat([tokens, prompts[i].expand(len(x), -1, -1)], dim=1)
        tokens = tokens + plain_attention(block.attn, block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return vit.norm(tokens[:, 0])


def plain_attention(attn, x):
    n, t, d = x.shape
    q, k, v = attn.qkv(x).reshape(n, t, 3, attn.heads, d // attn.heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / (d // attn.heads) ** 0.5).softmax(-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(n, t, d))


def small(depth=3):
    torch.manual_seed(0)
    vit = VisionTransformer(image_size=16, width=24, depth=depth, heads=3, stem=(4, 8)).double()
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(0.1 * torch.randn_like(p))  # off the zeros of initial biases, so that each term shows
    return vit


def test_cheap_prompts_equal_the_plain_form_in_outputs_and_gradients():
    vit = small()
    x = torch.randn(5, 1, 16, 16, dtype=torch.float64)
    prompts = torch.randn(3, 7, 24, dtype=torch.float64)
    upstream = torch.randn(5, 24, dtype=torch.float64)
    results = []
    for form in (vit.forward_features, lambda x, p: plain_forward(vit, x, p)):
        leaf = prompts.clone().requires_grad_()
        out = form(x, leaf)
        (out * upstream).sum().backward()
        results.append((out.detach(), leaf.grad))
    (cheap, cheap_grad), (plain, plain_grad) = results
    assert (cheap - plain).abs().max() < 1e-10
    assert (cheap_grad - plain_grad).abs().max() < 1e-10
    assert cheap_grad.abs().amax(dim=(1, 2)).min() > 1e-6  # every block's prompts matter


def test_without_prompts_the_last_block_for_the_class_token_alone_is_exact():
    vit = small()
    x = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    assert (vit.forward_features(x) - plain_forward(vit, x)).abs().max() < 1e-12


def test_weight_gradients_equal_the_plain_form():
    vit = small(depth=2)
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    grads = []
    for form in (vit.forward_features, lambda x: plain_forward(vit, x)):
        vit.zero_grad()
        form(x).square().sum().backward()
        grads.append({k: p.grad.clone() for k, p in vit.named_parameters()})
    for key, value in grads[0].items():
        assert torch.allclose(value, grads[1][key], atol=1e-11), key


def test_grey_stem_averages_colour():
    vit = small()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(vit(x), vit(x.mean(1, keepdim=True)))


def bf16_heads(queries, keys, depth=16):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, t, depth, generator=g).to(torch.bfloat16).requires_grad_() for t in (queries, keys, keys)]


@pytest.mark.parametrize("queries, keys", [(17, 20), (1, 9), (33, 47)])
def test_attention_in_bfloat16_is_attention(queries, keys):
    """Outputs and gradients within what bf16 keeps (2**-8 of a value) of float64's; sums of a few dozen products stay below three of it."""
    heads = bf16_heads(queries, keys)
    made = vision.attend(*heads)
    assert made.dtype == torch.bfloat16 and made.shape == (6, queries, 48)
    exact = [t.detach().double().requires_grad_() for t in heads]
    q, k, v = exact
    wanted = ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)
    upstream = torch.randn(made.shape, generator=torch.Generator().manual_seed(2))
    made.backward(upstream.to(torch.bfloat16))
    wanted.backward(upstream.double())
    for got, want in [(made, wanted), *((a.grad, b.grad) for a, b in zip(heads, exact, strict=True))]:
        assert (got.double() - want).norm() < 3 * 2**-8 * want.norm()


def test_attention_in_bfloat16_in_pieces_is_the_same(monkeypatch):
    """Without gradients scores are made a piece at a time, here an image."""
    heads = bf16_heads(5, 7)
    whole = vision.attend(*heads)
    monkeypatch.setattr(vision, "_SCORES", 3 * 5 * 7)
    with torch.no_grad():
        assert torch.equal(vision.attend(*heads), whole)
        monkeypatch.setattr(vision, "_SCORES", 1)
        assert torch.equal(vision.attend(*heads), whole)


def test_dropout_in_bfloat16_falls_on_the_weights():
    q, k, _ = bf16_heads(5, 40)
    ones = torch.ones_like(k)
    torch.manual_seed(0)
    made = torch.stack([vision.attend(q, k, ones, dropout=0.25) for _ in range(50)]).float()
    assert abs(made.mean() - 1) < 0.01 and made.std() > 0.02, "a row of weights sums to 1 on average, and to no 1 each time"
