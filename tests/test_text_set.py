"""The suite's own text set is what its users count on: the same every time, in one vocabulary, and learnable from a few labels."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from tests import text_set


def test_rows_are_those_of_the_seed_and_all_differ(tmp_path):
    files = text_set.made(tmp_path / "a", rows=60, classes=3, seed=1, labelled=0.5)
    with files.train.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    expected = text_set.sentences(90, 3, 1)
    assert rows[0] == ["text", "label"] and [row[0] for row in rows[1:]] == [row.text for row in expected[:60]]
    assert [row[1] for row in rows[1:]] == [row.label for row in expected[:30]] + [""] * 30
    assert len({row.text.casefold() for row in expected}) == 90 and {row.label for row in expected} == set(text_set.CLASSES[:3])
    assert all(8 <= len([word for word in row.text.strip(" .!").split() if word.isascii()]) <= 20 for row in expected)
    assert text_set.sentences(90, 3, 2)[0] != expected[0]
    joined = " ".join(row.text for row in text_set.sentences(200))
    assert any(mark in joined for mark in text_set.EMOJI) and any(word in joined for word in text_set.RIGHT_TO_LEFT)


@pytest.mark.parametrize("pooling", ["mean", ""])
def test_an_encoder_reads_every_word_and_is_written_alike_twice(tmp_path, pooling):
    transformers = pytest.importorskip("transformers", reason="comes with the text extra")
    places = [text_set.encoder(tmp_path / name, seed=3, pooling=pooling) for name in "ab"]
    assert (places[0] / "model.safetensors").read_bytes() == (places[1] / "model.safetensors").read_bytes()
    assert (places[0] / "modules.json").exists() == bool(pooling)
    tokenizer = transformers.AutoTokenizer.from_pretrained(places[0])
    ids = tokenizer([row.text for row in text_set.sentences(300)])["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids) and tokenizer.model_max_length == 64 and max(map(len, ids)) <= 40


def test_texts_of_the_informed_encoder_are_told_apart_by_four_labels_a_class(tmp_path):
    transformers = pytest.importorskip("transformers", reason="comes with the text extra")
    rows = text_set.sentences(116, seed=5)
    label = np.array([text_set.CLASSES.index(row.label) for row in rows])
    accuracy = {}
    for make in (text_set.encoder, text_set.informed_encoder):
        place = make(tmp_path / make.__name__)
        inputs = transformers.AutoTokenizer.from_pretrained(place)([row.text for row in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = transformers.AutoModel.from_pretrained(place).eval()(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(2)
        features = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        centres = np.stack([features[:16][label[:16] == c].mean(0) for c in range(4)])
        nearest = ((features[16:, None] - centres) ** 2).sum(2).argmin(1)
        accuracy[make] = (nearest == label[16:]).mean()
    assert accuracy[text_set.informed_encoder] > 0.9 > accuracy[text_set.encoder] + 0.1
