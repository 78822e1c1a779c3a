"""The suite's own text set and encoders: made-up news in made-up words, and a tiny BERT whose vocabulary is exactly those words.

    files = made(folder)                      # files.train, files.test: CSV with the columns text,label
    place = encoder(folder / "encoder")       # random word vectors
    place = informed_encoder(folder / "encoder")   # words of one class point one way: a few labels train a head on it in some ten steps

Everything is a function of the seed, and encoders fit every `made` of the same `classes` (words do not depend on the seed).
"""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

CLASSES = ("business", "health", "music", "science", "sports", "travel", "weather", "world")
TOPIC = 12  # words of a class of its own, its name among them
SHARED = 3  # words that a class shares with the next one
COMMON = 60  # words of all classes
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
EMOJI = ("🙂", "🚀", "🌧", "🎵")
RIGHT_TO_LEFT = ("שלום", "חדשות", "سلام", "خبر")
MARKS = (".", ",", "!", "##s")  # "##s" is a piece: a topic word in the plural is two tokens


class Files(NamedTuple):
    train: Path
    test: Path


class Row(NamedTuple):
    text: str
    label: str


def _made_up(count: int) -> list[str]:
    """Words of two or three syllables, all different."""
    syllables = [a + b for a in "bdfgklmnprtvz" for b in "aeiou"]
    rng = np.random.default_rng(0x574F5244)
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choice(syllables, rng.integers(2, 4)))] = None
    return list(words)


def words(classes: int = 4) -> tuple[list[list[str]], list[list[str]], list[str]]:
    """(words of each class alone, words that it shares with the next class, words of all)."""
    if not 2 <= classes <= len(CLASSES):
        raise ValueError(f"classes is {classes}; give 2 to {len(CLASSES)}")
    it = iter(_made_up(len(CLASSES) * (TOPIC + SHARED) + COMMON))
    take = lambda n: list(itertools.islice(it, n))  # noqa: E731
    topics = [[name, *take(TOPIC - 1)] for name in CLASSES]
    shared = [take(SHARED) for _ in CLASSES]
    return topics[:classes], shared[:classes], take(COMMON)


def vocabulary(classes: int = 4) -> list[str]:
    """Tokens in the order of their ids."""
    topics, shared, common = words(classes)
    return [*SPECIAL, *MARKS, *EMOJI, *RIGHT_TO_LEFT, *common, *itertools.chain(*topics, *shared)]


def sentences(rows: int, classes: int = 4, seed: int = 0) -> list[Row]:
    """Texts of 8 to 20 words and their classes, in turn; all differ. Every tenth has an emoji, every fifteenth a right-to-left word."""
    rng = np.random.default_rng([0x54455854, seed])
    topics, shared, common = words(classes)
    made: dict[str, str] = {}
    while len(made) < rows:
        number, c = len(made), len(made) % classes
        length = int(rng.integers(8, 21))
        of_topic = rng.random(length) < 0.35
        of_topic[rng.integers(length)] = True
        near = topics[c] * 2 + shared[c] + shared[c - 1]
        said = [str(rng.choice(near if topic else common)) for topic in of_topic]
        said = [word + "s" if topic and rng.random() < 0.2 else word for word, topic in zip(said, of_topic, strict=True)]
        if number % 10 == 3:
            said.append(EMOJI[rng.integers(len(EMOJI))])
        if number % 15 == 7:
            said.insert(0, RIGHT_TO_LEFT[rng.integers(len(RIGHT_TO_LEFT))])
        if number % 4 == 1:
            said[length // 2] += ","
        text = " ".join(said).capitalize() + (" ." if number % 2 else "!")
        made.setdefault(text, CLASSES[c])
    return [Row(text, label) for text, label in made.items()]


def made(folder: Path, rows: int = 400, classes: int = 4, seed: int = 0, *, test_rows: int | None = None, labelled: float = 1.0) -> Files:
    """Writes train.csv and test.csv (half as many rows, unless `test_rows` says otherwise), classes in equal parts.

    Args:
        labelled: share of the training rows that keep their label, those that come first; the label of the others is blank.
    """
    test_rows = rows // 2 if test_rows is None else test_rows
    found = sentences(rows + test_rows, classes, seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder / "train.csv", folder / "test.csv")
    keep = round(labelled * rows)
    train = [row if number < keep else Row(row.text, "") for number, row in enumerate(found[:rows])]
    for path, part in zip(files, (train, found[rows:]), strict=True):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(part)
    return files


def encoder(
    folder: Path,
    *,
    classes: int = 4,
    seed: int = 0,
    longest: int = 64,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
    pooling: str = "mean",
) -> Path:
    """Writes a BERT of random weights with its WordPiece tokenizer, as from_pretrained reads them; returns the folder.

    Args:
        longest: tokens that it takes at most, special ones included.
        pooling: "mean" or "cls", as its card (1_Pooling/config.json of sentence-transformers) says; "" writes no card.
    """
    return _written(folder, classes, seed, longest, width, layers, heads, pooling, informed=False)


def informed_encoder(
    folder: Path,
    *,
    classes: int = 4,
    seed: int = 0,
    longest: int = 64,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
    pooling: str = "mean",
) -> Path:
    """As `encoder`, but the words of a class share a direction (those of two classes have some of both), and so do its pooled texts."""
    return _written(folder, classes, seed, longest, width, layers, heads, pooling, informed=True)


def _written(
    folder: Path, classes: int, seed: int, longest: int, width: int, layers: int, heads: int, pooling: str, *, informed: bool
) -> Path:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokens = vocabulary(classes)
    id_of = {token: number for number, token in enumerate(tokens)}
    table = Tokenizer(WordPiece(id_of, unk_token="[UNK]"))
    table.normalizer = normalizers.BertNormalizer(lowercase=True)
    table.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, id_of[name]) for name in ("[CLS]", "[SEP]")]
    table.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    table.decoder = decoders.WordPiece()
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=table, model_max_length=longest, **named).save_pretrained(folder)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=2 * width)
        model = BertModel(BertConfig(vocab_size=len(tokens), max_position_embeddings=longest, pad_token_id=0, **shape))
        if informed:
            _inform(model.get_input_embeddings().weight.data, id_of, classes)
    model.save_pretrained(folder)
    if pooling:
        kinds = {"0": "Transformer", "1": "Pooling"}
        modules = [
            {"idx": int(n), "name": n, "path": f"{n}_{kind}" if n != "0" else "", "type": f"sentence_transformers.models.{kind}"}
            for n, kind in kinds.items()
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        modes = {"cls_token": pooling == "cls", "mean_tokens": pooling == "mean", "max_tokens": False, "mean_sqrt_len_tokens": False}
        card = {"word_embedding_dimension": width, **{f"pooling_mode_{mode}": value for mode, value in modes.items()}}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(card))
    return folder


def _inform(weight: torch.Tensor, id_of: dict[str, int], classes: int) -> None:
    """Writes into [vocabulary, width] word vectors: orthogonal directions of the classes, under their own small noise."""
    topics, shared, _ = words(classes)
    directions = torch.linalg.qr(torch.randn(weight.shape[1], classes)).Q.T * 0.3  # initial weights have a deviation of 0.02
    for c in range(classes):
        weight[[id_of[word] for word in topics[c]]] += directions[c]
        weight[[id_of[word] for word in shared[c]]] += (directions[c] + directions[(c + 1) % classes]) / 2
