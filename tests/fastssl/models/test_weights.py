"""Weights from files: names matched, what does not fit told, nothing unpickled."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.models import Report, weights
from fastssl.models.preact import PreActResNet
from fastssl.models.wrn import WideResNet
from fastssl.pipelines.errors import SetupError


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def write(path, state):
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    return path


def load(module, path):
    report = Report()
    weights.load(module, path, "small", report)
    return report


@pytest.mark.parametrize("name", ["wrn-28-2", "wrn-37-2", "preact-resnet-18"])
@pytest.mark.parametrize("prefix", ["", "network.encoder.", "module."])
def test_our_own_networks_take_their_own_files(tmp_path, name, prefix):
    torch.manual_seed(1)
    kind = {"wrn-28-2": lambda: WideResNet(28, 2), "wrn-37-2": lambda: WideResNet(37, 2), "preact-resnet-18": PreActResNet}[name]
    theirs = kind().eval()
    file = write(tmp_path / "w.safetensors", {prefix + key: value for key, value in theirs.state_dict().items()})
    report = Report()
    encoder = models.build(ModelConfig(name=name, weights=str(file)), ("a", "b"), report=report).encoder.eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(encoder(x), theirs(x))
    assert not report.warnings and (prefix + "..." in report.notes[0]) == bool(prefix)


def test_classifiers_are_dropped_without_a_word(tmp_path):
    source = small()
    extra = {"fc.weight": torch.zeros(3, 5), "head.bias": torch.zeros(3)}
    report = load(small(), write(tmp_path / "w.safetensors", source.state_dict() | extra))
    assert not report.warnings and "6 of the 6" not in report.notes[0] and "8 of the 8 tensors of small" in report.notes[0]


def test_half_precision_becomes_the_networks(tmp_path):
    source, target = small(), small()
    load(target, write(tmp_path / "w.safetensors", {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}))
    assert target[0].weight.dtype == torch.float32
    torch.testing.assert_close(target[0].weight, source[0].weight, atol=1e-3, rtol=1e-2)


def test_what_is_left_over_is_one_warning_with_counts(tmp_path):
    source, target = small(), small()
    state = source.state_dict() | {"0.extra": torch.zeros(1), "9.weight": torch.zeros(2)}
    del state["3.bias"]
    start = target[3].bias.clone()
    report = load(target, write(tmp_path / "w.safetensors", state))
    assert len(report.warnings) == 1 and not report.notes
    for fragment in (
        "7 of the 8 tensors of small",
        "1 are not in the file",
        "3.bias",
        "2 of the file's are not used",
        "0.extra",
        "9.weight",
    ):
        assert fragment in report.warnings[0]
    assert torch.equal(target[0].weight, source[0].weight) and torch.equal(target[3].bias, start)


def test_a_deeper_networks_file_is_not_taken_in_silence(tmp_path):
    """Every tensor of the shallow one is in it, shapes alike: only the rest tells."""
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    report = load(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), write(tmp_path / "w.safetensors", deep.state_dict()))
    assert len(report.warnings) == 1 and "4 of the file's are not used" in report.warnings[0]


def test_another_architectures_file_is_refused(tmp_path):
    file = write(tmp_path / "w.safetensors", {"a.weight": torch.zeros(1), "0.weight": torch.zeros(4, 3, 3, 3)})
    with pytest.raises(SetupError, match=r"not of small: 1 of its 8 tensors are in the file"):
        load(small(), file)


def test_other_shapes_are_refused_before_anything_is_written(tmp_path):
    state = small().state_dict() | {"0.weight": torch.zeros(4, 3, 5, 5)}
    target = small()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(SetupError, match=r"1 of 8 tensors have other shapes, such as 0.weight with \[4, 3, 5, 5\] where \[4, 3, 3, 3\]"):
        load(target, write(tmp_path / "w.safetensors", state))
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_pickles_are_refused_unread(tmp_path, suffix):
    file = tmp_path / f"w{suffix}"
    torch.save(small().state_dict(), file)
    with pytest.raises(SetupError, match="can carry code"):
        weights.read(file)


def test_a_pickle_under_the_right_suffix_is_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    torch.save(small().state_dict(), file)
    with pytest.raises(SetupError, match="as safetensors"):
        weights.read(file)


def test_the_form_that_fits_best_is_taken(tmp_path):
    source, target, report = small(), small(), Report()
    state = source.state_dict()
    state["0.weight"] = state["0.weight"].repeat(1, 1, 2, 2)
    forms = lambda given: [{}, given | {"0.weight": given["0.weight"][:, :, :3, :3]}]  # noqa: E731
    weights.load(target, write(tmp_path / "w.safetensors", state), "small", report, forms)
    assert torch.equal(target[0].weight, source[0].weight)
    assert "brought to this image and patch size: 0.weight" in report.notes[0]
