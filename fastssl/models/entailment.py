"""Zero-shot labels by natural-language inference: does the text entail "This text is about sports."? (Yin et al. 2019, arXiv 1909.00161.)

A class's probability is the softmax, over the classes, of the entailment logit of its hypothesis.

Legend: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..pipelines.errors import ConfigError, SetupError
from . import transformers_networks as networks

TEMPLATE = "This text is about {}."
LONGEST = 512  # tokens of text and hypothesis together, where neither tokenizer nor network says less


@torch.no_grad()
def entailment_probabilities(
    name: str,
    texts: Sequence[str],
    classes: tuple[str, ...],
    template: str = TEMPLATE,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Labels texts by class names.

    Args:
        name: folder or hub name of a sequence classifier of the transformers library with a class "entailment".
        texts: N premises. They are cut where text and hypothesis together are longer than the network takes.
        classes: C class names; underscores are read as spaces.
        template: a hypothesis with {} in the place of the class.
        batch_size: pairs of text and hypothesis at a time.
        amp: type of autocast, None for fp32.
        progress: called with (texts done, N).

    Returns:
        [N, C] float64 probabilities; NaN where the network's answer is not finite.

    Raises:
        ConfigError: the network does not tell entailment, or a template without its {}.
        SetupError: the network or its tokenizer cannot be had.
    """
    if template.count("{}") != 1:
        raise ConfigError(f"the hypothesis '{template}' needs the place of the class name once, as {{}}: '{TEMPLATE}'")
    device = torch.device(device)
    model, tokenizer, entails = load(name)
    model = model.to(device)
    hypotheses = [template.replace("{}", c.replace("_", " ")) for c in classes]
    positions = networks.table(model)
    longest = min(tokenizer.longest, LONGEST, *([positions[1]] if positions else []))
    pairs = [(row, c) for row in np.argsort([-len(text) for text in texts], kind="stable") for c in range(len(classes))]
    logits = torch.empty(len(texts), len(classes), dtype=torch.float64)
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        rows, columns = [int(row) for row, _ in some], [c for _, c in some]
        inputs = tokenizer.backend(
            [texts[row] for row in rows],
            [hypotheses[c] for c in columns],
            truncation="only_first",
            max_length=longest,
            padding=True,
            return_tensors="pt",
        ).to(device)
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None, cache_enabled=False):
            answer = model(**inputs).logits
        logits[rows, columns] = answer[:, entails].double().cpu()
        if progress is not None:
            progress(min(len(texts), (start + len(some)) // len(classes)), len(texts))
    return logits.softmax(1).numpy()


def load(name: str) -> tuple[Any, Any, int]:
    """A sequence classifier in evaluation mode, its tokenizer, and which of its logits is entailment's."""
    folder, shown = networks.place(name, weights=True)
    about = networks.library().AutoConfig
    try:
        labels = about.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).label2id
    except Exception as error:  # the library raises anything from OSError to KeyError
        raise SetupError(f"{shown}: its config.json cannot be read ({networks.probe.reason(error)})") from None
    found = [index for label, index in labels.items() if label.lower().startswith("entail")]
    if len(found) != 1:
        raise ConfigError(
            f"{shown} does not tell entailment: its classes are {', '.join(map(str, labels)) or 'none'}; take one for "
            "natural-language inference"
        )
    tokenizer = networks.load_tokenizer(str(folder))
    model = networks.pretrained("AutoModelForSequenceClassification", Path(folder), shown, None)
    return model.eval(), tokenizer, int(found[0])
