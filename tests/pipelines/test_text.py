"""Tokenising: ids against the library's own, word types, cuts, the cache, and lengths."""

import itertools

import numpy as np
import pytest

from fastssl.pipelines import text
from fastssl.pipelines.errors import SetupError
from tests import text_set

TEXTS = [
    "business sports sports.",
    "Sports businesss business music",  # businesss is two tokens
    "🙂 שלום sports!",
    "sports " * 60,
    "never heard of it",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text.load_tokenizer(str(text_set.encoder(tmp_path_factory.mktemp("encoder"))))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_ids_are_the_librarys_own(tokenizer):
    made = text.tokenised(tokenizer, TEXTS, 32)
    for row, words in zip(made.ids, TEXTS, strict=True):
        own = tokenizer.backend(words, truncation=True, max_length=32)["input_ids"]
        assert row[: len(own)].tolist() == own and (row[len(own) :] == -1).all()
    assert made.cut == 1 and made.size[3] == 32


def test_a_word_type_is_one_number_wherever_the_word_stands(tokenizer):
    made = text.tokenised(tokenizer, TEXTS, 32)
    kinds: dict[tuple, set] = {}
    for row, words in enumerate(TEXTS):
        encoding = tokenizer.backend(words, truncation=True, max_length=32)
        for _, group in itertools.groupby(range(len(encoding.word_ids())), key=lambda i: encoding.word_ids()[i]):
            places = list(group)
            if encoding.word_ids()[places[0]] is None:
                assert (made.word[row, places] == -1).all() and not made.first[row, places].any()
                continue
            assert made.first[row, places].tolist() == [True] + [False] * (len(places) - 1)
            (kind,) = set(made.word[row, places].tolist())
            kinds.setdefault(tuple(made.ids[row, places].tolist()), set()).add(kind)
    assert all(len(found) == 1 for found in kinds.values())
    assert len(set.union(*kinds.values())) == len(kinds), "two words share a number"
    assert any(len(ids) == 2 for ids in kinds)


def test_a_cut_keeps_what_ends_a_text(tokenizer):
    whole = text.tokenised(tokenizer, TEXTS, 32)
    short = text.shortened(whole, 6)
    assert short.cut == 1 + int((whole.size[:3] > 6).sum()) + int(whole.size[4] > 6)
    own = [tokenizer.backend(words, truncation=True, max_length=6)["input_ids"] for words in TEXTS]
    assert [row[row >= 0].tolist() for row in short.ids] == own
    assert (short.word[3] == -1).tolist() == [True, *[False] * 4, True]
    assert text.shortened(whole, 32) is whole


def test_a_megabyte_of_text_is_cut_and_not_read_whole(tokenizer, monkeypatch):
    read = []
    backend = tokenizer.backend

    def watched(texts, **options):
        read.extend(texts)
        return backend(texts, **options)

    monkeypatch.setattr(tokenizer, "backend", watched)
    found = tokenizer.encoded(["sports " * 150_000], 16)
    assert len(found[0].ids) == 16 and len(read[0]) <= 16 * 64


def test_the_cache_serves_the_same_texts_alone(tokenizer, monkeypatch):
    first = text.tokenised(tokenizer, TEXTS, 32)
    made = []
    original = text._made
    monkeypatch.setattr(text, "_made", lambda *a: (made.append(1), original(*a))[1])
    seen = []
    again = text.tokenised(tokenizer, TEXTS, 32, lambda done, total: seen.append((done, total)))
    assert not made and seen == [(5, 5)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    text.tokenised(tokenizer, [*TEXTS[:-1], "another"], 32)
    text.tokenised(tokenizer, TEXTS, 16)
    text.tokenised(tokenizer, ["".join(TEXTS[:2]), *TEXTS[2:]], 32)
    assert len(made) == 3


def test_a_broken_cache_is_made_anew(tokenizer):
    first = text.tokenised(tokenizer, TEXTS, 32)
    (kept,) = text.cache_folder().iterdir()
    for content in (b"", kept.read_bytes()[:300], b"PK\x03\x04 nothing"):
        kept.write_bytes(content)
        assert np.array_equal(text.tokenised(tokenizer, TEXTS, 32).ids, first.ids)


def test_a_cache_that_cannot_be_written_stops_nothing(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert text.tokenised(tokenizer, TEXTS, 32).size[0] > 3


def test_fixed_lengths_pad_least():
    rng = np.random.default_rng(0)
    size = np.clip(rng.lognormal(3.5, 0.5, 500).astype(int), 3, 128)
    edges = range(8, 129, 8)
    tokens = lambda lengths: sum(min(edge for edge in lengths if edge >= n) for n in size)  # noqa: E731
    for count in (1, 2, 3):
        best = min(tokens((*some, 128)) for some in itertools.combinations(list(edges)[:-1], count - 1))
        found = text.fixed_lengths(size, 128, count)
        assert found[-1] == 128 and len(found) <= count and tokens(found) == best
    assert text.fixed_lengths(np.full(10, 16), 16, 3) == (16,)
    assert text.fixed_lengths(np.array([3, 21]), 21, 3) == (8, 21)


def test_the_usual_length_holds_ninety_nine_of_a_hundred():
    size = np.array([20] * 99 + [500])
    assert text.usual_length(size, 512) == 24 and text.usual_length(size, 16) == 16
    assert text.usual_length(np.full(100, 33), 512) == 40


def test_a_folder_without_a_tokenizer_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SetupError, match="has no tokenizer that can be read .*tokenizer.json"):
        text.load_tokenizer(str(tmp_path))
