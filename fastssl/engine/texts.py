"""A run on texts: its network and its data fitted to each other, its texts tokenised, its pipeline made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..config import ModelConfig, RunConfig
from ..methods.base import Method
from ..models import InputSpec
from ..pipelines import text
from ..pipelines.batch import Split, Views
from ..pipelines.errors import ConfigError
from ..pipelines.text_policies import TEXT_POLICIES, text_policy
from ..pipelines.text_resident import TextPipeline
from ..pipelines.text_source import TextSource
from ..pipelines.text_views import with_variants
from .networks import SOFT_ORIGINS
from .update import layer_scales

OF_IMAGES = ("size", "resize", "interpolation", "workers")  # options of the data section that say nothing of texts
OF_PICTURES = ("normalise", "batchnorm_momentum")  # and of the model's


def rate(run: Any) -> dict[str, float]:
    """Of a Run on texts, tokens a second in all views so far, padding left out; nothing of one on images."""
    seen = getattr(run.pipeline, "tokens_seen", None)
    return {} if seen is None else {"tokens_per_second": int(seen) / run.seconds if run.seconds else 0.0}


def check(config: RunConfig, about: InputSpec, is_table: bool) -> None:
    """Raises ConfigError where network and data are of different kinds, or options of images are given for texts."""
    name = config.model.name
    if is_table and about.text is None:
        raise ConfigError(
            f"{config.data.name} holds texts, and {name} reads images; give a network for texts: --model transformers:NAME_OR_FOLDER"
        )
    if not is_table and about.text is not None:
        raise ConfigError(
            f"{name} reads texts, and {config.data.name} holds images; give --data a table (.csv, .tsv, .parquet, .jsonl) with a column of "
            "texts"
        )
    for key in OF_IMAGES if is_table else ():
        if getattr(config.data, key) is not None and config.origins.get(f"data.{key}", "default").split()[0] not in SOFT_ORIGINS:
            raise ConfigError(f"data.{key} is of images, and {config.data.name} holds texts; leave it out")
    for key in OF_PICTURES if is_table else ():
        if getattr(config.model, key) != getattr(ModelConfig(), key):
            raise ConfigError(f"model.{key} is of networks for images, and {name} reads texts; leave it out")


def fitted(config: RunConfig, source: TextSource) -> RunConfig:
    """The configuration with what a preset for images says of them taken out, and with a policy for texts.

    Raises:
        ConfigError: a policy of images that the user asked for, or back-translation without columns of it.
    """
    data = dataclasses.replace(config.data, **dict.fromkeys(OF_IMAGES))
    policy, soft = data.policy, config.origins.get("data.policy", "default").split()[0] in SOFT_ORIGINS
    translated = any(text.strip() for column in source.augmented for text in column)
    if soft and policy.split("+")[0] not in TEXT_POLICIES:
        policy = "back_translation" if translated else "tfidf"
    if "back_translation" in text_policy(policy) and not translated:
        raise ConfigError(
            f"--policy {policy} needs columns text_aug_0, text_aug_1 ... of translations, and {data.name} has none; take --policy tfidf"
        )
    return dataclasses.replace(config, data=dataclasses.replace(data, policy=policy))


def same_views(config: RunConfig, method: Method) -> str:
    """A warning where the views that are to agree are one and the same text through one and the same network; "" elsewhere."""
    views, network = method.asked, method.network
    if (
        views.unlabelled[:2] != ("weak", "weak")
        or method.ema is not None
        or config.data.token_dropout
        or getattr(method.config, "noise", 0)
    ):
        return ""
    method.train()
    alive = any(layer.training and layer.p > 0 for layer in network.modules() if isinstance(layer, torch.nn.Dropout))
    if alive or "strong" in views.unlabelled or getattr(method.config, "mixup", 0):
        return ""
    return (
        f"both views of an unlabelled text are the text itself, and nothing in {config.model.name} is random: {config.method_name} learns "
        "nothing from them; give --set data.token_dropout=0.1 or --set method.noise=0.05"
    )


def decayed(config: RunConfig, method: Method, notes: list[str]) -> RunConfig:
    """The configuration, without layer-wise decay where a plain command's meets an encoder whose layers have no known order (ALBERT).

    Raises:
        ConfigError: such a network, and the user's own words or a named preset ask for the decay.
    """
    try:
        layer_scales(method, config.train.layer_decay)
    except ConfigError:
        if config.origins.get("train.layer_decay") != "preset":
            raise
        notes.append(f"one learning rate for all layers: their order in {config.model.name} is not known")
        return dataclasses.replace(config, train=dataclasses.replace(config.train, layer_decay=1.0))
    return config


def pipeline(
    config: RunConfig,
    source: TextSource,
    split: Split,
    views: Views,
    device: torch.device,
    about: InputSpec,
    *,
    note: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> TextPipeline:
    """Tokenises the texts (or finds them tokenised) and makes the pipeline that draws them."""
    data, train = config.data, config.train
    tokenizer = text.load_tokenizer(about.text.tokenizer)
    most = about.text.longest
    if data.max_length is not None and data.max_length > most:
        raise ConfigError(f"data.max_length {data.max_length}: {config.model.name} takes {most} tokens at most; ask for fewer")
    together, variants = with_variants(source.texts, source.augmented)
    tokens = text.tokenised(tokenizer, together, most, progress)
    whole = tokens.size[: len(source)]
    # By the texts that train: how these are read may not hang on what is tested.
    length = data.max_length or text.usual_length(whole[np.union1d(split.labelled, split.unlabelled)], most)
    made = TextPipeline(
        source,
        text.shortened(tokens, length),
        tokenizer,
        split,
        views,
        variants=variants,
        batch_size=train.batch_size // train.accumulate,
        ratio=train.ratio,
        seed=train.seed,
        policy=data.policy,
        rate=data.replace_rate,
        token_dropout=data.token_dropout,
        lengths=data.lengths,
        pieces=train.accumulate,
        device=device,
    )
    cut = tokens.cut if length == most else int((whole > length).sum())
    note(
        f"{len(source):,} texts of {whole.mean():.0f} tokens on the mean, read up to {length} ({cut} are longer); padded to "
        f"{', '.join(map(str, made.lengths))}; strong view {data.policy}"
    )
    return made
