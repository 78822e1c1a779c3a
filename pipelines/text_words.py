"""What a set's words say: the statistics behind UDA's word replacement.

Xie et al. (2020), "Unsupervised Data Augmentation for Consistency Training", section 3.2 and appendix B, as in their code. Of word types v
in the documents d that train, N of them:

* idf(v) = ln(N / df(v)); df counts documents. A word that no such document has counts as if one had it.
* s_i = tf_i * idf(x_i) for the i-th of a document's n words, tf_i its type's count / n; C = max_i s_i.
* Word i gives way with probability rate * n * (C - s_i) / sum_j (C - s_j), which the comparison with a uniform draw clips at 1. The word
  that says most stays. Where all words of a document say the same the fraction is 0/0: they stay, as under the code's NaN.
* The word that comes instead is v with probability proportional to S_max - S(v), where S(v) = sum over documents of tf * idf. Where all S
  are equal, any word.

A document is a text as far as it is read. Only words of a single token come instead of others, so that a view is never longer than its
text; `share_of_types` and `share_of_words` say how many of the set's words those are. Words, not tokens, give way, of any number of tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .text import Tokens


@dataclass(frozen=True)
class Words:
    """Statistics of one set's words.

    Attributes:
        chance: [N, L] float16 on the device: a token's word gives way with this probability at rate 1; it may exceed 1; 0 for special
            tokens and beyond the end. All tokens of a word hold the same.
        tokens: [V] int64 on the device: the words that may come instead, one token each, in ascending order of ids.
        cumulative: [V] float64 on the device: their cumulative probability, last 1.
        idf, score: [T] float64 of each word type: idf(v) and S(v).
        share_of_types, share_of_words: of word types, and of words, in the rows that train: those that may come instead.
    """

    chance: Tensor
    tokens: Tensor
    cumulative: Tensor
    idf: np.ndarray
    score: np.ndarray
    share_of_types: float
    share_of_words: float

    @classmethod
    def of(cls, tokens: Tokens, rows: np.ndarray, device: torch.device | str = "cpu", special: Collection[int] = frozenset()) -> Words:
        """Statistics of the documents `rows` ([m] int, each once), and every row's chances by them.

        Args:
            tokens: of all texts, those that do not train and back-translations among them.
            rows: those that train; labels are never read.
            special: ids that are never drawn (an unknown word's).
        """
        ids, word = tokens.ids, tokens.word
        begins = tokens.first & (word >= 0)
        row, column = np.nonzero(begins)
        kind = word[row, column].astype(np.int64)
        types = int(kind.max()) + 1 if len(kind) else 0
        length = np.bincount(row, minlength=len(ids))  # words of a text
        # A word's count in its text, once for each pair of text and type; pairs come out in order of texts.
        pair, inverse, count = np.unique(row * max(types, 1) + kind, return_inverse=True, return_counts=True)
        pair_row, pair_kind = np.divmod(pair, max(types, 1))
        trains = np.zeros(len(ids), dtype=bool)
        trains[rows] = True
        used = trains[pair_row]
        found = np.bincount(pair_kind[used], minlength=types)
        idf = np.log(max(len(rows), 1) / np.maximum(found, 1))
        score = count / length[pair_row] * idf[pair_kind]
        total = np.bincount(pair_kind[used], weights=score[used], minlength=types)

        chance, several = _chances(score, inverse, pair_row, row, length), _pieces(begins, word) > 1
        one = found > 0
        one[kind[several]] = False
        token = np.full(types, -1, dtype=np.int64)
        token[kind] = ids[row, column]
        one &= ~np.isin(token, list(special))
        drawn = np.flatnonzero(one)
        drawn = drawn[np.argsort(token[drawn], kind="stable")]
        spread = np.zeros(ids.shape, dtype=np.float16)
        if len(chance):
            inside = word >= 0
            spread[inside] = chance[(np.cumsum(begins.ravel()) - 1).reshape(ids.shape)[inside]]
        seen = trains[row]
        return cls(
            torch.from_numpy(spread).to(device),
            torch.from_numpy(token[drawn]).to(device),
            torch.from_numpy(cumulative(total[found > 0].max(initial=0.0) - total[drawn])).to(device),
            idf,
            total,
            len(drawn) / max(int((found > 0).sum()), 1),
            float(one[kind[seen]].mean()) if seen.any() else 0.0,
        )


def _chances(score: np.ndarray, inverse: np.ndarray, pair_row: np.ndarray, row: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The probability of each word at rate 1: `score` of each pair of text and type, `inverse` the pair of each word."""
    if not len(score):
        return score
    highest = np.zeros(len(length))
    starts = np.flatnonzero(np.diff(pair_row, prepend=-1))
    highest[pair_row[starts]] = np.maximum.reduceat(score, starts)
    below = highest[row] - score[inverse]
    below[below <= 1e-12 * highest[row]] = 0.0  # equal but for rounding
    whole = np.bincount(row, weights=below, minlength=len(length))[row]
    return np.divide(length[row] * below, whole, out=np.zeros_like(below), where=whole > 0)


def _pieces(begins: np.ndarray, word: np.ndarray) -> np.ndarray:
    """Tokens of each word, in the order of `begins`."""
    return np.bincount((np.cumsum(begins.ravel()) - 1)[(word >= 0).ravel()], minlength=int(begins.sum()))


def cumulative(weight: np.ndarray) -> np.ndarray:
    """Cumulative probability of non-negative weights; of equal ones where all are 0."""
    summed = np.cumsum(weight if weight.any() else np.ones_like(weight))
    return summed / summed[-1] if len(summed) else summed
