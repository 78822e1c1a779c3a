"""The text row by a tiny encoder: its checks, what it notes, and what its peer makes of texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import bench_text, step_rows, text_peer
from bench._timing import Machine

pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 500}
PLAN = bench_text.Plan((2, 4), workers=0, rounds=2, steps=1, skip=1, texts=200, encoder=TINY)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_row_is_checked_and_notes_steps_and_tokens(tmp_path):
    recorder = step_rows.Recorder()
    bench_text.row(recorder, Machine("cpu"), tmp_path / "texts", PLAN)
    info = recorder.extra_info
    assert info["fp32_loss_off"] <= bench_text.SAME and info["bf16_loss_off"] <= bench_text.NEAR
    for peer in ("practice", "practice_bf16"):
        assert info[f"ratio_to_{peer}"] > 0 and info[f"tokens_ratio_to_{peer}"] > 0
        assert info[f"{peer}_tokens_per_second"] > 0
    assert (info["batch"], info["mode"], info["rounds"]) == ("2+4+4", "eager", 2)


def test_another_function_stops_the_row(tmp_path, monkeypatch):
    given = text_peer.TextPractice.logits

    def without_mask(self, view):
        return given(self, {**view, "attention_mask": torch.ones_like(view["attention_mask"])})

    monkeypatch.setattr(text_peer.TextPractice, "logits", without_mask)
    with pytest.raises(AssertionError, match="on the same rows differ"):
        bench_text.row(step_rows.Recorder(), Machine("cpu"), tmp_path / "texts", PLAN)


def test_made_up_texts_have_ag_news_lengths(tmp_path):
    known = text_peer.words(30_000)
    assert len(set(known)) == len(known)
    text_peer.write_encoder(tmp_path / "encoder", **{**TINY, "vocab_size": 2000})
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "encoder"))
    texts = text_peer.made_up(2000, 1995)
    sizes = np.array([len(ids) for ids in tokenizer(texts)["input_ids"]])  # one token a word, and two around them
    assert tokenizer.unk_token_id not in tokenizer(texts[0])["input_ids"]
    assert sizes.min() >= 18 and sizes.max() <= 263 and abs(sizes.mean() - 54) < 1.5


def test_a_peers_batch_is_padded_to_its_own_longest_text(tmp_path):
    text_peer.write_encoder(tmp_path / "encoder", **TINY)
    from transformers import AutoTokenizer

    texts = [" ".join(text_peer.words(count)) for count in (3, 7, 40)]
    collate = text_peer.Collated(AutoTokenizer.from_pretrained(str(tmp_path / "encoder")), longest=20)
    (weak, strong), label = collate([((texts[0], texts[1]), 1), ((texts[1], texts[2]), 2)])
    assert weak["attention_mask"].sum(1).tolist() == [5, 9] and weak["input_ids"].shape == (2, 9)
    assert strong["input_ids"].shape == (2, 20) and label.tolist() == [1, 2]
    ids = torch.tensor([[5, 6, -1, -1], [5, 6, 7, -1]])
    made = text_peer.padded(ids)
    assert made["input_ids"].tolist() == [[5, 6, 0], [5, 6, 7]] and made["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
