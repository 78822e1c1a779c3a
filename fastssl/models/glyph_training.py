"""Trains glyph_clip from rendered characters: python -m fastssl.models.glyph_training --out FILE.

Seeded: the same seed, steps and thread count give the same weights. The only data are fonts shipped by matplotlib and the strokes in
`glyph_strokes`; scikit-learn's digits are read by the final evaluation alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fastssl.pipelines.errors import FastsslError

from .glyph_clip import MEAN, STD, GlyphCLIP, load, tokenize
from .glyph_evaluation import measure
from .glyph_noise import render
from .glyphs import GlyphBank, build_bank
from .names import CHARACTERS, DIGITS, TEMPLATES, phrases
from .vit import Attention

STEPS = 4000


class _WideAttention(Attention):
    """The same attention with its core in fp32: on a CPU the bf16 one is four times slower at 17 tokens (measured, torch 2.15)."""

    def forward(self, x: Tensor, prefix: Tensor | None = None, queries: int | None = None) -> Tensor:
        q, k, v = self.qkv(x).split(x.shape[-1], dim=-1)
        with torch.autocast("cpu", enabled=False):
            q, k, v = (t.float().unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q[:, :queries], k, v))
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(out)


class Sampler:
    """Draws noisy pictures: first the character (digits more often), then the kind of field, then one field of it."""

    def __init__(self, bank: GlyphBank, digit_share: float, pen_share: float):
        self.bank = bank
        self.pools = {}
        for character in range(len(CHARACTERS)):
            of_it = bank.character == character
            fonts, pen = (of_it & (bank.kind < 2)).nonzero()[:, 0], (of_it & (bank.kind == 2)).nonzero()[:, 0]
            self.pools[character] = (fonts, pen)
        self.weight = torch.ones(len(CHARACTERS))
        self.weight[: len(DIGITS)] = digit_share / (1 - digit_share) * (len(CHARACTERS) - len(DIGITS)) / len(DIGITS)
        self.pen_share = pen_share

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> pictures [n, 1, 32, 32] normalised fp32, characters [n] int64."""
        character = torch.multinomial(self.weight, n, replacement=True, generator=generator)
        by_pen = torch.rand(n, generator=generator) < self.pen_share
        place = torch.rand(n, generator=generator)
        rows = []
        for c, p, u in zip(character.tolist(), by_pen.tolist(), place.tolist(), strict=True):
            fonts, pen = self.pools[c]
            pool = pen if p and len(pen) else fonts
            rows.append(pool[int(u * len(pool))])
        index = torch.stack(rows)
        return (render(self.bank.fields[index], self.bank.kind[index], generator) - MEAN) / STD, character


class Words:
    """One random phrase in one random template for every character, tokenised beforehand."""

    def __init__(self):
        self.tokens = [tokenize([t.format(p) for p in phrases(c) for t in TEMPLATES]) for c in CHARACTERS]

    def __call__(self, generator: torch.Generator) -> Tensor:
        """-> [characters, CONTEXT] int64."""
        u = torch.rand(len(self.tokens), generator=generator).tolist()
        return torch.stack([rows[int(x * len(rows))] for x, rows in zip(u, self.tokens, strict=True)])


def contrast(image: Tensor, text: Tensor, character: Tensor, scale: Tensor) -> Tensor:
    """Image-to-text softmax over all names, and text-to-image softmax whose positives are all the batch's pictures of that character
    (multi-positive as in UniCL, Yang et al. 2022, eq. 3).

    image [N, e] and text [K, e] of unit length, character [N] int64 in [0, K) -> [] fp32.
    """
    logits = scale * image @ text.T
    forth = F.cross_entropy(logits, character, label_smoothing=0.05)
    names, row = character.unique(return_inverse=True)
    positive = F.one_hot(row, len(names)).T.float()
    back = -(positive * logits.T[names].log_softmax(-1)).sum(-1) / positive.sum(-1)
    return forth + 0.5 * back.mean()


def _optimizers(model: GlyphCLIP, prototypes: nn.Parameter) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for the rest: half the steps of AdamW alone to the same loss."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks" in name]
    taken = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in taken] + [prototypes]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
    muon = torch.optim.Muon(hidden, lr=4e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for optimizer in (adam, muon):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [adam, muon]


def train(
    steps: int,
    seed: int = 0,
    *,
    batch: int = 256,
    minutes: float | None = None,
    copies: tuple[int, int] = (1200, 150),
    bank: GlyphBank | None = None,
    log: Callable[[str], None] | None = None,
) -> tuple[GlyphCLIP, Sampler, list[float]]:
    """Train from scratch on the CPU.

    Args:
        steps: updates.
        seed: of everything: weights, pen, noise, words.
        batch: pictures an update.
        minutes: the schedule follows the clock for so long, not `steps`; such a run cannot be repeated exactly.
        copies: drawn copies of every numeral and of every capital in the bank.
        bank: the bank itself, instead of one built from `seed` and `copies`.
        log: takes a line of progress now and then.

    Returns:
        The averaged model, its sampler, and the loss of every step.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sampler, words = Sampler(build_bank(*copies, generator) if bank is None else bank, digit_share=0.5, pen_share=0.55), Words()
    model = GlyphCLIP()
    # One free vector a character, trained beside the text tower and thrown away: it gives the image tower a clear
    # target from the first step, long before the text tower can tell names apart.
    prototypes = nn.Parameter(torch.randn(len(CHARACTERS), model.projection.out_features) * 0.1)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Attention):
            module.__class__ = _WideAttention
    model.train()
    optimizers = _optimizers(model, prototypes)
    losses: list[float] = []
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak"] * min(1, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * done))
        x, character = sampler(batch, generator)
        with torch.autocast("cpu", torch.bfloat16):
            image = F.normalize(model.projection(model.vision.forward_features(x)).float(), dim=-1)
            text = F.normalize(model.text_projection(model.text(words(generator))).float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=100)
        beside = F.cross_entropy(scale * image @ F.normalize(prototypes, dim=-1).T, character, label_smoothing=0.05)
        loss = contrast(image, text, character, scale) + beside
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(float(loss.detach()))
        step += 1
        done = (time.monotonic() - start) / 60 / minutes if minutes else step / steps
        if log and (step % 100 == 0 or done >= 1):
            recent, pace = losses[-100:], batch * step / (time.monotonic() - start)
            log(f"step {step}  {100 * done:.1f} %  loss {sum(recent) / len(recent):.3f}  {pace:.0f} pictures/s")
    return average, sampler, losses


@torch.inference_mode()
def render_accuracy(model: GlyphCLIP, sampler: Sampler, seed: int = 987_654, pictures: int = 4096) -> tuple[float, float]:
    """Accuracy on renders of a noise seed that training did not use: over all characters, and of the digits among digits."""
    generator = torch.Generator().manual_seed(seed)
    x, character = sampler(pictures, generator)
    logits = torch.cat([model.zero_shot(part, list(CHARACTERS)) for part in x.split(512)])
    digit = character < len(DIGITS)
    among = logits[digit][:, : len(DIGITS)].argmax(-1) == character[digit]
    return float((logits.argmax(-1) == character).float().mean()), float(among.float().mean())


def save(model: GlyphCLIP, path: str | Path) -> None:
    """Write the weights in fp16, all or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, draft, metadata={"model": "glyph_clip"})
        draft.chmod(0o644)  # safetensors leaves its files to their owner alone
        os.replace(draft, path)


def main() -> None:
    """Command line: train, save, read the file back, and print what it is worth as one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m fastssl.models.glyph_training", description="Trains glyph_clip from rendered characters."
    )
    parser.add_argument("--out", required=True, help="safetensors file to write")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=STEPS, help=f"updates (default {STEPS}, those of the file in the package)")
    length.add_argument("--minutes", type=float, help="train for so long instead; such a run cannot be repeated exactly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number gives other rounding (default 2)")
    options = parser.parse_args()
    if options.steps < 1 or (options.minutes is not None and options.minutes <= 0):
        parser.error("--steps and --minutes must be positive")
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    try:
        model, sampler, losses = train(
            options.steps, options.seed, minutes=options.minutes, log=lambda line: print(line, file=sys.stderr, flush=True)
        )
    except FastsslError as error:
        print(f"glyph_training: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    seconds = time.monotonic() - start
    save(model, options.out)
    model = load(options.out)
    everything, digits = render_accuracy(model, sampler)
    result = {"steps": len(losses), "seconds": round(seconds), "loss": losses[-1], "renders": everything, "rendered_digits": digits}
    print(json.dumps(result | measure(model)))


if __name__ == "__main__":
    main()
