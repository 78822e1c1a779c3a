"""Texts -> logits of a finished network, as evaluation in training makes them: for eval, predict and pseudolabel.

Legend: N texts, L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..kernels import reference
from ..methods.bricks.input_gradient import input_gradient
from ..models import Network
from ..models.network import TextInput
from ..pipelines import text
from ..pipelines.errors import CheckpointError
from .inference import Trained
from .step import AMP_TYPES

CHUNK = 4096  # texts held as token ids at a time
PIECE = 64  # texts that a network reads at a time, at most
TOKENS = 16384  # and their tokens, padding included
STEP = 8  # lengths are multiples of it


class TextReader:
    """Texts as token ids of a network's own tokenizer, cut as a run cut them.

    Args:
        about: the network's tokenizer, and the tokens that it takes.
        longest: tokens of a text that are read; as many as the network takes if None.
    """

    def __init__(self, about: TextInput, longest: int | None = None):
        self.tokenizer = text.load_tokenizer(about.tokenizer)
        self.most = about.longest
        self.longest = min(longest or self.most, self.most)

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """[N, L] int32, -1 beyond a text's end."""
        # First as long as the network takes, then cut: the order in which a run does it.
        return text.shortened(text.tokenised(self.tokenizer, texts, self.most, cache=False), self.longest).ids


def reader_of(trained: Trained) -> TextReader:
    """The reader of a run on texts. Raises CheckpointError where its encoder has another tokenizer now."""
    reader = TextReader(trained.text, trained.longest)
    if trained.manifest["tokenizer"] != reader.tokenizer.fingerprint:
        raise CheckpointError(
            f"the tokenizer in {trained.text.tokenizer} is not the one that the run was trained with; bring the old one back"
        )
    return reader


def pieces(reader: TextReader, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, Tensor]]:
    """All texts, those of like length together: (rows [n], token ids [n, length] int64), a chunk of the texts held at a time."""
    for start in range(0, len(texts), CHUNK):
        ids = reader.ids(texts[start : start + CHUNK])
        size = (ids >= 0).sum(1)
        order = np.argsort(-size, kind="stable")  # the longest first: what memory it takes is known at once
        at = 0
        while at < len(order):
            # Never beyond the tokens that the network takes, which need not be a multiple.
            length = min(max(STEP, -(-int(size[order[at]]) // STEP) * STEP), ids.shape[1])
            rows = order[at : at + max(1, min(PIECE, TOKENS // length))]
            yield start + rows, torch.from_numpy(ids[rows, :length].astype(np.int64))
            at += len(rows)


def text_logits(
    network: Network, reader: TextReader, texts: Sequence[str], amp: str, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """N texts -> [N, C] fp32 logits on the host, in the order of the texts.

    Args:
        network: in evaluation mode; its device is where texts go.
        amp: mixed precision by name; fp16 networks are run in fp32 on the CPU.
        progress: called with (texts done, N).
    """
    device, made, done = next(network.parameters()).device, None, 0
    for rows, ids in pieces(reader, texts):
        answer = judged(network, ids.to(device), amp).cpu()
        made = answer.new_zeros(len(texts), answer.shape[1]) if made is None else made
        made[torch.from_numpy(rows)] = answer
        done += len(rows)
        if progress is not None:
            progress(done, len(texts))
    return torch.zeros(0, 0) if made is None else made


def attacked_texts(
    network: Network, reader: TextReader, texts: Sequence[str], label: Tensor, amp: str, epsilons: tuple[float, ...]
) -> tuple[list[Tensor], int]:
    """[N, C] logits of texts whose word embeddings were moved by each of `epsilons`, and how many texts nothing can move.

    As robustness.py, on the embedded form of texts: each number of a token's word embedding goes by epsilon along the sign of the loss's
    gradient there. Positions, padding and prompts stay as they are, and there are no borders to cut off at.

    Args:
        label: [N]. amp: as `text_logits`'; the gradient is in fp32.
    """
    device, still = next(network.parameters()).device, 0
    made: list[Tensor | None] = [None] * len(epsilons)
    for rows, ids in pieces(reader, texts):
        with torch.no_grad():
            x = network.continuous(ids.to(device)).float()
        place = torch.from_numpy(rows)
        target = label[place].to(device)
        signs = input_gradient(network, x, lambda z, target=target: reference.cross_entropy(z.float(), target).sum()).sign()
        signs = network.movable(x, signs)
        still += int((signs == 0).flatten(1).all(1).sum())
        for k, epsilon in enumerate(epsilons):
            answer = judged(network, network.moved(x, epsilon * signs), amp).cpu()
            made[k] = answer.new_zeros(len(texts), answer.shape[1]) if made[k] is None else made[k]
            made[k][place] = answer
    return [torch.zeros(0, 0) if each is None else each for each in made], still


def judged(network: Network, inputs: Tensor, amp: str) -> Tensor:
    """[n, C] fp32 logits of token ids or of embedded texts, as one batch."""
    kind = AMP_TYPES.get(amp) if amp != "fp16" or inputs.device.type != "cpu" else None
    with torch.inference_mode(), torch.autocast(inputs.device.type, dtype=kind, enabled=kind is not None, cache_enabled=False):
        return network(inputs).logits.float()
