"""Texts -> token ids: once, with a progress bar, and kept in the user's cache. The door to the transformers library's tokenizers."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import SetupError

_BLOCK = 1000  # texts tokenised at a time
_CHARACTERS = 64  # characters of a text that are read for each token: no tokenizer's tokens are longer than that on the mean
_VERSION = 1  # of what the cache holds
_WORD = np.uint64(0x9E3779B97F4A7C15)


class Tokens(NamedTuple):
    """N texts as token ids, special tokens included."""

    ids: np.ndarray  # [N, L] int32, -1 beyond a text's end
    word: np.ndarray  # [N, L] int32 word type that the token belongs to, a number for each word of the set; -1: special token, or none
    first: np.ndarray  # [N, L] bool, whether the token begins its word
    cut: int  # texts that were longer than L

    @property
    def size(self) -> np.ndarray:
        """[N] int64 tokens of each text."""
        return (self.ids >= 0).sum(1)


class Tokenizer:
    """A tokenizer of the transformers library, of its fast kind.

    Attributes:
        name: folder or hub name.
        special: ids of special tokens.
        mask: id of the mask token, None where there is none.
        vocabulary: number of ids.
        longest: tokens that it says its network takes.
    """

    def __init__(self, name: str, backend: Any):
        self.name, self.backend = name, backend
        self.special = frozenset(int(i) for i in backend.all_special_ids)
        self.mask = backend.mask_token_id
        self.vocabulary = len(backend)
        self.longest = int(min(backend.model_max_length, 1 << 20))

    def encoded(self, texts: Sequence[str], longest: int) -> list[Any]:
        """The library's encodings, cut at `longest` tokens."""
        short = [text[: longest * _CHARACTERS] for text in texts]
        return self.backend(short, truncation=True, max_length=longest, padding=False).encodings

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides how a text is tokenised."""
        about = json.loads(self.backend.backend_tokenizer.to_str())
        # What the last call cut and padded at stands in it too.
        about |= {"truncation": None, "padding": None}
        return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder or of a hub's repository (from its cache where it is there).

    Raises:
        SetupError: transformers is not installed, or there is no tokenizer of the fast kind.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise SetupError("texts need the transformers library, which is not installed; run: pip install 'fastssl[text]'") from error
    try:
        backend = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except Exception as error:  # the library raises anything from OSError to TypeError where files are missing or broken
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SetupError(
            f"{name} has no tokenizer that can be read ({said[:200]}); a folder needs tokenizer.json beside config.json, a hub's name "
            "the network or its cache"
        ) from None
    if not getattr(backend, "is_fast", False):
        raise SetupError(f"{name} has a tokenizer of the slow kind alone, which does not tell words apart; give one with a tokenizer.json")
    return Tokenizer(name, backend)


def tokenised(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int, progress: Callable[[int, int], None] | None = None, *, cache: bool = True
) -> Tokens:
    """N texts as ids of at most `longest` tokens; from the cache where the very same texts were tokenised so before.

    Args:
        progress: called with (texts done, N).
        cache: look into the user's cache, and leave the ids there; a cache that cannot be written is passed over.
    """
    place = _place(tokenizer, texts, longest) if cache else None
    found = None if place is None else _kept(place)
    if found is None:
        found = _made(tokenizer, texts, longest, progress)
        if place is not None:
            _keep(place, found)
    elif progress is not None:
        progress(len(texts), len(texts))
    return found


def _made(tokenizer: Tokenizer, texts: Sequence[str], longest: int, progress: Callable[[int, int], None] | None) -> Tokens:
    count, cut = len(texts), 0
    ids = np.full((count, longest), -1, np.int32)
    within = np.full((count, longest), -1, np.int32)  # number of the word within its text
    for start in range(0, count, _BLOCK):
        pieces = tokenizer.encoded(texts[start : start + _BLOCK], longest)
        size = np.array([len(piece) for piece in pieces])
        row = np.repeat(np.arange(start, start + len(pieces)), size)
        column = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
        ids[row, column] = np.fromiter(itertools.chain.from_iterable(piece.ids for piece in pieces), np.int32, len(row))
        words = (-1 if w is None else w for w in itertools.chain.from_iterable(piece.word_ids for piece in pieces))
        within[row, column] = np.fromiter(words, np.int32, len(row))
        cut += sum(bool(piece.overflowing) for piece in pieces)
        if progress is not None:
            progress(min(start + _BLOCK, count), count)
    return Tokens(ids, *_words(ids, within), cut)


def _words(ids: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Word types and word starts of [N, L] ids, by the number of each token's word within its text. A word is the run of its ids."""
    before = np.concatenate([np.full((len(ids), 1), -1, within.dtype), within[:, :-1]], axis=1)
    first = (within >= 0) & (within != before)
    word = np.full(ids.shape, -1, np.int32)
    inside = within >= 0
    flat, starts = ids[inside].astype(np.uint64), np.flatnonzero(first[inside])
    if len(starts):
        run = np.cumsum(first[inside]) - 1
        place = (np.arange(len(flat)) - starts[run]).astype(np.uint64)
        # A sum of well-mixed numbers of (id, place): equal for equal runs, and for others by a chance of 2^-64.
        digest = np.add.reduceat(_mixed((flat << np.uint64(16)) + place), starts)
        kinds = np.unique(digest, return_inverse=True)[1]
        word[inside] = kinds[run]
    return word, first


def _mixed(words: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser of uint64 words."""
    words = words * _WORD + _WORD
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def shortened(tokens: Tokens, longest: int) -> Tokens:
    """The same texts cut at fewer tokens; the special tokens at a text's end stay there."""
    if longest >= tokens.ids.shape[1]:
        return tokens
    ids, word, first = (table[:, :longest].copy() for table in tokens[:3])
    over = np.flatnonzero(tokens.ids[:, longest] >= 0)
    for row in over:
        size = int((tokens.ids[row] >= 0).sum())
        tail = tokens.word[row, :size]
        ending = size - 1 - int(np.flatnonzero(tail >= 0)[-1]) if (tail >= 0).any() else 0
        if ending:
            ids[row, longest - ending :] = tokens.ids[row, size - ending : size]
            word[row, longest - ending :], first[row, longest - ending :] = -1, False
    return Tokens(ids, word, first, len(over))


def usual_length(size: np.ndarray, most: int) -> int:
    """The multiple of 8 that holds 99 of 100 texts of `size` tokens, at most `most`."""
    return min(most, max(8, -(-int(np.quantile(size, 0.99, method="inverted_cdf")) // 8) * 8))


def fixed_lengths(size: np.ndarray, longest: int, count: int, *, step: int = 8) -> tuple[int, ...]:
    """At most `count` lengths, multiples of `step` and `longest` the last, to which texts of `size` [N] tokens are padded for the fewest
    tokens in all; exact, by dynamic programming over the multiples."""
    edges = [*range(step, longest, step), longest]
    held = np.searchsorted(np.sort(size), edges, side="right")  # texts that fit each
    best = [(float(held[j]) * edges[j], 1, (edges[j],)) for j in range(len(edges))]  # tokens, how many lengths, which
    answer = best[-1]
    for _ in range(count - 1):
        best = [
            min([best[j], *((best[i][0] + float(held[j] - held[i]) * edges[j], best[i][1] + 1, (*best[i][2], edges[j])) for i in range(j))])
            for j in range(len(edges))
        ]
        answer = min(answer, best[-1])
    return answer[2]


def cache_folder() -> Path:
    """Where token ids are kept: fastssl/tokens in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastssl" / "tokens"


def _place(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> Path:
    digest = hashlib.blake2b(f"{_VERSION}\0{tokenizer.fingerprint}\0{longest}\0".encode(), digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return cache_folder() / f"{digest.hexdigest()}.npz"


def _kept(place: Path) -> Tokens | None:
    try:
        with np.load(place, allow_pickle=False) as file:
            return Tokens(file["ids"], file["word"], file["first"], int(file["cut"]))
    except (OSError, ValueError, KeyError, EOFError):  # not there, or not whole
        return None
    except Exception as error:  # zipfile's own error has no common base with these
        if type(error).__name__ != "BadZipFile":
            raise
        return None


def _keep(place: Path, tokens: Tokens) -> None:
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, ids=tokens.ids, word=tokens.word, first=tokens.first, cut=tokens.cut)
        os.replace(partial, place)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
