"""TextSource: a table of texts once read and checked."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .choice import Choice


@dataclass
class TextSource:
    """Texts with what is known of them. Rows are in the table's order: training table, test table, texts from elsewhere.

    Attributes:
        name: what the set is called in reports.
        classes: class names, sorted; a label is a position in this tuple.
        ids: one name a row: "reviews/000007" by the row's number in its table, or what its column `id` says.
        label: [N] int64, -1 where unknown.
        given: [N] bool, whether the label may be given to training.
        test: [N] bool, the fixed test part.
        texts: one a row, never blank.
        content: [N] uint64, `content_of` the texts: equal rows are copies of one text.
        augmented: other wordings, one list of N for each column text_aug_0, text_aug_1, ...; "" where a row has none.
        quarantine: (id, reason) of each row that cannot be used; such rows are left out.
        warnings: sentences for the user.
        choice: which pipeline serves the set, and why.
        published: the parts are a benchmark's own, so copies between them are told of, not refused.
        extra: rows at the end that are more unlabelled texts from elsewhere; their ids begin with "extra:".
    """

    sample: ClassVar[str] = "text"
    samples: ClassVar[str] = "texts"

    name: str
    classes: tuple[str, ...]
    ids: list[str]
    label: np.ndarray
    given: np.ndarray
    test: np.ndarray
    texts: list[str]
    content: np.ndarray
    augmented: tuple[list[str], ...] = ()
    quarantine: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    choice: Choice = Choice("resident", "texts are held in memory as token ids")
    published: bool = False
    extra: int = 0

    @property
    def own(self) -> int:
        """Rows of the set itself, which come first."""
        return len(self.ids) - self.extra

    def __len__(self) -> int:
        return len(self.ids)


def content_of(texts: Iterable[str]) -> np.ndarray:
    """[N] uint64, equal for texts that differ in case, in white space or in how Unicode composes their characters alone."""
    return np.fromiter((int.from_bytes(hashlib.blake2b(_plain(text).encode(), digest_size=8).digest(), "big") for text in texts), np.uint64)


def _plain(text: str) -> str:
    if not text.isascii():
        # Folding may take composed characters apart.
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(text.casefold().split())
