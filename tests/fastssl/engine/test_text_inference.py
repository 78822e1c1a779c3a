"""Texts through a finished network: order, lengths and precision change nothing; moved embeddings against autograd's own."""

import numpy as np
import pytest
import torch

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.engine import robustness, text_inference
from fastssl.engine.text_inference import TextReader, attacked_texts, pieces, text_logits
from fastssl.pipelines import text
from fastssl.pipelines.errors import ConfigError
from tests import text_set

CLASSES = text_set.CLASSES[:4]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(network in evaluation mode, its InputSpec.text, 50 texts of many lengths, their labels)"""
    config = ModelConfig(name=f"transformers:{text_set.informed_encoder(tmp_path_factory.mktemp('net') / 'encoder', longest=40)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.build(config, CLASSES).eval()
    rows = text_set.sentences(50)
    texts = [" ".join([row.text] * (1 + k % 3)) for k, row in enumerate(rows)]
    return network, models.describe(config).text, texts, torch.tensor([CLASSES.index(row.label) for row in rows])


def test_logits_are_those_of_each_text_alone(made):
    network, about, texts, _ = made
    reader = TextReader(about)
    whole = text_logits(network, reader, texts, "off")
    tokenizer = text.load_tokenizer(about.tokenizer)
    for row in range(0, 50, 7):
        ids = tokenizer.backend(texts[row], truncation=True, max_length=40)["input_ids"]
        with torch.no_grad():
            alone = network(torch.tensor([ids])).logits[0]
        assert torch.allclose(whole[row], alone, atol=1e-5)
    assert whole.shape == (50, 4) and whole.dtype == torch.float32 and not whole.requires_grad
    assert text_logits(network, reader, [], "off").numel() == 0


def test_order_and_chunks_change_nothing(made, monkeypatch):
    network, about, texts, _ = made
    reader, order = TextReader(about), np.random.default_rng(0).permutation(50)
    whole = text_logits(network, reader, texts, "off")
    done = []
    mixed = text_logits(network, reader, [texts[k] for k in order], "off", lambda n, of: done.append((n, of)))
    assert torch.allclose(mixed, whole[order], atol=1e-5) and done[-1] == (50, 50)
    monkeypatch.setattr(text_inference, "CHUNK", 9)
    monkeypatch.setattr(text_inference, "TOKENS", 60)
    assert torch.allclose(text_logits(network, reader, texts, "off"), whole, atol=1e-5)


def test_pieces_hold_each_text_once_and_no_more_padding_than_they_need(made, monkeypatch):
    _, about, texts, _ = made
    monkeypatch.setattr(text_inference, "TOKENS", 100)
    reader = TextReader(about, 30)
    ids, seen = reader.ids(texts), []
    for rows, piece in pieces(reader, texts):
        used = int((piece >= 0).sum(1).max())
        assert (piece.shape[1] % 8 == 0 or piece.shape[1] == 30) and used <= piece.shape[1] < used + 8
        assert len(rows) == 1 or piece.numel() <= 100
        seen += rows.tolist()
        for row, line in zip(rows, piece, strict=True):
            assert line[line >= 0].tolist() == ids[row][ids[row] >= 0].tolist()
    assert sorted(seen) == list(range(50)) and ids.shape == (50, 30)


def test_a_run_s_length_cuts_as_the_run_did(made):
    _, about, texts, _ = made
    tokens = text.tokenised(text.load_tokenizer(about.tokenizer), texts, 40, cache=False)
    assert np.array_equal(TextReader(about, 24).ids(texts), text.shortened(tokens, 24).ids)
    assert TextReader(about, 99).longest == 40 and (tokens.size > 24).any()


def test_half_precision_is_near_and_fp16_is_whole_on_the_cpu(made):
    network, about, texts, _ = made
    reader = TextReader(about)
    whole = text_logits(network, reader, texts, "off")
    half = text_logits(network, reader, texts, "bf16")
    assert half.dtype == torch.float32 and not torch.equal(half, whole) and torch.allclose(half, whole, atol=0.05)
    assert torch.equal(text_logits(network, reader, texts, "fp16"), whole)


def test_embeddings_move_by_epsilon_along_autograds_signs(made):
    network, about, texts, label = made
    reader = TextReader(about)
    (clean, some), still = attacked_texts(network, reader, texts, label, "off", (0.0, 0.05))
    assert torch.allclose(clean, text_logits(network, reader, texts, "off"), atol=1e-5) and still == 0
    for row in range(0, 50, 11):
        ids = torch.from_numpy(reader.ids([texts[row]]).astype(np.int64))
        x = network.continuous(ids).detach().requires_grad_()
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(network(x).logits, label[row : row + 1]), x)
        step = 0.05 * grad.sign() * (ids >= 0)[..., None]
        step[..., -1] = 0  # the channel that says where tokens are
        with torch.no_grad():
            moved = network(x + step).logits[0]
        assert torch.allclose(some[row], moved, atol=1e-4)
    loss = torch.nn.functional.cross_entropy
    assert loss(some, label) > loss(clean, label)
    assert all(p.grad is None for p in network.parameters()) and not network.training


def test_texts_without_gradient_are_counted(made):
    network, about, texts, label = made
    kept = network.head.weight.detach().clone()
    with torch.no_grad():
        network.head.weight.zero_()
    _, still = attacked_texts(network, TextReader(about), texts, label, "off", (0.1,))
    with torch.no_grad():
        network.head.weight.copy_(kept)
    assert still == 50


def test_sizes_of_texts_have_no_upper_bound():
    assert robustness.sizes("0, 5,0.01", of_texts=True) == (0, 5, 0.01)
    for wrong in ("-1", "x", "inf", "nan"):
        with pytest.raises(ConfigError, match="units of word embeddings"):
            robustness.sizes(wrong, of_texts=True)


def test_another_length_than_the_network_takes_is_cut(made):
    network, about, texts, _ = made
    short = about._replace(longest=16)
    assert TextReader(short).ids(texts).shape[1] == 16
    assert text_logits(network, TextReader(short), texts, "off").shape == (50, 4)
