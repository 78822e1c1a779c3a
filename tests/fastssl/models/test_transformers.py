"""Text encoders of the transformers library: what they answer, what padding does, cards, limits, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from fastssl import models
from fastssl.models import Report, text_card, towers
from fastssl.pipelines.errors import ConfigError, SetupError
from tests import text_set

from . import text_cases as cases

KINDS = list(cases.KINDS)


def reference(place, ids: torch.Tensor, how=lambda h, k: (h * k).sum(1) / k.sum(1)) -> torch.Tensor:
    """Pooled by hand from the library's own network, with its plain attention and its own masks."""
    model = transformers.AutoModel.from_pretrained(place, attn_implementation="eager").eval()
    there = (ids >= 0).long()
    with torch.no_grad():
        hidden = model(input_ids=ids.clamp_min(0), attention_mask=there).last_hidden_state
    return how(hidden, there[..., None].float())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_answers_as_the_library_does(kind):
    encoder, x = cases.encoder(kind), cases.ids(length=24)
    want = reference(cases.folder(kind), x)
    torch.testing.assert_close(encoder(x), want, rtol=1e-5, atol=1e-5)
    embedded = encoder.embed(x)
    assert embedded.shape == (3, 24, encoder.model.get_input_embeddings().embedding_dim + 1) and encoder.num_features == want.shape[1]
    assert torch.equal(embedded[..., -1] > 0, x >= 0) and not embedded[x < 0].any()
    assert torch.equal(encoder(embedded), encoder(x))


@torch.no_grad()
@pytest.mark.parametrize("how", ["full", "vpt_shallow", "vpt_deep"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_nothing_to_a_text(kind, how):
    """Neither how much of it follows, nor what is in it, nor the other rows."""
    encoder, x = cases.encoder(kind, tune=how, prompts=4), cases.ids()
    alone = encoder(x[2:, : int((x[2] >= 0).sum())])
    torch.testing.assert_close(encoder(x)[2:], alone, rtol=1e-5, atol=1e-5)
    longer = encoder.embed(F.pad(x, (0, 20), value=-1))
    longer[longer[..., -1] == 0] = torch.tensor([1e3] * (longer.shape[-1] - 1) + [0.0])
    torch.testing.assert_close(encoder(longer)[2:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_tokens_and_no_padding(kind):
    encoder, x = cases.encoder(kind), cases.ids()
    embedded = encoder.embed(x).detach().requires_grad_()
    encoder(embedded)[:, :3].sum().backward()
    moved = embedded.grad[..., :-1].abs().amax(-1)
    assert (moved[x >= 0] > 0).all() and not moved[x < 0].any()
    encoder.zero_grad()
    encoder(x)[:, :3].sum().backward()
    used = torch.unique(x[x >= 0])
    rows = encoder.model.get_input_embeddings().weight.grad.abs().amax(-1).nonzero().flatten()
    assert torch.equal(rows, used)
    unused = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert not unused  # no weight that no feature depends on: poolers are taken off


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "DebertaV2"])
def test_compiles_in_one_piece(kind):
    net, x = cases.network(kind, tune="vpt_deep+lora", prompts=4), cases.ids()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(x).logits, net(x).logits, rtol=1e-5, atol=1e-5)
    net.continuous(x)  # embedding stays outside of it


def test_bfloat16_is_near(kind="Bert"):
    encoder, x = cases.encoder(kind), cases.ids()
    exact = encoder(x)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        near = encoder(x)
    assert near.dtype == torch.float32 and 0 < (near - exact).abs().max() < 0.03 * exact.abs().max()


def test_dropout_is_the_checkpoints():
    net, x = cases.network(), cases.ids()
    net.train()
    assert not torch.equal(net(x).features, net(x).features)
    frozen = cases.network(tune="linear").train()
    assert torch.equal(frozen(x).features, frozen(x).features)


HOW = {
    "cls": lambda h, k: h[:, 0],
    "max": lambda h, k: h.masked_fill(k == 0, -1e9).amax(1),
    "mean": lambda h, k: (h * k).sum(1) / k.sum(1),
    "mean_sqrt_len_tokens": lambda h, k: (h * k).sum(1) / k.sum(1).sqrt(),
    "weightedmean": lambda h, k: (
        torch.stack([torch.stack([(i + 1) * v for i, v in enumerate(r[m[:, 0] > 0])]).sum(0) for r, m in zip(h, k, strict=True)])
        / (k.sum(1) * (k.sum(1) + 1) / 2)
    ),
    "lasttoken": lambda h, k: torch.stack([r[int(m.sum()) - 1] for r, m in zip(h, k, strict=True)]),
}


def card(place, modes: dict, steps=(), longest=None):
    """Writes a card of sentence-transformers: the pooling, and further (kind, config, tensors) steps."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"{i + 2}_{kind}", kind) for i, (kind, _, _) in enumerate(steps))]
    named = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{kind}"} for i, (p, kind) in enumerate(modules)]
    (place / "modules.json").write_text(json.dumps(named))
    for (path, _), about in zip(modules[1:], [modes, *(about for _, about, _ in steps)], strict=True):
        (place / path).mkdir(exist_ok=True)
        (place / path / "config.json").write_text(json.dumps(about))
    for (path, _), (_, _, tensors) in zip(modules[2:], steps, strict=True):
        if tensors:
            save_file(tensors, place / path / "model.safetensors")
    if longest:
        (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    return place


@torch.no_grad()
@pytest.mark.parametrize("mode", list(HOW))
def test_pooled_as_the_card_says(tmp_path, mode):
    key = next(k for k, v in text_card.POOLINGS.items() if v == mode)
    for modes in ({key: True, "pooling_mode_other": False}, {"pooling_mode": mode}):
        place = card(cases.copy("Bert", tmp_path / str(len(modes))), modes)
        encoder = models.build(cases.config(place), ("a", "b")).encoder.eval()
        torch.testing.assert_close(encoder(cases.ids()), reference(place, cases.ids(), HOW[mode]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_whole_card(tmp_path):
    tensors = {"linear.weight": torch.randn(5, 64), "linear.bias": torch.randn(5)}
    dense = {"in_features": 64, "out_features": 5, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    place = card(cases.copy("Bert", tmp_path), modes, [("Dense", dense, tensors), ("Normalize", {}, None)], longest=20)
    net, x = models.build(cases.config(place), ("a", "b")).eval(), cases.ids()
    pooled = reference(place, x, lambda h, k: torch.cat([HOW["cls"](h, k), HOW["mean"](h, k)], dim=1))
    want = F.normalize((pooled @ tensors["linear.weight"].T + tensors["linear.bias"]).tanh(), dim=1)
    torch.testing.assert_close(net.encoder(x), want, rtol=1e-5, atol=1e-5)
    assert models.describe(cases.config(place)).text == (str(place), 20) and net.head.weight.shape == (2, 5)


@pytest.mark.parametrize(
    ("modes", "steps", "says"),
    [
        ({"pooling_mode_mean_tokens": False}, (), "its pooling is none, and cls, max"),
        ({"pooling_mode": "attention"}, (), "its pooling is attention, and cls, max"),
        ({"pooling_mode": "mean"}, [("LSTM", {}, None)], "has a step LSTM, and Transformer, Pooling"),
        ({"pooling_mode": "mean"}, [("Dense", {"in_features": 9, "out_features": 2}, None)], "takes 9 features, and 32 come before it"),
        ({"pooling_mode": "mean"}, [("Dense", {"in_features": 32, "out_features": 2}, None)], "has no model.safetensors"),
        (
            {"pooling_mode": "mean"},
            [("Dense", {"in_features": 32, "out_features": 2, "activation_function": "x.Odd"}, None)],
            "activation Odd",
        ),
    ],
)
def test_a_card_that_is_not_known(tmp_path, modes, steps, says):
    place = card(cases.copy("Bert", tmp_path), modes, steps)
    with pytest.raises(SetupError, match=says):
        models.build(cases.config(place), ("a", "b"))


def test_the_longest_text():
    for kind in KINDS:
        assert models.describe(cases.config(cases.folder(kind))).text.longest == 64, kind
    prompted = cases.config(cases.folder("Roberta"), tune="vpt_shallow", prompts=10)
    assert models.describe(prompted).text.longest == 54
    net = cases.network("Roberta", tune="vpt_shallow", prompts=10)
    assert net(cases.ids(length=54)).logits.isfinite().all()
    with pytest.raises(ConfigError, match="has 64 positions, which 62 prompts leave no room in"):
        models.describe(cases.config(cases.folder("Roberta"), tune="vpt_deep", prompts=62))


def test_weights(tmp_path):
    whole = load_file(cases.folder() / "model.safetensors")
    old = {
        f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in whole.items()
    }
    save_file({**old, "cls.predictions.bias": torch.zeros(3)}, tmp_path / "old.safetensors")
    bare, report = cases.copy("Bert", tmp_path), Report()
    (bare / "model.safetensors").unlink()
    x, want = cases.ids(), cases.encoder()(cases.ids())
    got = models.build(cases.config(bare, weights=str(tmp_path / "old.safetensors")), ("a",), report=report).eval()
    assert torch.equal(got(x).features, want) and not report.warnings and len(report.notes) == 1
    random = models.build(cases.config(bare, weights="random"), ("a",)).eval()
    assert not torch.allclose(random(x).features, want, atol=1e-2)
    with pytest.raises(SetupError, match="no safetensors weights, and other formats are not read"):
        models.build(cases.config(bare), ("a",))
    few = {key: value for key, value in whole.items() if "layer.2" not in key}
    save_file(few, bare / "model.safetensors", metadata={"format": "pt"})
    models.build(cases.config(bare), ("a",), report=report)
    assert "16 tensors are not in its weights and keep a random start (encoder.layer.2." in report.warnings[0]


def test_half_precision_files_become_fp32(tmp_path):
    place = cases.copy("Bert", tmp_path)
    save_file(
        {k: v.bfloat16() for k, v in load_file(place / "model.safetensors").items()}, place / "model.safetensors", metadata={"format": "pt"}
    )
    about = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**about, "torch_dtype": "bfloat16", "dtype": "bfloat16"}))
    for weights in (None, "random"):
        encoder = models.build(cases.config(place, weights=weights), ("a",)).encoder
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def break_(place, kind):
    if kind == "no tokenizer":
        [path.unlink() for path in place.glob("tokenizer*")]
    elif kind == "no encoder":
        (place / "config.json").unlink()
    elif kind == "another tokenizer":
        text_set.encoder(place / "other", classes=8)
        shutil.copy(place / "other" / "tokenizer.json", place)
    elif kind == "broken config":
        (place / "config.json").write_text("{")
    elif kind == "unknown type":
        (place / "config.json").write_text('{"model_type": "berd"}')
    return place


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no tokenizer", "has an encoder but no tokenizer; put tokenizer.json"),
        ("no encoder", "has tokenizer.json but no encoder: config.json and model.safetensors must lie there"),
        ("another tokenizer", r"tokenizer has \d+ tokens and its encoder embeddings of \d+; they do not belong together"),
        ("broken config", "its config.json is of no network that the installed transformers knows"),
        ("unknown type", "its config.json is of no network that the installed transformers knows"),
    ],
)
def test_a_folder_that_lacks_something(tmp_path, kind, says):
    with pytest.raises(SetupError, match=says) as told:
        models.describe(cases.config(break_(cases.copy("Bert", tmp_path), kind)))
    assert "\n" not in str(told.value)


def test_encoders_with_decoders_and_of_images(tmp_path):
    place = cases.copy("Bert", tmp_path)
    transformers.T5Config(vocab_size=99, d_model=16, num_layers=1).save_pretrained(place)
    with pytest.raises(ConfigError, match=r"is an encoder with a decoder \(t5\); take an encoder alone"):
        models.describe(cases.config(place))
    transformers.ViTConfig().save_pretrained(place)
    with pytest.raises(ConfigError, match=r"is no network for texts \(vit\)"):
        models.describe(cases.config(place))


@pytest.mark.parametrize("option", [{"img_size": 32}, {"patch_size": 8}, {"drop_path": 0.1}])
def test_options_of_images(option):
    with pytest.raises(ConfigError, match=f"model.{next(iter(option))} goes with networks for images"):
        models.describe(cases.config(cases.folder(), **option))
    with pytest.raises(ConfigError, match="data.size is the side of images"):
        models.describe(cases.config(cases.folder()), 32)


def test_layers_in_order():
    for kind in KINDS:
        numbers, head = towers.layers(cases.encoder(kind, tune="vpt_shallow+lora", prompts=2))
        assert head == 4, kind
        for name, layer in numbers.items():
            inside = [int(word) for word in name.split(".") if word.isdigit() and ("layer" in name or "lora" in name)][:1]
            if "embeddings" in name or "relative" in name or "rel_" in name:
                assert layer == 0, (kind, name)
            elif name == "prompts":
                assert layer == 1
            else:
                assert layer == (3 if "final_norm" in name else inside[0] + 1), (kind, name)
