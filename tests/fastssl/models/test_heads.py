"""The head with a hidden layer, by hand; what builds, exports and refuses it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.methods import find
from fastssl.models import exported
from fastssl.models.heads import CosineHead, LinearHead, ProjectedHead, demand_one_layer, kind_of, make_head
from fastssl.pipelines.errors import ConfigError

CLASSES = ("a", "b", "c")


def shaken(module):
    torch.manual_seed(4)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    return module.eval()


@pytest.mark.parametrize("training", [True, False])
def test_it_is_linear_batchnorm_relu_linear(training):
    head = shaken(make_head("projected", 5, 3, scale=1.0, width=4)).double().train(training)
    v = {key: value.clone().numpy() for key, value in head.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(6, 5))
    h = x @ v["linear.weight"].T
    mean, var = (h.mean(0), h.var(0)) if training else (v["norm.running_mean"], v["norm.running_var"])
    h = np.maximum((h - mean) / np.sqrt(var + 1e-5) * v["norm.weight"] + v["norm.bias"], 0)
    got = head(torch.from_numpy(x))
    np.testing.assert_allclose(got.detach(), h @ v["classifier.weight"].T + v["classifier.bias"], rtol=1e-9, atol=1e-12)
    assert "linear.bias" not in v and head.width == 4


def test_it_begins_without_an_opinion():
    head = ProjectedHead(5, 3)
    assert head.width == 5 and not head(torch.randn(4, 5)).any() and head.hidden(torch.randn(4, 5)).any()


def test_one_row_is_seen_by_the_running_statistics():
    head = shaken(ProjectedHead(5, 3))
    x, before = torch.randn(1, 5), {key: value.clone() for key, value in head.named_buffers()}
    plain = head(x)
    assert torch.equal(head.train()(x), plain) and plain.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in head.named_buffers())
    plain.sum().backward()
    assert head.linear.weight.grad.abs().sum() > 0


def test_a_network_is_built_with_it():
    made = models.build(ModelConfig(name="wrn-10-1", head="projected", head_width=8, batchnorm_momentum=0.02), CLASSES)
    assert isinstance(made.head, ProjectedHead) and made.head.linear.weight.shape == (8, 64) and made.head.norm.momentum == 0.02
    usual = models.build(ModelConfig(name="wrn-10-1", head="projected"), CLASSES).head
    assert (usual.width, usual.norm.momentum) == (64, 0.1)
    assert models.build(ModelConfig(head="projected"), CLASSES).has_batchnorm, "a transformer has some then"
    with pytest.raises(ConfigError, match="head_init=text fills a head of one layer"):
        models.build(ModelConfig(head="projected", head_init="text"), CLASSES)


def test_kinds_have_names():
    heads = {kind: make_head(kind, 5, 3, scale=2.0, width=None) for kind in ("linear", "cosine", "projected")}
    assert [type(head) for head in heads.values()] == [LinearHead, CosineHead, ProjectedHead] and heads["cosine"].scale == 2
    assert all(kind_of(head) == kind for kind, head in heads.items())
    for kind in ("linear", "cosine"):
        demand_one_layer(heads[kind], "anything")
    with pytest.raises(ConfigError, match="^a thing needs a head of one layer, and model.head=projected has a hidden one; give --set"):
        demand_one_layer(heads["projected"], "a thing")


@pytest.mark.parametrize(
    ("name", "options"), [("finessl", {}), ("layermatch", {}), ("layermatch", {"averaging": "off"}), ("mean_teacher", {"two_heads": True})]
)
def test_methods_that_cannot_do_with_it_say_so(toy, name, options):
    kind, network = find(name), toy.network("linear")
    network.head = ProjectedHead(7, 5).double()
    with pytest.raises(ConfigError, match="needs a head of one layer"):
        kind(kind.Config(**options), network, toy.spec(), unlabelled_batch=6, ema=0.9)


def test_methods_that_read_no_head_take_it(toy):
    for name, options in (
        ("fixmatch", {}),
        ("comatch", {}),
        ("mean_teacher", {}),
        ("layermatch", {"averaging": "off", "grad_relu": "off"}),
    ):
        kind, network = find(name), toy.network("linear")
        network.head = ProjectedHead(7, 5).double()
        m = kind(kind.Config(**options), network, toy.spec(), unlabelled_batch=6, ema=0.9, weak_pass="joint").double().train()
        terms = m.step(toy.batch(m.asked), toy.clock(3), lambda loss: loss.backward())
        assert terms.total.isfinite() and network.head.norm.num_batches_tracked == 1, name


EXPORTED = {
    "its own library's": ({"name": "wrn-10-1"}, "torch", 16),
    "timm's": ({"name": "timm:test_vit", "img_size": 32, "patch_size": 8, "head_width": 6}, "timm", 32),
    "adapters kept": ({"name": "timm:test_vit", "img_size": 32, "patch_size": 8, "tune": "vpt_deep", "prompts": 2}, "fastssl", 32),
}


@pytest.mark.parametrize("case", EXPORTED)
@torch.no_grad()
def test_an_export_answers_as_the_network_does(tmp_path, monkeypatch, case):
    options, layout, side = EXPORTED[case]
    if options["name"].startswith("timm"):
        pytest.importorskip("timm", reason="timm comes with pip install 'fastssl[vision]'")
    config = ModelConfig(**options, weights="random", head="projected")
    made = shaken(models.build(config, CLASSES, size=side))
    packed = exported.pack(made, config, side, tmp_path / "net.safetensors")
    about = {"schema": 1, "classes": CLASSES, "input": {"size": side}, "model": vars(config), **packed.about}
    exported.write(packed, tmp_path / "net.json", about)
    assert packed.about["head"] == "projected" and packed.about["layout"] == layout
    assert len(packed.files) == (1 if layout == "fastssl" else 2)
    monkeypatch.chdir(tmp_path)
    images = torch.randn(2, 3, side, side)
    names = {"images": images}
    exec("\n".join(json.loads((tmp_path / "net.json").read_text())["python"]), names)
    torch.testing.assert_close(names["logits"], made(images).logits, rtol=1e-4, atol=1e-5)
    if layout == "fastssl":
        return
    again = models.build(ModelConfig(**options, weights=str(tmp_path / "net.safetensors")), CLASSES, size=side).eval()
    torch.testing.assert_close(again(images).features, made(images).features)
