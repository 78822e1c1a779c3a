"""TF-IDF of texts by scikit-learn: what its classifiers read where a network reads tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import option
from ..pipelines.errors import DataError
from ..pipelines.text_source import TextSource


@dataclass(frozen=True)
class Words:
    """Options of the features, where the set holds texts."""

    ngrams: int = option(2, "texts: words in a row that are a feature at most", source="ours; scikit-learn: 1")
    min_df: int = option(1, "texts: training texts that hold a feature at least", source="scikit-learn's default")
    sublinear_tf: bool = option(True, "texts: 1 + log of a feature's count in a text for the count", source="ours; scikit-learn: off")


def features(words: Words, source: TextSource, rows: np.ndarray) -> Any:
    """[N, D] sparse fp64 rows of length 1, of all texts of a set; vocabulary and document frequencies are those of `rows` alone.

    Raises:
        DataError: no word in all those texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, words.ngrams), min_df=words.min_df, sublinear_tf=words.sublinear_tf)
    try:
        vectorizer.fit([source.texts[row] for row in rows])
    except ValueError as error:  # scikit-learn's own, of an empty vocabulary
        raise DataError(
            f"no training text of {source.name} has a word of two letters, which TF-IDF counts; leave scikit-learn out"
        ) from error
    return vectorizer.transform(source.texts)


def stored(matrix: Any) -> int:
    """Numbers of 8 bytes that a sparse matrix holds: a value, and half as much for its column."""
    return matrix.nnz * 3 // 2
