"""Named presets: every one resolves, says where it comes from, and is what the papers print."""

import re

import pytest

from fastssl import methods, presets
from fastssl.config import flatten, resolve
from fastssl.pipelines import policies, sources
from fastssl.pipelines.errors import ConfigError
from fastssl.presets.plain import defaults


def resolved(preset, method=None):
    method = method or preset.method
    return resolve(method, methods.find(method).Config, [("preset", presets.layer(preset, method))])


EACH = pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=lambda preset: preset.name)


@EACH
def test_it_resolves(preset):
    config = resolved(preset)
    values = preset.values()
    assert config.method_name == preset.method == values["method.name"] and preset.method in methods.METHODS
    nested = flatten(config.nested(), "resolved")
    assert {key: nested[key] for key in values} == values, "nothing is coerced into something else"
    assert config.data.name in sources.SETS and config.data.policy in policies.POLICIES
    chosen = [config.data.labels_per_class, config.data.labels_total, config.data.label_fraction, config.data.split]
    assert sum(value is not None for value in chosen) == 1
    assert config.train.steps >= 15_000, "a published run, not a trial"


@EACH
def test_it_names_its_source(preset):
    assert re.search(r"arXiv \d{4}\.\d{5}", preset.source) and ("table" in preset.source or "results" in preset.source)
    assert preset.method in preset.published and preset.notes
    assert all(20 < result.accuracy < 100 and (result.deviation is None or result.deviation > 0) for result in preset.published.values())


@EACH
def test_its_network_exists(preset):
    pytest.importorskip("timm", reason="timm comes with the vision extra: pip install '.[vision]'")
    pytest.importorskip("open_clip", reason="open_clip comes with the vision extra: pip install '.[vision]'")
    from fastssl import models

    config = resolved(preset)
    size = {"finessl": 224, "fixmatch": None, "usb": config.model.img_size}[preset.name.split("_")[0]]
    assert models.describe(config.model).size == size


def test_the_names_that_the_papers_settings_have():
    names = set(presets.PRESETS)
    assert {
        f"finessl_{rest}" for rest in ("cifar10_n1", "cifar10_n2", "cifar10_n4", "cifar100_n4", "cifar100_n25", "cifar100_n100")
    } <= names
    assert {f"finessl_food101_n{n}" for n in (2, 4, 10)} | {f"fixmatch_cifar10_{n}" for n in (40, 250, 4000)} <= names
    assert {f"fixmatch_cifar100_{n}" for n in (400, 2500, 10000)} | {f"fixmatch_svhn_{n}" for n in (40, 250, 1000)} <= names
    assert {"fixmatch_stl10_1000", "usb_cifar100_200", "usb_cifar100_400", "usb_stl10_40", "usb_stl10_100"} <= names
    assert {"usb_eurosat_20", "usb_eurosat_40"} <= names and len(names) == 25


def test_what_differs_between_settings_of_one_paper():
    n1, n2, n4 = (presets.find(f"finessl_cifar10_n{n}").values() for n in (1, 2, 4))
    differs = {key for key in n1 if not n1[key] == n2[key] == n4[key]}
    assert differs == {"data.labels_per_class", "train.batch_size", "method.gamma"}
    assert [v["train.batch_size"] for v in (n1, n2, n4)] == [8, 16, 32] and [v["method.gamma"] for v in (n1, n2, n4)] == [1.0, 3.0, 3.0]
    c10, c100 = presets.find("fixmatch_cifar10_40").values(), presets.find("fixmatch_cifar100_400").values()
    assert (c10["train.weight_decay"], c100["train.weight_decay"]) == (5e-4, 1e-3) and c100["model.name"] == "wrn-28-8"
    rates = {
        name: (v["train.lr"], v["train.layer_decay"])
        for name in ("cifar100_200", "stl10_40", "eurosat_20")
        for v in [presets.find(f"usb_{name}").values()]
    }
    assert rates == {"cifar100_200": (5e-4, 0.5), "stl10_40": (1e-4, 0.65), "eurosat_20": (5e-5, 1.0)}


def test_the_published_numbers():
    """Spot checks of what was typed in, errors turned into accuracies."""
    shown = {name: presets.find(name).published for name in presets.PRESETS}
    assert str(shown["finessl_cifar100_n4"]["finessl"]) == "80.44"
    assert str(shown["fixmatch_cifar10_40"]["fixmatch"]) == "86.19 +- 3.37" and shown["fixmatch_stl10_1000"]["fixmatch"] == (92.02, 1.5)
    assert str(shown["usb_cifar100_200"]["freematch"]) == "78.60 +- 0.30" and str(shown["usb_eurosat_40"]["supervised"]) == "83.88 +- 1.35"


def test_another_method_in_the_same_setting():
    preset = presets.find("usb_cifar100_200")
    config = resolved(preset, "supervised")
    assert config.method_name == "supervised" and config.train.lr == 5e-4 and config.model.patch_size == 2
    assert not [key for key in presets.layer(preset, "supervised") if key.startswith("method.") and key != "method.name"]


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'finessl_cifar10_n3'; did you mean finessl_cifar10_n"):
        presets.find("finessl_cifar10_n3")


def test_presets_of_methods_that_are_not_built_are_not_listed(monkeypatch):
    import importlib

    monkeypatch.delitem(methods.METHODS, "finessl")
    try:
        assert not [name for name in importlib.reload(presets).PRESETS if name.startswith("finessl")]
    finally:
        monkeypatch.undo()
        assert len(importlib.reload(presets).PRESETS) == 25


def test_the_plain_commands_settings_are_as_they_were():
    assert defaults("finessl")["train.steps"] == 150 and defaults("finessl")["model.prompts"] == 8
    assert defaults("fixmatch", model="wrn-28-2", data="photos") == {
        "train.steps": 20_000,
        "train.batch_size": 64,
        "train.ratio": 7,
        "train.lr": 0.03,
        "train.ema": 0.999,
    }
