"""transformers:FOLDER_OR_NAME: text encoders of the transformers library, pooled as their card says. The door to that library here.

A folder holds what the library saves: config.json, a tokenizer, safetensors weights, and the card of sentence-transformers where it has
one (text_card.py). A name is a repository of the Hugging Face hub, and becomes a folder (hub.py). Neither code nor pickles of others are
read.

Legend: N texts, L tokens, d width of the features, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pipelines.errors import ConfigError, SetupError
from ..pipelines.text import Tokenizer, load_tokenizer, tokenised
from . import hub, peft, probe, text_attention, text_card, weights, zero_shot
from .network import Contrast, InputSpec, Made, Report, TextInput
from .text_tower import TextEncoder, table

TEMPLATES = ("{}", "This text is about {}.", "The topic of this text is {}.")
SCALE = 20.0  # on the cosine: what sentence-transformers trains such encoders with (MultipleNegativesRankingLoss)
ASKED = 64  # texts that an encoder reads at a time, outside training
IMAGES = ("img_size", "patch_size", "drop_path")
UNLIMITED = 512  # tokens, where neither card nor tokenizer nor network has a limit


def describe(config: Any, size: int | None) -> InputSpec:
    """The texts that an encoder takes (see `models.describe`). Of a hub's repository, fetches descriptions alone."""
    _refuse(config, size)
    folder, name = place(config.name, weights=False)
    card = text_card.read(folder, name)
    about = _config(card.network, name)
    tokenizer = _tokenizer(folder, card, name)
    if tokenizer.vocabulary > about.vocab_size:
        raise SetupError(
            f"{name}: its tokenizer has {tokenizer.vocabulary} tokens and its encoder embeddings of {about.vocab_size}; they do not belong "
            "together"
        )
    longest = [limit for limit in (card.longest, tokenizer.longest) if limit is not None and limit < 1 << 20]
    prompts = config.prompts if any(wanted.startswith("vpt_") for wanted in peft.parse(config.tune)) else 0
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        found = table(_random(about, name))
    if found is not None:
        longest.append(found[1] - prompts)
    limit = min(longest, default=UNLIMITED)
    if limit < 4:
        raise ConfigError(f"{name} has {found[1]} positions, which {prompts} prompts leave no room in for a text; take fewer model.prompts")
    return InputSpec(None, text=TextInput(tokenizer.name, limit))


def make(config: Any, classes: tuple[str, ...], size: int | None, report: Report) -> Made:
    """The encoder, and the rows of class descriptions where `head_init` is text (see `models.build`)."""
    _refuse(config, size)
    text = config.head_init == "text"
    if text and config.weights == "random":
        raise ConfigError("model.head_init=text needs a trained encoder, and --weights random has none; use random")
    encoder, tokenizer, _ = _loaded(config, report)
    if config.encoder_dropout is not None:
        for layer in encoder.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = config.encoder_dropout
    if not text:
        return Made(encoder)
    return Made(encoder, class_features(encoder, tokenizer, zero_shot.phrases(classes, (), TEMPLATES), describe(config, None).text.longest))


def contrast(config: Any, classes: tuple[str, ...], prompts: tuple[str, ...], report: Report) -> Contrast:
    """The encoder as a zero-shot classifier: the cosine of a text to its classes' descriptions, times SCALE (see `zero_shot.build`)."""
    encoder, tokenizer, card = _loaded(config, report)
    if not card.there:
        report.warnings.append(
            f"{config.name} has no card of sentence-transformers: unless it was trained to bring like texts together, its labels say little"
        )
    limit = describe(config, None).text.longest
    rows = class_features(encoder, tokenizer, zero_shot.phrases(classes, prompts, TEMPLATES), limit)
    return Contrast(encoder, None, rows, SCALE)


@torch.no_grad()
def class_features(encoder: TextEncoder, tokenizer: Tokenizer, phrases: list[list[str]], longest: int) -> Tensor:
    """[C, d] unit rows: the mean of the unit features of a class's phrases."""
    flat = [text for texts in phrases for text in texts]
    each = F.normalize(features(encoder, tokenizer, flat, longest), dim=1).split([len(texts) for texts in phrases])
    return F.normalize(torch.stack([rows.mean(0) for rows in each]), dim=1)


@torch.no_grad()
def features(encoder: TextEncoder, tokenizer: Tokenizer, texts: list[str], longest: int) -> Tensor:
    """[N, d] fp32 features of texts, in evaluation mode, on the encoder's device."""
    ids = tokenised(tokenizer, texts, longest, cache=False).ids
    device, training = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    made = []
    for piece in np.array_split(ids, max(1, -(-len(ids) // ASKED))):
        used = max(1, int((piece >= 0).sum(1).max(initial=1)))
        made.append(encoder(torch.from_numpy(piece[:, :used].astype(np.int64)).to(device)).float())
    encoder.train(training)
    return torch.cat(made)


def place(named: str, *, weights: bool) -> tuple[Path, str]:
    """The folder of a network's name, fetched where it lies on the hub, and the name for messages."""
    given = named.removeprefix("transformers:")
    library()
    folder = Path(given).expanduser()
    if folder.is_dir():
        return folder, given
    if folder.is_absolute() or given.startswith((".", "~")) or given.count("/") > 1:
        raise SetupError(f"--model {named}: there is no folder {given}")
    return hub.folder(given, f"--model {named}", weights=weights), given


def _refuse(config: Any, size: int | None) -> None:
    for option in IMAGES:
        if getattr(config, option):
            raise ConfigError(f"model.{option} goes with networks for images, and {config.name} reads texts; leave it out")
    if size is not None:
        raise ConfigError(f"data.size is the side of images, and {config.name} reads texts; leave it out")


def _tokenizer(folder: Path, card: text_card.Card, name: str) -> Tokenizer:
    """The tokenizer, from the encoder's folder or beside the card."""
    with_one = [at for at in (card.network, folder) if any(at.glob("tokenizer*.json")) or any(at.glob("vocab*")) or any(at.glob("*.model"))]
    if not with_one:
        raise SetupError(f"{name} has an encoder but no tokenizer; put tokenizer.json beside its config.json")
    return load_tokenizer(str(with_one[0]))


def _config(folder: Path, name: str) -> Any:
    """The library's description of an encoder."""
    if not (folder / "config.json").is_file():
        held = sorted(path.name for path in folder.glob("tokenizer*.json")) or ["no config.json"]
        raise SetupError(f"{name} has {held[0]} but no encoder: config.json and model.safetensors must lie there")
    try:
        about = library().AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises anything from OSError to KeyError
        raise SetupError(
            f"{name}: its config.json is of no network that the installed transformers knows ({probe.reason(error)})"
        ) from None
    if getattr(about, "is_encoder_decoder", False):
        raise ConfigError(f"{name} is an encoder with a decoder ({about.model_type}); take an encoder alone, such as a sentence encoder")
    if not isinstance(getattr(about, "vocab_size", None), int):
        raise ConfigError(f"{name} is no network for texts ({about.model_type}); take an encoder such as a sentence encoder")
    return about


def _loaded(config: Any, report: Report) -> tuple[TextEncoder, Tokenizer, text_card.Card]:
    """The encoder with its weights, its tokenizer and its card."""
    own = config.weights is None
    folder, name = place(config.name, weights=own)
    card = text_card.read(folder, name)
    about = _config(card.network, name)
    tokenizer = _tokenizer(folder, card, name)
    model = pretrained("AutoModel", card.network, name, report) if own else _random(about, name)
    if own:
        report.notes.append(f"weights: {card.network}")
    if own and card.unheeded:
        report.warnings.append(f"the card of {name} asks for {' and '.join(card.unheeded)}, and texts are read as they stand")
    model.config.use_cache = False
    pooling = text_card.Pooling(card.poolings)
    after, width = text_card.steps(card, model.config.hidden_size * len(card.poolings), name, own)
    encoder = TextEncoder(model, pooling, after, width)
    if config.weights not in (None, "random"):
        weights.load(model, config.weights, name, report, _renamed, skip=("pooler.",))
    return encoder, tokenizer, card


def pretrained(kind: str, folder: Path, name: str, report: Report | None) -> Any:
    """The library's network of a folder, in fp32, with its safetensors weights.

    Args:
        kind: the library's class, "AutoModel" for an encoder.
        report: is told of tensors that are not there; without one, they are an error.
    """
    if not any(folder.glob("*.safetensors")):
        raise SetupError(f"{name} has no safetensors weights, and other formats are not read; give --weights FILE.safetensors or random")
    options = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    model, info = _built(lambda how: getattr(library(), kind).from_pretrained(str(folder), attn_implementation=how, **options), name)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if info.get("mismatched_keys"):
        raise SetupError(f"{name}: {len(info['mismatched_keys'])} of its tensors have other shapes than its config.json says")
    if missing and report is None:
        raise SetupError(f"{name}: {len(missing)} tensors of its network are not in its weights ({weights.shown(missing)})")
    if missing:
        report.warnings.append(f"{name}: {len(missing)} tensors are not in its weights and keep a random start ({weights.shown(missing)})")
    return model.float()


def _random(about: Any, name: str) -> Any:
    """The library's network of a description, by torch's global generator."""
    return _built(lambda how: library().AutoModel.from_config(about, attn_implementation=how, trust_remote_code=False), name).float()


def _built(make: Any, name: str) -> Any:
    """What `make` gives with our attention, or with the library's plain one where its network takes no other."""
    with _quiet():
        try:
            return make(text_attention.register())
        except (KeyError, ValueError, ImportError):
            pass
        try:
            return make("eager")
        except Exception as error:  # the library raises anything
            raise SetupError(f"{name}: the installed transformers cannot build this network ({probe.reason(error)})") from None


def _renamed(state: weights.State) -> Iterator[weights.State]:
    """Names that layer norms bore in the files of BERT's first years."""
    yield {key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): t for key, t in state.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and its report of what it loaded: we say it ourselves."""
    logging = library().utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def library() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise SetupError("transformers:NAME needs transformers, which is not installed; run: pip install 'fastssl[text]'") from error
    return transformers
