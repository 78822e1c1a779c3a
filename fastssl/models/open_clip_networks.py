"""open_clip:ARCH[/TAG]: the image tower of an image-text network, and class prompts through its text tower. The door to open_clip.

TAG names weights on the Hugging Face hub (see hub.py) and, with them, normalisation and activation (OpenAI's towers have QuickGELU).
Features are what FineSSL takes of its ViT-B/16: the final LayerNorm of the class token, width d, before the projection into the joint
space. Towers that are no vision transformer of open_clip's own (convolutional ones, timm's) answer with their joint features.

Legend: N images, d width of the features, e joint width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pipelines.errors import ConfigError, SetupError, unknown
from . import hub, probe, weights
from .network import Contrast, InputSpec, Made, Report, unknown_network

PROMPT = "a photo of a {}."  # FineSSL's code; underscores of a class name become spaces
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")  # open_clip's name, and that of its early uploads
SMALLEST = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}  # a text tower that nobody asks
ASKED = 256  # prompts that the text tower reads at a time
TEXTLESS = ("logit_scale", "logit_bias")  # of the contrast, not of a tower


class OpenClipEncoder(nn.Module):
    """An image tower of open_clip without its projection.

    Args:
        visual: the tower. A vision transformer's projection stays in it, as a buffer under its own name: no feature depends on it, so it
            cannot train, and the tower's state_dict still loads into open_clip.
        joint: e, the width of what other towers answer with.
    """

    def __init__(self, visual: nn.Module, joint: int | None = None):
        super().__init__()
        self.visual = visual
        self.own_transformer = hasattr(visual, "_pool") and isinstance(getattr(visual, "proj", None), Tensor)
        if self.own_transformer:
            projection = visual.proj.detach()
            del visual.proj
            visual.register_buffer("proj", projection)
            self.num_features = projection.shape[0]
        elif joint is None:
            raise ValueError(f"the width of a {type(visual).__name__}'s features must be said, got None")
        else:
            self.num_features = joint

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, d]."""
        if not self.own_transformer:
            return self.visual(x)
        tokens = self.visual.transformer(self.visual._embeds(x))
        return self.visual._pool(tokens)[0]


def describe(config: Any, size: int | None) -> InputSpec:
    """The input of an image tower by its architecture and the description of its weights (see `models.describe`)."""
    open_clip = _open_clip()
    arch, tag = _parse(config.name)
    own = config.img_size or open_clip.get_model_config(arch)["vision_cfg"].get("image_size", 224)
    side = size or own
    try:
        probe.width(lambda: _encoder(config, _clip(config)), side)
    except probe.Refused as error:
        mend = "give another size" if side == own else f"leave data.size out, or build the tower for that size with model.img_size={side}"
        raise ConfigError(f"{config.name} refuses images of {side} pixels ({error}); {mend}") from None
    about = open_clip.get_pretrained_cfg(arch, tag) if tag else {}
    mean = about.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = about.get("std") or open_clip.OPENAI_DATASET_STD
    return InputSpec(side, tuple(mean), tuple(std), about.get("interpolation", "bicubic"))


def make(config: Any, classes: tuple[str, ...], size: int | None, report: Report) -> Made:
    """The encoder of an image tower, and the rows of class prompts where `head_init` is text (see `models.build`)."""
    text = config.head_init == "text"
    if text and config.weights == "random":
        raise ConfigError("model.head_init=text needs a trained text tower, and --weights random has none; use random")
    model, path = _loaded(config, text, report)
    rows = _text_rows(model, path, config.name, classes, (PROMPT,), report) if text else None
    encoder = _encoder(config, model)
    if rows is not None and encoder.own_transformer:
        rows = rows @ model.visual.proj.T.float()  # f (T P^T)^T = (f P) T^T: zero-shot up to norms
    return Made(encoder, rows)


def contrast(config: Any, classes: tuple[str, ...], prompts: tuple[str, ...], report: Report) -> Contrast:
    """The network as a zero-shot classifier (see `zero_shot.build`)."""
    model, path = _loaded(config, True, report)
    text = _text_rows(model, path, config.name, classes, prompts or (PROMPT,), report)
    own = [value for key, value in weights.read(path).items() if key.split(".")[-1] == "logit_scale" and value.numel() == 1]
    if own:
        scale = own[0].float().exp().item()
    else:
        scale = model.logit_scale.exp().item()
        report.warnings.append(f"{path} holds no logit_scale: confidences are those of the factor {scale:.4g} that open_clip starts with")
    encoder = _encoder(config, model)
    return Contrast(encoder, encoder.visual.proj.detach().float() if encoder.own_transformer else None, text, scale)


def _loaded(config: Any, text: bool, report: Report) -> tuple[nn.Module, Any]:
    """open_clip's network, its image tower's weights in place, its text tower still random (`text`) or hardly there; and their file."""
    arch, tag = _parse(config.name)
    if config.weights is None and tag is None:
        tags = weights.shown(_open_clip().list_pretrained_tags_by_model(arch))
        named = f"name one as {config.name}/TAG ({tags}), or " if tags else ""
        raise ConfigError(f"{config.name} does not say which weights: {named}give --weights random or --weights FILE.safetensors")
    path = _hub_file(config.name, arch, tag, report) if config.weights is None else config.weights
    model = _clip(config, whole=text)
    if path != "random":
        weights.load(model.visual, path, f"{config.name}'s image tower", report, lambda state: _converted(model, state))
    return model, path


def _text_rows(model: nn.Module, path: Any, name: str, classes: tuple[str, ...], prompts: tuple[str, ...], report: Report) -> Tensor:
    """[C, e] unit rows: the text tower's features, their mean over a class's prompts."""
    lacks = f"asking by class names needs a text tower, and {path} holds none of {name}; other weights do, or model.head_init=random"
    try:
        rest = ("visual.", *TEXTLESS)
        found = weights.load(model, path, f"{name}'s text tower", report, lambda state: _converted(model, state), skip=rest)
    except SetupError:
        raise ConfigError(lacks) from None
    if found.missing:
        raise ConfigError(lacks)
    try:
        tokenizer = _open_clip().get_tokenizer(_parse(name)[0])
    except (OSError, ValueError, ImportError) as error:  # some tokenizers lie on the hub
        raise SetupError(f"{name}: its tokenizer cannot be had ({probe.reason(error)}); model.head_init=random does without") from None
    texts = [prompt.replace("{}", c.replace("_", " ")) for c in classes for prompt in prompts]
    model.eval()
    with torch.no_grad():
        pieces = [texts[start : start + ASKED] for start in range(0, len(texts), ASKED)]
        each = torch.cat([model.encode_text(tokenizer(piece), normalize=True).float() for piece in pieces])
    return F.normalize(each.view(len(classes), len(prompts), -1).mean(1), dim=-1)


def _encoder(config: Any, model: nn.Module) -> OpenClipEncoder:
    """The image tower of a network whose weights are in place, for images of `model.img_size`."""
    _resize(config, model.visual)
    return OpenClipEncoder(model.visual, _open_clip().get_model_config(_parse(config.name)[0])["embed_dim"])


def _resize(config: Any, visual: nn.Module) -> None:
    """timm's towers are built for their own size, and resample what they have learned."""
    if config.img_size is not None and hasattr(visual, "trunk"):
        visual.set_input_size(config.img_size)


def plain(config: Any) -> tuple[nn.Module, tuple[str, ...], dict[str, Any]]:
    """open_clip's own image tower of a ModelConfig, random, as `models.plain` wants it.

    Returns:
        The tower, Python that makes it, and the attributes that make it answer with our features once its weights are loaded.
    """
    open_clip = _open_clip()
    arch, tag = _parse(config.name)
    cfg = open_clip.get_model_config(arch)
    visual = _clip(config).visual
    _resize(config, visual)
    options: dict[str, Any] = {"pretrained_text": False} if "hf_model_name" in cfg["text_cfg"] else {}
    if config.img_size:
        options["force_image_size"] = config.img_size
    if config.patch_size:
        options["vision_cfg"] = {**cfg["vision_cfg"], "patch_size": config.patch_size}
        options["vision_cfg"] |= {"image_size": config.img_size} if config.img_size else {}
    if tag and open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False) != cfg.get("quick_gelu", False):
        options["quick_gelu"] = not cfg.get("quick_gelu", False)
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    after = {"proj": None} if isinstance(getattr(visual, "proj", None), Tensor) and hasattr(visual, "_pool") else {}
    after |= {"output_tokens": False} if getattr(visual, "output_tokens", False) else {}
    return visual, ("import open_clip", "", f'model = open_clip.create_model("{arch}"{given}).visual'), after


def _clip(config: Any, whole: bool = False) -> nn.Module:
    """open_clip's network with random weights; unless `whole`, its text tower is the smallest there can be."""
    open_clip = _open_clip()
    arch, tag = _parse(config.name)
    cfg = open_clip.get_model_config(arch)
    vision = cfg["vision_cfg"]
    own = not vision.get("timm_model_name")
    if config.patch_size is not None and (not own or isinstance(vision.get("layers"), list)):
        raise ConfigError(f"{config.name} takes no model.patch_size, as its tower is no vision transformer of open_clip; leave it out")
    if config.drop_path and own:
        raise ConfigError(f"model.drop_path goes with networks of timm, and the tower of {config.name} drops no paths; leave it out")
    vision |= {"timm_model_pretrained": False, "timm_drop_path": config.drop_path or None} if not own else {}
    vision |= {"image_size": config.img_size} if own and config.img_size else {}
    vision |= {"patch_size": config.patch_size} if config.patch_size else {}
    if tag:
        cfg["quick_gelu"] = open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False)
    if not whole:
        return open_clip.CLIP(cfg["embed_dim"], vision, SMALLEST, quick_gelu=cfg.get("quick_gelu", False))
    borrowed = "hf_model_name" in cfg["text_cfg"]
    if borrowed:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    if not (cfg.pop("custom_text", False) or borrowed):
        return open_clip.CLIP(**cfg)
    try:
        return (open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP)(**cfg)
    except (OSError, ImportError) as error:  # transformers reads the text tower's description from the hub
        raise SetupError(
            f"{config.name}: its text tower cannot be had ({probe.reason(error)}); model.head_init=random does without"
        ) from None


def _converted(model: nn.Module, state: weights.State) -> Iterator[weights.State]:
    """A file's tensors as open_clip itself reads those of others, positions resampled to the tower's size."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    prefix = weights.fit(model.visual, state).prefix
    tower = {f"visual.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    for form in (state, tower):
        try:
            form = convert_state_dict(model, dict(form))
            if not hasattr(model, "positional_embedding"):
                form = convert_to_custom_text_state_dict(form)
            resize_pos_embed(form, model)
            yield form
        except (KeyError, RuntimeError, ValueError):
            continue  # not a form that open_clip knows; what then fits is judged by names and shapes


def _hub_file(name: str, arch: str, tag: str, report: Report) -> Any:
    """The safetensors file of a tag's weights."""
    place = _open_clip().get_pretrained_cfg(arch, tag).get("hf_hub", "")
    repository, _, file = place.rpartition("/")
    if not repository:
        raise SetupError(f"open_clip has no weights '{tag}' of {arch} on the hub; give --weights random or --weights FILE.safetensors")
    path = hub.fetch(repository, (file.rsplit(".", 1)[0] + ".safetensors",) if file else FILES, name)
    report.notes.append(f"weights: {repository}, revision {hub.revision(path)}")
    return path


def _parse(name: str) -> tuple[str, str | None]:
    """ "open_clip:ViT-B-16/openai" -> ("ViT-B-16", "openai").

    Raises:
        ConfigError: no such architecture or tag, with the nearest ones.
    """
    open_clip = _open_clip()
    arch, _, tag = name.removeprefix("open_clip:").partition("/")
    if arch not in open_clip.list_models():
        known = [f"open_clip:{model}" for model in open_clip.list_models()]
        raise ConfigError(unknown_network(f"open_clip:{arch}", known, "open_clip.list_models()"))
    if tag and not open_clip.is_pretrained_cfg(arch, tag):
        raise ConfigError(unknown("weights", tag, open_clip.list_pretrained_tags_by_model(arch), f"open_clip:{arch}"))
    return arch, tag or None


def _open_clip() -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise SetupError("open_clip:ARCH needs open_clip, which is not installed; run: pip install 'fastssl[vision]'") from error
    if not hasattr(open_clip.transformer.VisionTransformer, "_embeds"):
        raise SetupError(f"open_clip {open_clip.__version__} is too old; run: pip install 'open_clip_torch>=2.32'")
    return open_clip
