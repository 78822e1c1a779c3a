"""A toy tokenizer for the tests of words and views: a word is its pieces joined by "-", a piece one token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastssl.pipelines.text import Tokens

BEGIN, END, MASK = 0, 1, 2
SPECIAL = frozenset((BEGIN, END, MASK))


def toy(texts: Sequence[str], length: int) -> tuple[Tokens, list[str]]:
    """(tokens, piece of each id)."""
    pieces = ["[CLS]", "[SEP]", "[MASK]", *sorted({piece for text in texts for word in text.split() for piece in word.split("-")})]
    number, kinds = {piece: i for i, piece in enumerate(pieces)}, sorted({word for text in texts for word in text.split()})
    ids, word, first = (np.full((len(texts), length), empty) for empty in (np.int32(-1), np.int32(-1), False))
    for row, text in enumerate(texts):
        tokens = [(BEGIN, -1, False)]
        for one in text.split():
            tokens += [(number[piece], kinds.index(one), at == 0) for at, piece in enumerate(one.split("-"))]
        tokens.append((END, -1, False))
        assert len(tokens) <= length, f"'{text}' has {len(tokens)} tokens"
        for column, values in enumerate(tokens):
            ids[row, column], word[row, column], first[row, column] = values
    return Tokens(ids, word, first, 0), pieces
