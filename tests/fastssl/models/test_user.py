"""A user's own network: by name, from Python, through training, eval and predict; and docs/networks.md's code as it stands."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import nn

from fastssl import methods, models
from fastssl.config import ModelConfig, resolve
from fastssl.engine.assemble import assemble
from fastssl.engine.inference import load_trained, logits_for
from fastssl.engine.run import Run
from fastssl.pipelines.errors import ConfigError, SetupError

SOURCE = """
from torch import nn

class Net(nn.Module):
    input_size = 12
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    interpolation = "bilinear"
    def __init__(self, width=6):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    def forward(self, x):
        return self.layers(x)

def plain():
    return Net(5)

def wrong_shape():
    return nn.Conv2d(3, 4, 3)

def no_module():
    return 7

def lies():
    net = Net(5)
    net.num_features = 9
    return net

def needs(width):
    return Net(width)

number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's module on the path."""
    (tmp_path / "users_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_networks"
    sys.modules.pop("users_networks", None)


def run_config(tmp_path, **model):
    layer = {f"model.{key}": value for key, value in model.items()}
    layer |= {
        "data.labels_per_class": 1,
        "train.batch_size": 4,
        "train.ratio": 1,
        "train.steps": 3,
        "train.device": "cpu",
        "train.ema": 0.5,
    }
    return resolve("fixmatch", methods.find("fixmatch").Config, [("test", layer)])


def test_a_class_says_what_it_wants(package):
    spec = models.describe(ModelConfig(name=f"{package}:Net"))
    assert spec[:4] == (12, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bilinear")
    network = models.build(ModelConfig(name=f"{package}:Net"), ("a", "b", "c"), size=12)
    assert network(torch.randn(2, 3, 12, 12)).features.shape == (2, 6)


def test_a_function_is_tried_for_its_width(package):
    spec = models.describe(ModelConfig(name=f"{package}:plain"), 20)
    assert spec[:4] == (20, None, None, "bicubic")
    network = models.build(ModelConfig(name=f"{package}:plain"), ("a", "b"), size=20)
    assert network.encoder.num_features == 5 and network.encoder.training and network.head.in_features == 5


def test_a_named_factory_trains_and_is_found_again(package, tmp_path):
    config = run_config(tmp_path, name=f"{package}:Net")
    made = assemble(config)
    assert made.pipeline.spec.shape == (3, 12, 12) and made.source.mean == (0.5, 0.4, 0.3) and made.config.data.interpolation == "bilinear"
    run = Run(made, tmp_path / "run", quiet=True)
    run.train()
    trained = load_trained(tmp_path / "run", config)
    pixels = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8).numpy()
    mean, std = torch.tensor(trained.mean).view(-1, 1, 1), torch.tensor(trained.std).view(-1, 1, 1)
    with torch.no_grad():
        wanted = made.method.ema.eval()((torch.from_numpy(pixels) / 255 - mean) / std).logits
    torch.testing.assert_close(logits_for(trained.network, pixels, trained, "off"), wanted)


def test_a_module_from_python_is_trained_itself(package, tmp_path):
    import users_networks

    mine = users_networks.Net(7)
    before = mine.layers[0].weight.detach().clone()
    made = assemble(run_config(tmp_path), encoder=mine)
    assert made.method.network.encoder is mine and made.config.model.name == "users_networks:Net"
    Run(made, tmp_path / "run", quiet=True).train()
    assert not torch.equal(mine.layers[0].weight, before)
    # Net() alone has 6 channels, not 7: such a run is found again with a module of its make.
    trained = load_trained(tmp_path / "run", made.config, encoder=users_networks.Net(7))
    assert torch.equal(trained.networks["raw"].encoder.layers[0].weight, mine.layers[0].weight)
    assert not torch.equal(trained.networks["ema"].encoder.layers[0].weight, mine.layers[0].weight)


def test_weights_of_a_file(package, tmp_path):
    import users_networks
    from safetensors.torch import save_file

    theirs = users_networks.Net()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    network = models.build(ModelConfig(name=f"{package}:Net", weights=str(tmp_path / "w.safetensors")), ("a", "b"))
    assert torch.equal(network.encoder.layers[0].weight, theirs.layers[0].weight)


@pytest.mark.parametrize(
    ("name", "error", "fragments"),
    [
        ("users_networks:nett", ConfigError, ("'nett'", "Net")),
        ("users_networks:number", ConfigError, ("function or class", "int")),
        ("users_networks:needs", ConfigError, ("without arguments", "width")),
        ("users_networks:no_module", ConfigError, ("nn.Module", "int")),
        ("users_networks:wrong_shape", ConfigError, ("[2, d]", "[2, 4, ")),
        ("users_networks:lies", ConfigError, ("num_features", "9", "5")),
        ("nowhere_at_all:f", SetupError, ("nowhere_at_all", "PYTHONPATH")),
        (".relative:f", ConfigError, ("package.module:factory",)),
    ],
)
def test_what_is_no_network_is_refused_in_one_sentence(package, name, error, fragments):
    config = ModelConfig(name=name)
    with pytest.raises(error) as caught:
        models.describe(config)
        models.build(config, ("a", "b"), size=16)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_attributes_that_cannot_be_meant_are_refused():
    class Odd(nn.Module):
        mean = (0.5, 0.5)

    for attribute, value, fragment in (
        ("mean", (0.5, 0.5), "three numbers"),
        ("mean", (0.5,) * 3, "one of mean and std"),
        ("input_size", "32", "pixels"),
    ):
        odd = nn.Flatten()
        setattr(odd, attribute, value)
        with pytest.raises(ConfigError, match=fragment):
            models.describe(ModelConfig(), encoder=odd)
    sized = nn.Flatten()
    sized.input_size = 16
    with pytest.raises(ConfigError, match="16 pixels, and data.size asks for 20"):
        models.describe(ModelConfig(), 20, encoder=sized)
    with pytest.raises(ConfigError, match="model.img_size"):
        models.describe(ModelConfig(img_size=32), encoder=nn.Flatten())


def test_the_pages_code_runs_as_it_stands(root, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", (root / "docs" / "networks.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    blocks = [block for block in blocks if not block.startswith("import timm")]  # that one is test_exported.py's
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.randn(4, 3).T}, "model.pth")
    names = {"__name__": "a_users_script"}
    for block in blocks:
        exec(compile(block, "docs/networks.md", "exec"), names)
    from safetensors.torch import load_file

    assert torch.equal(load_file("model.safetensors")["weight"], names["state"]["weight"])
    assert names["result"]["steps"] == 20 and names["result"]["model"] == "a_users_script:Small"
    assert 0 <= names["result"]["accuracy"] <= 1
