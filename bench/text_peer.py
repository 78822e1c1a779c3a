"""Texts that nobody wrote, and the plain practice on them: tokenised anew for each batch, padded to its longest, a forward for each view.

The practice is that of USB's text code: the transformers library's tokenizer and DataCollatorWithPadding in a DataLoader's workers, its
model with its own attention, separate forwards of labelled, weak and strong texts (the weak ones without gradient), AdamW, and the value
of each metric asked for in each step. Strong texts are made beforehand, as its back-translations are.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from fastssl.pipelines.batch import Batch

from .peers.loaders import endless

# Tokens of AG News' training texts, special ones included: 5,600 texts by BERT's uncased tokenizer, mean 53.7.
SHARES, LENGTHS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0), (19, 32, 44, 51, 60, 81, 122, 263)
# all-MiniLM-L6-v2's size.
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30_522}


def write_encoder(folder: Path, **sizes: int) -> None:
    """A tokenizer of made-up words, each one token, and the description of a BERT without dropout; no weights."""
    from transformers import BertConfig, BertTokenizerFast

    sizes = MINILM | sizes
    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate([*special, *words(sizes["vocab_size"] - 5)])}, model_max_length=512
    )
    tokenizer.save_pretrained(str(folder))
    BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, architectures=["BertModel"]).save_pretrained(str(folder))


def words(count: int) -> list[str]:
    """`count` different words of letters."""
    letters = "bcdfghklmnprstvz"
    return ["".join(letters[i >> shift & 15] + "aeiou"[(i >> shift) % 5] for shift in (12, 8, 4, 0)) for i in range(count)]


def made_up(count: int, vocabulary: int, seed: int = 0) -> list[str]:
    """Texts with AG News' lengths, of words whose frequencies fall as Zipf's law has it."""
    rng = np.random.default_rng(seed)
    known = np.array(words(vocabulary))
    share = 1 / np.arange(1, vocabulary + 1)
    sizes = np.interp(rng.random(count), SHARES, LENGTHS).astype(int) - 2
    drawn = known[rng.choice(vocabulary, int(sizes.sum()), p=share / share.sum())]
    return [" ".join(part) for part in np.split(drawn, np.cumsum(sizes)[:-1])]


def write_table(path: Path, texts: list[str], labels: int, classes: int) -> None:
    """A table whose first `labels` texts have a label, all classes in turn."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        table.writerows([text, f"class {i % classes}" if i < labels else ""] for i, text in enumerate(texts))


class Collated:
    """Rows -> a padded batch of each of their views: what the library's collator makes of strings."""

    def __init__(self, tokenizer: Any, longest: int):
        from transformers import DataCollatorWithPadding

        self.tokenizer, self.longest, self.pad = tokenizer, longest, DataCollatorWithPadding(tokenizer)

    def __call__(self, rows: list[tuple[tuple[str, ...], int]]) -> tuple[list[dict[str, Tensor]], Tensor]:
        views = zip(*[texts for texts, _ in rows], strict=True)
        padded = [self.pad([dict(self.tokenizer(text, truncation=True, max_length=self.longest)) for text in texts]) for texts in views]
        return [dict(view) for view in padded], torch.tensor([label for _, label in rows])


class TextPractice:
    """One step a call, its data included.

    Args:
        network: ours (models.Network with a TextEncoder), whose weights and head are copied; the encoder is built by the library itself.
        tokenizer: the library's.
        texts, strong: each text, and what its strong view is.
        labels: of the first texts.
        sizes: (B, U) texts a step.
        amp: autocast's dtype; None for none.
        workers: processes of each of the two loaders.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        texts: list[str],
        strong: list[str],
        labels: list[int],
        sizes: tuple[int, int],
        *,
        threshold: float,
        lr: float,
        longest: int,
        amp: torch.dtype | None = None,
        workers: int = 0,
        device: torch.device,
    ):
        from transformers import AutoModel

        about = copy.deepcopy(network.encoder.model.config)
        self.encoder = AutoModel.from_config(about, attn_implementation="sdpa", add_pooling_layer=False).to(device)
        self.encoder.load_state_dict(network.encoder.model.state_dict())
        self.head = copy.deepcopy(network.head)
        self.encoder.train(), self.head.train()
        self.device, self.amp, self.threshold, self.tokens, self.calls = device, amp, threshold, 0, 0
        self.optimizer = torch.optim.AdamW(self.trained(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        options = {"shuffle": True, "drop_last": True, "num_workers": workers, "collate_fn": Collated(tokenizer, longest)}
        known = [((text,), label) for text, label in zip(texts, labels, strict=False)]
        self.loaders = (
            DataLoader(known * -(-64 * sizes[0] // len(known)), sizes[0], **options),
            DataLoader([(pair, -1) for pair in zip(texts, strong, strict=True)], sizes[1], **options),
        )
        self.streams: list[Iterator] | None = None
        self.meters: tuple[float, ...] = ()

    def trained(self) -> list[Tensor]:
        return [*self.encoder.parameters(), *self.head.parameters()]

    def open(self) -> None:
        self.streams = [endless(loader) for loader in self.loaders]

    def close(self) -> None:
        self.streams = None  # the loaders' iterators end their workers as they go

    def logits(self, view: dict[str, Tensor]) -> Tensor:
        hidden = self.encoder(input_ids=view["input_ids"], attention_mask=view["attention_mask"])[0]
        seen = view["attention_mask"].unsqueeze(-1).float()
        return self.head((hidden.float() * seen).sum(1) / seen.sum(1))

    def losses(self, labelled: dict[str, Tensor], label: Tensor, weak: dict[str, Tensor], strong: dict[str, Tensor]) -> tuple[Tensor, ...]:
        with torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
            logits_x, logits_s = self.logits(labelled), self.logits(strong)
            with torch.no_grad():
                guess = self.logits(weak).float().softmax(-1)
            confidence, target = guess.max(-1)
            mask = confidence.ge(self.threshold).float()
            loss_x = functional.cross_entropy(logits_x.float(), label)
            loss_u = (functional.cross_entropy(logits_s.float(), target, reduction="none") * mask).mean()
        return loss_x + loss_u, loss_x, loss_u, mask.mean()

    def of_batch(self, batch: Batch) -> float:
        """FixMatch's loss on a batch of ours, each view padded to its own longest text."""
        views = [padded(ids) for ids in (*batch.labelled, *batch.unlabelled)]
        with torch.no_grad():
            return float(self.losses(views[0], batch.label, *views[1:])[0])

    def __call__(self) -> None:
        assert self.streams is not None, "open() comes first"
        (labelled, label), (unlabelled, _) = (next(stream) for stream in self.streams)
        views = [labelled[0], *unlabelled]
        self.tokens += sum(int(view["attention_mask"].sum()) for view in views)
        self.calls += 1
        moved = [{name: table.to(self.device) for name, table in view.items()} for view in views]
        losses = self.losses(moved[0], label.to(self.device), *moved[1:])
        losses[0].backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.meters = tuple(value.item() for value in losses)


def padded(ids: Tensor) -> dict[str, Tensor]:
    """[n, L] ids, -1 beyond the end -> what the library's models take, cut at the longest text."""
    ids = ids[:, : int((ids >= 0).sum(1).max())]
    return {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long()}
