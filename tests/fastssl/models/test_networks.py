"""Networks by name: shapes, sizes, one training step with each, and what a frozen encoder keeps."""

from __future__ import annotations

import sys

import pytest
import torch

from fastssl import methods, models
from fastssl.config import ModelConfig, resolve
from fastssl.engine.assemble import assemble
from fastssl.engine.run import Run
from fastssl.models import build
from fastssl.models.preact import PreActResNet
from fastssl.models.wrn import WideResNet
from fastssl.pipelines.errors import ConfigError, SetupError
from tests.fastssl.models import network_table

ROWS = pytest.mark.parametrize("row", network_table.ROWS, ids=lambda row: row.name)


def parts(row, method):
    """One tiny step's worth of a run on digits: 2 labelled images, and 2 unlabelled ones where the method wants them."""
    layer = {f"model.{key}": value for key, value in {"name": row.name, "weights": "random", **row.options}.items()}
    layer |= {"data.labels_per_class": 1, "data.size": row.size, "train.batch_size": 2, "train.ratio": 1, "train.steps": 1}
    layer |= {"train.device": "cpu", "train.lr": 0.01, "train.ema": 0.9}
    return assemble(resolve(method, methods.find(method).Config, [("test", layer)]))


@ROWS
def test_table_row_and_forward_shape(row, root):
    """docs/networks.md's table is made here: a row that differs is printed as it should be."""
    network = network_table.build(row).eval()
    side = models.describe(row.config, row.size).size
    with torch.no_grad():
        out = network(torch.randn(2, 3, side, side))
    assert out.logits.shape == (2, 3) and out.features.shape == (2, network.encoder.num_features)
    assert torch.isfinite(out.logits).all()
    line = network_table.line(row, network)
    assert line in (root / "docs" / "networks.md").read_text(encoding="utf-8").splitlines(), f"docs/networks.md should say\n{line}"


@ROWS
@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_one_training_step_moves_the_weights(row, method):
    made = parts(row, method)
    run = Run(made, None, quiet=True)
    network = made.method.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    made.method.train()
    run.step()
    values = run.step.read()
    assert values["skipped"] == 0 and torch.isfinite(torch.tensor(values["loss"]))
    assert not [name for name, p in network.named_parameters() if p.grad is None], "weights that nothing depends on"
    # Residual networks whose last norms start at zero move the branches behind them from the second step on.
    moved = [name for name, p in network.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > 0.5 * len(before) and {"head.weight", "head.bias"} <= set(moved)


def test_the_table_spans_the_families():
    assert len(network_table.ROWS) >= 12
    assert {row.name.partition(":")[0] for row in network_table.ROWS} >= {"timm", "open_clip", "wrn-28-2", "glyph_clip"}


def test_wrn_28_2_has_the_published_size():
    network = build(ModelConfig(name="wrn-28-2"), tuple("0123456789"))
    assert sum(p.numel() for p in network.parameters()) == 1_467_610


def test_wrn_37_2_is_the_sources_four_stages():
    """USB's wrn_var_37_2: 16, 32, 64, 128, 256 channels, four blocks a stage, stride 2 in each: 96 pixels become 6; 5.9 M weights."""
    encoder = WideResNet(37, 2)
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 37  # the stem, 32 in blocks, 4 shortcuts
    maps = []
    for block in encoder.layers:
        block.register_forward_hook(lambda module, args, out: maps.append(tuple(out.shape[1:])))
    encoder.eval()(torch.zeros(1, 3, 96, 96))
    assert maps == [(32, 48, 48)] * 4 + [(64, 24, 24)] * 4 + [(128, 12, 12)] * 4 + [(256, 6, 6)] * 4
    # USB's convolutions have biases (one a channel) and its classifier 10 classes; ours have none.
    biases = sum(m.out_channels for m in convolutions)
    assert sum(p.numel() for p in encoder.parameters()) + biases + 256 * 10 + 10 == pytest.approx(5.9e6, rel=0.01)
    with pytest.raises(ValueError, match="6 n \\+ 4, or 37"):
        WideResNet(36, 2)


def test_preact_resnet_18_has_the_codes_size():
    """kuangliu's and DivideMix's PreActResNet18 with 10 classes: 11,171,146 weights, and DivideMix's stem norm's 128."""
    encoder = PreActResNet()
    assert sum(p.numel() for p in encoder.parameters()) + 512 * 10 + 10 == 11_171_146 + 128
    with torch.no_grad():
        assert encoder.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 512)


def test_linear_tuning_leaves_batchnorm_statistics_alone():
    network = build(ModelConfig(name="wrn-28-2", tune="linear"), ("a", "b")).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(torch.randn(4, 3, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


# FixMatch's 0.001; DivideMix's code and timm's ResNets have torch's 0.1.
OWN = {"wrn-28-2": 0.001, "wrn-37-2": 0.001, "preact-resnet-18": 0.1, "timm:resnet18": 0.1}


@pytest.mark.parametrize("name", OWN)
def test_batchnorm_keeps_the_networks_own_momentum_unless_another_is_asked_for(name):
    def momenta(**options):
        encoder = build(ModelConfig(name=name, weights="random", **options), ("a", "b")).encoder
        return {m.momentum for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}

    assert momenta() == {OWN[name]}
    for value in (0.02, 0.001):
        assert momenta(batchnorm_momentum=value) == {value}


def test_batchnorm_of_a_module_that_is_handed_over_keeps_its_momentum_too():
    for asked, expected in ((None, 0.3), (0.02, 0.02)):
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4, momentum=0.3), torch.nn.AdaptiveAvgPool2d(1))
        module.append(torch.nn.Flatten())
        build(ModelConfig(batchnorm_momentum=asked), ("a", "b"), encoder=module)
        assert module[1].momentum == expected


@pytest.mark.parametrize(
    ("config", "error", "fragments"),
    [
        ({"name": "wrn-28-0"}, ConfigError, ("unknown model 'wrn-28-0'", "wrn-28-2")),
        ({"name": "resnet18"}, ConfigError, ("did you mean timm:resnet18?",)),
        ({"name": "timm:"}, ConfigError, ("timm:resnet18",)),
        ({"name": "transformers:./bert"}, SetupError, ("there is no folder ./bert",)),
        ({"name": "wrn-28-2", "img_size": 32}, ConfigError, ("model.img_size", "wrn-28-2")),
        ({"name": "wrn-28-2", "weights": "gone.safetensors"}, SetupError, ("gone.safetensors", "no such file")),
        ({"name": "wrn-28-2", "weights": "bomb.pth"}, SetupError, ("bomb.pth", "can carry code")),
    ],
    ids=str,
)
def test_bad_names_and_options_are_one_sentence(config, error, fragments):
    with pytest.raises(error) as caught:
        models.describe(ModelConfig(**config))
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_size_of_the_users_own_is_refused_by_glyph_clip():
    with pytest.raises(ConfigError, match="32 pixels, and data.size asks for 64"):
        models.describe(ModelConfig(), 64)


@pytest.mark.parametrize("name", ["timm:resnet18", "open_clip:RN50"])
def test_a_missing_package_names_the_pip_command(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name.partition(":")[0], None)
    with pytest.raises(SetupError, match=r"pip install 'fastssl\[vision\]'"):
        models.describe(ModelConfig(name=name))


def test_importing_the_room_wakes_no_library(python):
    python("-c", "import sys, fastssl.models; assert not {'timm', 'open_clip', 'huggingface_hub', 'torchvision'} & set(sys.modules)")


def test_a_presets_image_size_gives_way_to_the_networks_own_and_is_written_down():
    layers = [("preset", {"data.size": 16, "data.labels_per_class": 1}), ("flags", {"train.device": "cpu"})]
    layers.append(("flags", {"model.name": "timm:vit_tiny_patch16_224", "model.weights": "random"}))
    layers.append(("flags", {"model.img_size": 32, "model.patch_size": 8}))
    made = assemble(resolve("supervised", methods.find("supervised").Config, layers))
    assert made.pipeline.spec.shape == (3, 32, 32) and made.config.data.size == 32
    assert any("32 pixels" in note for note in made.notes)


def test_normalise_says_whose_constants_count():
    row = next(row for row in network_table.ROWS if row.name == "timm:resnet18")
    assert parts(row, "supervised").source.mean == pytest.approx((0.485, 0.456, 0.406))
    ours = row._replace(options={"normalise": "data"})
    assert parts(ours, "supervised").source.mean != pytest.approx((0.485, 0.456, 0.406))
