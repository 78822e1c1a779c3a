"""Zero-shot labels by entailment: the probabilities by hand, long texts, and networks that do not tell entailment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from fastssl.models.entailment import entailment_probabilities
from fastssl.pipelines.errors import ConfigError, SetupError
from tests import text_set

from . import text_cases as cases

CLASSES = ("business", "world_news", "sports")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A classifier of random weights that tells entailment by its last logit but one."""
    place = cases.copy("Bert", tmp_path_factory.mktemp("judge"))
    about = transformers.BertConfig.from_pretrained(place)
    about.id2label = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
    about.label2id = {label: index for index, label in about.id2label.items()}
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(about)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(place)
    return place


def texts() -> list[str]:
    return [row.text for row in text_set.sentences(7)]


@torch.no_grad()
def test_probabilities_by_hand(judge):
    got = entailment_probabilities(str(judge), texts(), CLASSES, "news of {}", batch_size=4)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(judge).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge)
    logits = [
        [model(**tokenizer(text, f"news of {c}", return_tensors="pt")).logits[0, 1] for c in ("business", "world news", "sports")]
        for text in texts()
    ]
    want = torch.tensor(logits).double().softmax(1).numpy()
    assert got.dtype == np.float64 and np.allclose(got, want, atol=1e-5) and np.ptp(want, axis=0).min() > 1e-3
    done = []
    entailment_probabilities(str(judge), texts(), CLASSES, progress=lambda n, of: done.append((n, of)), amp=torch.bfloat16)
    assert done[-1] == (7, 7)


def test_a_long_text_is_cut_and_its_hypothesis_is_not(judge):
    long = " ".join(texts() * 3)
    a, b, short = entailment_probabilities(str(judge), [long, long + " " + long, texts()[0]], CLASSES)
    assert np.isfinite(a).all() and np.allclose(a, b, atol=1e-6) and np.ptp(a) > 1e-4 and not np.allclose(a, short, atol=1e-4)


def test_what_is_refused(judge, tmp_path):
    with pytest.raises(ConfigError, match="needs the place of the class name once"):
        entailment_probabilities(str(judge), ["a"], CLASSES, "about it")
    with pytest.raises(ConfigError, match="does not tell entailment: its classes are LABEL_0, LABEL_1; take one for"):
        entailment_probabilities(str(cases.folder()), ["a"], CLASSES)
    place = cases.copy("Bert", tmp_path)
    about = transformers.BertConfig.from_pretrained(place)
    about.id2label, about.label2id = {0: "entailment", 1: "other"}, {"entailment": 0, "other": 1}
    about.save_pretrained(place)
    with pytest.raises(SetupError, match="tensors of its network are not in its weights"):
        entailment_probabilities(str(place), ["a"], CLASSES)
    with pytest.raises(SetupError, match="there is no folder"):
        entailment_probabilities("./nowhere", ["a"], CLASSES)
