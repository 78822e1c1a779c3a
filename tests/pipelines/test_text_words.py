"""A set's word statistics against UDA's formulas written out, document by document."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from fastssl.pipelines.text_words import Words
from tests.pipelines.made_texts import SPECIAL, toy

TEXTS = [
    "the cat sat on the mat",
    "the do-g sat on the cat the cat",
    "mark-et-s fell as the do-g rose",
    "on the on the",
    "a",
    "so so so",
    "",
    "unseen words only here the",  # does not train
]
TRAIN = np.arange(7)


@pytest.fixture(scope="module")
def made():
    tokens, pieces = toy(TEXTS, 12)
    return tokens, pieces, Words.of(tokens, TRAIN, special=SPECIAL)


def by_hand():
    """idf and S of each word, and P of each word of each document at rate 1, as the paper writes them."""
    documents = [text.split() for text in TEXTS]
    train = [documents[i] for i in TRAIN]
    found = Counter(word for document in train for word in set(document))
    idf = {word: math.log(len(train) / max(found[word], 1)) for document in documents for word in document}
    total, chances = Counter(), []
    for number, document in enumerate(documents):
        score = [document.count(word) / len(document) * idf[word] for word in document]
        if number in TRAIN:
            for word, one in zip(document, score, strict=True):
                total[word] += one / document.count(word)
        below = [max(score) - one for one in score]
        whole = sum(below)
        chances.append([len(document) * one / whole if whole > 1e-9 else 0.0 for one in below])
    return found, idf, total, chances


def test_idf_and_score_are_the_formulas(made):
    tokens, _, words = made
    found, idf, total, _ = by_hand()
    kinds = sorted({word for text in TEXTS for word in text.split()})
    np.testing.assert_allclose(words.idf, [idf[kind] for kind in kinds], rtol=1e-12)
    np.testing.assert_allclose(words.score, [total[kind] for kind in kinds], rtol=1e-12)
    assert found["the"] == 4 and found["unseen"] == 0


def test_every_token_holds_its_words_chance(made):
    tokens, _, words = made
    chances = by_hand()[3]
    got = words.chance.float().numpy()
    for row, text in enumerate(TEXTS):
        want = [chance for word, chance in zip(text.split(), chances[row], strict=True) for _ in word.split("-")]
        np.testing.assert_allclose(got[row, 1 : 1 + len(want)], want, rtol=1e-3)
        assert not got[row, 0] and not got[row, 1 + len(want) :].any()
    # Chances of a text add up to its words: `rate` of them give way on the mean.
    begins = got * tokens.first
    np.testing.assert_allclose(begins.sum(1)[[0, 1, 2, 3, 7]], [6, 8, 6, 4, 5], rtol=1e-3)


def test_words_that_say_the_same_all_stay(made):
    """0/0 in the formula: a text of one word, of one word again and again, and of no word."""
    got = made[2].chance
    assert not got[4:7].any() and made[2].chance.isfinite().all()


def test_words_that_come_are_single_tokens_of_the_training_texts(made):
    _, pieces, words = made
    _, _, total, _ = by_hand()
    drawn = [pieces[i] for i in words.tokens.tolist()]
    want = sorted({word for i in TRAIN for word in TEXTS[i].split() if "-" not in word})
    assert drawn == want and "unseen" not in drawn
    weight = np.array([max(total.values()) - total[word] for word in want])
    got = np.diff(words.cumulative.numpy(), prepend=0.0)
    np.testing.assert_allclose(got, weight / weight.sum(), rtol=1e-9, atol=1e-15)
    assert words.cumulative[-1] == 1
    everything = [word for i in TRAIN for word in TEXTS[i].split()]
    assert words.share_of_types == len(want) / len(set(everything))
    assert words.share_of_words == pytest.approx(sum("-" not in word for word in everything) / len(everything))


def test_texts_that_do_not_train_say_nothing():
    changed = [*TEXTS[:7], "the the the cat"]
    a, b = (Words.of(toy([*texts, "unseen words only here"], 12)[0], TRAIN, special=SPECIAL) for texts in (TEXTS, changed))
    assert np.array_equal(a.score, b.score) and np.array_equal(a.idf, b.idf)
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.cumulative, b.cumulative)
    assert np.array_equal(a.chance[:7], b.chance[:7])
    more = Words.of(toy(TEXTS, 12)[0], np.arange(8), special=SPECIAL)
    assert not np.array_equal(a.idf[: len(more.idf)], more.idf) and len(more.tokens) > len(a.tokens)


def test_equal_scores_draw_all_words_alike():
    words = Words.of(toy(["a b", "c d"], 4)[0], np.arange(2))
    np.testing.assert_allclose(words.cumulative, [0.25, 0.5, 0.75, 1.0])
    assert not words.chance.any()


def test_special_ids_are_never_drawn():
    tokens, pieces = toy(["a b", "b c"], 4)
    words = Words.of(tokens, np.arange(2), special={*SPECIAL, pieces.index("c")})
    assert [pieces[i] for i in words.tokens] == ["a", "b"]


def test_texts_without_any_word():
    words = Words.of(toy(["", ""], 4)[0], np.arange(2))
    assert len(words.tokens) == len(words.cumulative) == 0 and not words.chance.any()
    assert words.share_of_types == words.share_of_words == 0
