"""Named presets: every one resolves, says where it comes from, and is what the papers print."""

import re

import pytest

from fastssl import methods, presets
from fastssl.config import flatten, resolve
from fastssl.pipelines import policies, sources
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.text_policies import text_policy
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
    if config.model.name.startswith("transformers:"):
        assert config.data.name.endswith(".csv") and text_policy(config.data.policy)
    else:
        assert (config.data.name in sources.SETS or "imagenet" in config.data.name) and config.data.policy in policies.POLICIES
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
    if config.model.name.startswith("transformers:"):
        pytest.skip("its description lies on the hub")
    size = 224 if preset.name.startswith(("finessl", "zeromatch_flowers102", "simclrv2")) else config.model.img_size
    assert models.describe(config.model).size == size


def test_the_names_that_the_papers_settings_have():
    names = set(presets.PRESETS)
    assert {
        f"finessl_{rest}" for rest in ("cifar10_n1", "cifar10_n2", "cifar10_n4", "cifar100_n4", "cifar100_n25", "cifar100_n100")
    } <= names
    assert {f"finessl_food101_n{n}" for n in (2, 4, 10)} | {f"fixmatch_cifar10_{n}" for n in (40, 250, 4000)} <= names
    assert {f"fixmatch_cifar100_{n}" for n in (400, 2500, 10000)} | {f"fixmatch_svhn_{n}" for n in (40, 250, 1000)} <= names
    assert {"fixmatch_stl10_1000", "usb_cifar100_200", "usb_cifar100_400", "usb_stl10_40", "usb_stl10_100"} <= names
    assert {"usb_eurosat_20", "usb_eurosat_40"} <= names
    cifar = [f"cifar10_{n}" for n in (40, 250, 4000)] + [f"cifar100_{n}" for n in (400, 2500, 10000)]
    assert {f"{method}_{rest}" for method in ("flexmatch", "freematch", "softmatch", "adamatch") for rest in cifar} <= names
    assert {"spl_cifar10_40", "zeromatch_cifar100_100", "zeromatch_flowers102_204"} <= names and len(names) == 123


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


def test_the_successors_numbers_are_of_the_table_that_they_name():
    """One protocol a preset: USB's CIFAR-100 is another network's, and its forms have other options."""
    shown = {name: {m: str(r) for m, r in presets.find(name).published.items()} for name in presets.PRESETS}
    assert shown["flexmatch_cifar100_400"] == {"fixmatch": "53.58 +- 0.82", "flexmatch": "60.06 +- 1.62"}
    assert shown["freematch_cifar100_400"] == {"freematch": "62.02 +- 0.42"} and shown["softmatch_cifar100_2500"] == {
        "softmatch": "73.34 +- 0.25"
    }
    assert shown["freematch_cifar10_40"]["freematch"] == "95.03 +- 0.09" and shown["softmatch_cifar10_250"]["softmatch"] == "95.16 +- 0.10"
    assert shown["adamatch_cifar10_4000"]["adamatch"] == "95.71 +- 0.06" and shown["spl_cifar10_40"] == {
        "spl": "92.76",
        "fixmatch": "90.72",
    }
    assert shown["zeromatch_cifar100_100"]["zeromatch"] == "88.01" and shown["zeromatch_flowers102_204"]["pseudo_supervision"] == "85.40"
    for name in (name for name in presets.PRESETS if name.startswith(("flexmatch", "freematch", "softmatch", "adamatch"))):
        preset, values = presets.find(name), presets.find(name).values()
        narrow = "cifar100" not in name or name.startswith("adamatch")
        assert values["model.name"] == ("wrn-28-2" if narrow else "wrn-28-8"), name
        assert values["train.weight_decay"] == (1e-3 if "cifar100" in name else 5e-4) and values["train.steps"] == 2**20
        assert ("USB" in preset.source) == ("adamatch" in preset.published), "USB's numbers stand under USB's name alone"


def test_the_successors_options():
    options = lambda name: {k: v for k, v in presets.find(name).values().items() if k.startswith(("method.", "data.policy"))}  # noqa: E731
    assert (
        options("freematch_cifar10_40")["method.fairness_weight"] == 1e-3
        and options("freematch_cifar100_400")["method.fairness_weight"] == 0.01
    )
    assert [options(f"softmatch_cifar{n}")["method.statistics"] for n in ("10_40", "100_400")] == ["aligned", "raw"]
    config = resolved(presets.find("adamatch_cifar10_40")).method
    assert (config.threshold, config.align_memory) == (0.95, "ema") and not (config.strong_labelled or config.interpolate or config.ramp)
    smooth = options("spl_cifar10_40")
    assert (smooth["method.lambda_u"], smooth["method.weighting"], smooth["data.policy"]) == (1.1, "smooth", "fixmatch")
    assert options("flexmatch_cifar10_40")["data.policy"] == "usb"
    for name, steps, lr in (("cifar100_100", 204_800, 5e-4), ("flowers102_204", 102_400, 1e-4)):
        values = presets.find(f"zeromatch_{name}").values()
        assert (values["train.steps"], values["train.lr"], values["train.batch_size"]) == (2 * steps, lr, 16)
        assert values["train.warmup"] * 40 == steps and "method.threshold" not in values


def test_the_consistency_methods_settings():
    """TorchSSL's and the papers' own differ in what sums are divided by, in the ramp, and in who draws the images."""
    values = {name: presets.find(name).values() for name in presets.PRESETS}
    for method, weight in (("pi_model", 10.0), ("mean_teacher", 50.0)):
        own = values[f"{method}_cifar10_250"]
        assert (own["method.lambda_u"], own["method.reduction"], own["method.labels_share"]) == (weight, "streams", False)
        assert (own["method.ramp"], own["method.ramp_share"], own["train.ratio"], own["train.steps"]) == ("linear", 0.4, 1, 2**20)
    heads = values["mean_teacher_two_heads_cifar10_4000"]
    assert heads["method.two_heads"] and heads["train.ema"] == 0.97 and heads["train.batch_size"] == 4 * 31
    assert heads["method.ramp_share"] * heads["train.steps"] == pytest.approx(5 * 118)
    for name, lr, epoch in (("cifar10_4000", 3e-3, 500), ("cifar100_10000", 3e-3, 500), ("svhn_500", 1e-3, 733)):
        own = values[f"temporal_ensembling_{name}"]
        assert (own["train.lr"], own["train.steps"], own["train.warmup"], own["train.ema"]) == (lr, 300 * epoch, 80 * epoch, 0)
        assert 95 < own["train.batch_size"] * (1 + own["train.ratio"]) < 105
    assert [values[f"ict_{name}"]["method.mixup"] for name in ("cifar10_4000", "svhn_1000")] == [1.0, 0.1]
    shown = {name: {m: str(r) for m, r in presets.find(name).published.items()} for name in values}
    assert shown["ict_cifar10_4000"] == {"ict": "92.34"} and shown["temporal_ensembling_svhn_500"] == {"temporal_ensembling": "94.88"}
    assert shown["mean_teacher_two_heads_cifar10_4000"] == {"mean_teacher": "93.72 +- 0.15"}
    assert shown["pi_model_cifar10_40"] == {"pi_model": "25.66"} and shown["mean_teacher_cifar10_250"] == {"mean_teacher": "62.54"}


def test_vats_and_pseudo_labels_settings():
    """TorchSSL's on weak views alone, and the paper's, whose options differ from the method's defaults."""
    values = {name: presets.find(name).values() for name in ("vat_cifar10_4000", "vat_paper_cifar10_4000", "pseudo_label_cifar10_250")}
    torchssl, paper, lee = values.values()
    weights = ("method.lambda_u", "method.entropy_min", "method.epsilon", "method.ramp", "train.ratio", "train.steps", "train.optimizer")
    assert [torchssl[key] for key in weights] == [0.3, 0.06, 6.0, "linear", 1, 2**20, "sgd"]
    assert [paper[key] for key in weights] == [1.0, 1.0, 8.0, "none", 4, 200_000, "adamw"] and paper["train.ema"] == 0
    assert (lee["method.threshold"], lee["method.lambda_u"], lee["method.ramp_start"], lee["method.ramp_share"]) == (0.95, 1.0, 0.0, 0.4)
    shown = {name: presets.find(name).published for name in values}
    assert str(shown["vat_paper_cifar10_4000"]["vat"]) == "89.45" and str(shown["vat_cifar10_4000"]["vat"]) == "89.49"
    assert str(shown["pseudo_label_cifar10_250"]["pseudo_label"]) == "53.51"


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
        assert len(importlib.reload(presets).PRESETS) == 123


def test_the_plain_commands_settings_are_as_they_were():
    assert defaults("finessl")["train.steps"] == 150 and defaults("finessl")["model.prompts"] == 8
    assert defaults("fixmatch", model="wrn-28-2", data="photos") == {
        "train.steps": 20_000,
        "train.batch_size": 64,
        "train.ratio": 7,
        "train.lr": 0.03,
        "train.ema": 0.999,
    }


def test_a_shorter_run_averages_over_less():
    """What moves by a thousandth a step would still be its start after some hundred: a plain command's averages follow its steps."""
    asked = {"model": "wrn-28-2", "data": "photos"}
    for steps, decay in ((1000, 0.99), (300, 0.98), (120, 0.95)):
        found = defaults("fixmatch", **asked, steps=steps)
        assert found["train.ema"] == decay and found["model.batchnorm_momentum"] == pytest.approx(1 - decay)
        assert 0 < decay**steps < 0.01
    for steps in (50, 3000, 20_000):  # a trial; long enough
        assert defaults("fixmatch", **asked, steps=steps) == defaults("fixmatch", **asked)
    assert "model.batchnorm_momentum" not in defaults("fixmatch", model="preact-resnet-18", data="photos", steps=300)
    assert defaults("fixmatch", model="wrn-28-2", steps=300) == defaults("fixmatch", model="wrn-28-2"), "digits have it in their recipe"


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_plain_command_on_texts_fits_every_method(name):
    kind = methods.find(name)
    config = resolve(name, kind.Config, [("plain", defaults(name, model="transformers:encoder", data="reviews.csv"))])
    if name == "zero_shot":
        return
    assert (config.train.optimizer, config.model.head, config.model.encoder_dropout) == ("adamw", "cosine", 0.0)
    assert not getattr(config.method, "ctaugment", False) and not getattr(config.method, "lambda_rotation", 0.0)
    assert config.train.ema > 0 or not kind.usual_ema, "what cannot do without an average has one"
