"""View name -> recipe for texts, and the recipes run on batches of token ids.

* `plain`: the text as it is. What evaluation reads.
* `weak`: the text, of which each word is left out with probability `token_dropout`; at least one word stays.
* `strong`: the steps of a policy (text_policies.py): words replaced, spans masked, a back-translation in the text's place.

Whole words are left out, replaced and masked, however many tokens they have; special tokens never are. What is taken out leaves no hole:
the rest moves up, and -1 fills the end. Every draw is a function of the row's key and of the word's number within its text, so a view
depends neither on the batch around it nor on the length to which the row is padded. Shapes are fixed and nothing is read on the host:
views can be compiled whole and captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import keyed
from .errors import ConfigError, DataError, unknown
from .text_policies import REPLACING, text_policy
from .text_words import Words, cumulative

NAMES = ("plain", "weak", "strong")
IMAGE_VIEWS = ("simclr", "probe")
LEAST_WORDS = 3  # a text of fewer words is left alone by `uniform` (UDA's code)
LONGEST_SPAN, MEAN_SPAN = 10, 3.0


def text_view(name: str) -> str:
    """The name itself. Raises ConfigError naming the nearest views."""
    if name in IMAGE_VIEWS:
        raise ConfigError(f"view '{name}' is for images; those of texts are {', '.join(NAMES)}")
    if name not in NAMES:
        raise ConfigError(unknown("view of texts", name, NAMES))
    return name


@dataclass(frozen=True)
class Variants:
    """Where a set's back-translations lie: behind its own N texts, in one list with them, which is tokenised as one.

    Attributes:
        row: [N, K] int64, places in that list; the first `count` of a row are translations, the rest the row itself.
        count: [N] int64, translations of each row.
    """

    row: Tensor
    count: Tensor


def with_variants(texts: Sequence[str], augmented: Sequence[Sequence[str]]) -> tuple[list[str], Variants | None]:
    """N texts and K columns of back-translations, "" where a row has none -> (the texts, then all translations; where these lie).

    None where there is no translation at all.
    """
    row = np.tile(np.arange(len(texts))[:, None], max(len(augmented), 1))
    count, together = np.zeros(len(texts), dtype=np.int64), list(texts)
    for column in augmented:
        there = np.flatnonzero(np.fromiter((bool(text.strip()) for text in column), bool, len(texts)))
        row[there, count[there]] = len(together) + np.arange(len(there))
        count[there] += 1
        together += [column[i] for i in there]
    if len(together) == len(texts):
        return together, None
    return together, Variants(torch.from_numpy(row), torch.from_numpy(count))


class _Text(NamedTuple):
    """n texts on the way through a view's steps."""

    ids: Tensor  # [n, L] int64
    inside: Tensor  # [n, L] bool, tokens of words
    number: Tensor  # [n, L] int64, the word's number within its text; 0 where there is none before
    first: Tensor  # [n, L] bool, where a word begins
    stays: Tensor  # [n, L] bool, tokens not taken out so far; the end is not among them

    def highest(self, u: Tensor) -> Tensor:
        """[n, 1], the highest of the words' draws u [n, L]; -1 where a text has no word."""
        return torch.where(self.inside & self.stays, u, -1.0).amax(1, keepdim=True)


class TextAugmenter:
    """Makes views of token ids on one device.

    Args:
        words: the set's statistics; policies that replace words need them, others take None.
        mask: id of the tokenizer's mask token; None: span_mask leaves the words out instead.
        policy: of the strong view, by name.
        rate: share of words that a strong view replaces or masks.
        token_dropout: share of words that a weak view leaves out.
        variants: where the set's back-translations lie, which back_translation needs.

    Raises:
        ConfigError: an unknown policy, a share outside [0, 1], words or variants missing where the policy needs them.
        DataError: the policy replaces words, and the set has no word of a single token.
    """

    def __init__(
        self,
        words: Words | None,
        *,
        mask: int | None,
        policy: str = "tfidf",
        rate: float = 0.3,
        token_dropout: float = 0.0,
        variants: Variants | None = None,
        device: torch.device | str = "cpu",
    ):
        self.steps = text_policy(policy)
        for name, share in (("replace_rate", rate), ("token_dropout", token_dropout)):
            if not 0 <= share <= 1:
                raise ConfigError(f"data.{name} is a share of words between 0 and 1, not {share}")
        if set(self.steps) & set(REPLACING):
            if words is None:
                raise ConfigError(f"policy '{policy}' replaces words by their statistics; give `words`")
            if not len(words.tokens):
                raise DataError(f"no word of these texts is a single token, and policy '{policy}' draws such words; take span_mask")
        self.words, self.mask, self.policy, self.rate, self.token_dropout = words, mask, policy, float(rate), float(token_dropout)
        self._spans = torch.from_numpy(span_table()).to(device)
        if "back_translation" not in self.steps:
            return
        if variants is None:
            raise ConfigError(f"policy '{policy}' needs columns text_aug_0, text_aug_1 ... of back-translations; this set has none")
        self._variant, self._count = variants.row.to(device), variants.count.to(device)

    def reads(self, rows: Tensor, keys: Tensor, name: str) -> Tensor:
        """Which texts of the list (`with_variants`) a view of `rows` [n] is made of, [n]: what `view` takes is gathered from there.

        The rows themselves, but for a strong view by back_translation: one of the row's translations, the text itself where it has none.
        """
        if name != "strong" or "back_translation" not in self.steps:
            return rows
        chosen = keyed.below(keyed.bits(keys, 1)[:, 0], self._count.index_select(0, rows))
        return self._variant.index_select(0, rows).gather(1, chosen[:, None])[:, 0]

    def view(self, ids: Tensor, word: Tensor, first: Tensor, chance: Tensor | None, keys: Tensor, name: str) -> Tensor:
        """The named view: [n, L] int64, -1 beyond the end. Nothing that comes in is written to.

        Args:
            ids: [n, L] int, -1 beyond the end, special tokens included.
            word: [n, L] int, -1 for special tokens and beyond the end (what else it says is not read here).
            first: [n, L] bool, where a word begins.
            chance: [n, L] float, these tokens' Words.chance; None where the policy is without tfidf.
            keys: [n] int64.

        Raises:
            ConfigError: an unknown view.
        """
        text_view(name)
        ids = ids.to(torch.int64)
        if name == "plain" or (name == "weak" and self.token_dropout == 0):
            return ids
        inside = word >= 0
        begins = first & inside
        text = _Text(ids, inside, (begins.cumsum(1) - 1).clamp(min=0), begins, ids >= 0)
        # Each step has a stream of its own; `reads` draws from the first.
        streams = keyed.bits(keys, 1 + len(self.steps))
        if name == "weak":
            return closed(self._without(text, streams[:, 0], self.token_dropout))
        for number, step in enumerate(self.steps, 1):
            if step == "span_mask":
                text = self._masked(text, streams[:, number])
            elif step in REPLACING:
                text = self._replaced(text, streams[:, number], chance if step == "tfidf" else None)
        return closed(text)

    @staticmethod
    def _without(text: _Text, keys: Tensor, share: float) -> _Text:
        """Leaves out words with probability `share`; where all would go one stays."""
        (u,) = _drawn(keys, text.number, 1)
        return text._replace(stays=text.stays & ~(text.inside & (u < share) & (u < text.highest(u))))

    def _replaced(self, text: _Text, keys: Tensor, chance: Tensor | None) -> _Text:
        """Other words in the place of some: by their `chance`, or all alike and by any word where it is None."""
        coin, which = _drawn(keys, text.number, 2)
        if chance is not None:
            gone = coin < chance.to(torch.float64) * self.rate
            at = torch.searchsorted(self.words.cumulative, which, right=True).clamp(max=len(self.words.tokens) - 1)
        else:
            enough = text.first.sum(1, keepdim=True) >= LEAST_WORDS
            gone = (coin < self.rate) & enough
            at = (which * len(self.words.tokens)).long()
        gone = gone & text.inside
        new = self.words.tokens[at]
        return text._replace(ids=torch.where(gone & text.first, new, text.ids), stays=text.stays & (text.first | ~gone))

    def _masked(self, text: _Text, keys: Tensor) -> _Text:
        """Spans of words masked, or left out where the tokenizer has no mask token; at least one word stays as it is."""
        # arange, but as data: inductor makes index arithmetic of what it knows beforehand, which 64-bit keys overflow.
        places = (text.ids >= -1).cumsum(1) - 1
        covered = self._covered(*_drawn(keys, places, 3)[:2]).gather(1, text.number) & text.inside
        # Whole texts are covered where they are short: the word with the highest draw comes out of it.
        u = _drawn(keys, text.number, 3)[2]
        spared = (covered | ~text.inside | ~text.stays).all(1, keepdim=True) & (u == text.highest(u))
        covered = covered & ~spared
        if self.mask is None:
            return text._replace(stays=text.stays & ~covered)
        return text._replace(ids=torch.where(covered, self.mask, text.ids))

    def _covered(self, gap_u: Tensor, span_u: Tensor) -> Tensor:
        """Which words lie in spans: two uniform draws for each word [n, L] -> [n, L] bool.

        Gaps and spans take turns from the text's first word on, spans with lengths by the table, gaps with geometric lengths from 0 on
        whose mean makes spans `rate` of the words. The first of them is drawn as if the text began amid an endless one, so that every
        word is as likely to be covered.
        """
        if self.rate in (0.0, 1.0):
            return torch.full_like(gap_u, self.rate == 1, dtype=torch.bool)
        goes_on = 1 - 1 / (1 + MEAN_SPAN * (1 - self.rate) / self.rate)  # the chance of a gap to be longer by one
        lengths = lambda u: torch.log1p(-u).div(float(np.log(goes_on))).floor()  # noqa: E731
        gap, span = lengths(gap_u), 1.0 + torch.searchsorted(self._spans[0], span_u, right=True)
        # The first gap: none with probability `rate`, and then what is left of a span; else one word and more.
        amid = gap_u[:, :1] < self.rate
        begun = 1.0 + lengths(((gap_u[:, :1] - self.rate) / (1 - self.rate)).clamp(min=0))
        left = 1.0 + torch.searchsorted(self._spans[1], span_u[:, :1].contiguous(), right=True)
        gap = torch.cat([torch.where(amid, 0.0, begun), gap[:, 1:]], 1)
        span = torch.cat([torch.where(amid, left, span[:, :1]), span[:, 1:]], 1)
        ends = (gap + span).cumsum(1)
        place = torch.arange(gap_u.shape[1], dtype=ends.dtype, device=ends.device).expand(ends.shape).contiguous()
        started, ended = (torch.searchsorted(edge.contiguous(), place, right=True) for edge in (ends - span, ends))
        return started > ended


def _drawn(keys: Tensor, number: Tensor, count: int) -> tuple[Tensor, ...]:
    """`count` uniform draws [n, L] for words of these numbers [n, L] or [L]: the same for any L, and at each token of a word."""
    base = keys[:, None] + keyed.GOLDEN
    return tuple(keyed.unit(keyed.mixed(base + keyed.GOLDEN * (count * number + draw))) for draw in range(count))


def closed(text: _Text) -> Tensor:
    """The tokens that stay, moved up: [n, L] int64, -1 beyond them."""
    stays = text.stays
    up = stays.cumsum(1)
    # Tokens that go take the places behind: each place is written once.
    place = torch.where(stays, up - 1, up[:, -1:] + (~stays).cumsum(1) - 1)
    return torch.full_like(text.ids, -1).scatter(1, place, torch.where(stays, text.ids, -1))


def span_table() -> np.ndarray:
    """[2, LONGEST_SPAN] float64: cumulative probability of span lengths 1, 2 ..., and of what is left of a span at a random word in it.

    Geometric lengths, cut at the longest and made to sum to 1 as SpanBERT does it, with the parameter whose mean is MEAN_SPAN.
    """
    length = np.arange(1, LONGEST_SPAN + 1)
    shares = lambda p: (1 - p) ** (length - 1) / ((1 - p) ** (length - 1)).sum()  # noqa: E731
    low, high = 1e-6, 1 - 1e-6
    for _ in range(60):  # the mean falls as p rises
        middle = (low + high) / 2
        low, high = (middle, high) if shares(middle) @ length > MEAN_SPAN else (low, middle)
    share = shares(low)
    return np.stack([cumulative(share), cumulative(share[::-1].cumsum()[::-1])])
