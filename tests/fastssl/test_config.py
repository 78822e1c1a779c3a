"""Layers, coercion and schedules."""

import math

import pytest
import torch

from fastssl.config import TrainConfig, coerce, flatten, parse_set, resolve
from fastssl.methods.finessl import FineSSL
from fastssl.pipelines.errors import ConfigError
from fastssl.schedules import Clock, learning_rate


def test_later_layers_go_over_earlier_ones_and_origins_are_kept():
    layers = [("preset", {"train.lr": 0.1, "train.steps": 5}), ("file", {"train.lr": "1e-4"}), ("flags", {"method.gamma": 2})]
    config = resolve("finessl", FineSSL.Config, layers)
    assert (config.train.lr, config.train.steps, config.method.gamma) == (1e-4, 5, 2.0)
    assert config.origins == {"train.lr": "file", "train.steps": "preset", "method.gamma": "flags"}
    again = resolve("finessl", FineSSL.Config, [("x", flatten(config.nested(), "x"))])
    assert again == config


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [("3", int, 3), ("1e-4", float, 1e-4), ("true", bool, True), ("no", bool, False), ("none", int | None, None), ("4", int | None, 4)],
)
def test_coercion(value, kind, result):
    assert coerce(value, kind, "a.b", "here") == result


@pytest.mark.parametrize(("value", "kind"), [("x", int), ("1.5", int), (1.5, int), (True, int), ("maybe", bool), ("y", float)])
def test_wrong_types_name_key_and_place(value, kind):
    with pytest.raises(ConfigError, match="a.b in here must be"):
        coerce(value, kind, "a.b", "here")


def test_set_wants_section_option_value():
    assert parse_set(["train.lr=0.1", "data.name=a=b"]) == {"train.lr": "0.1", "data.name": "a=b"}
    for bad in ("lr=3", "train.lr"):
        with pytest.raises(ConfigError):
            parse_set([bad])


def test_every_field_has_a_sentence():
    import dataclasses

    from fastssl.config import SECTIONS

    for kind in (*SECTIONS.values(), TrainConfig):
        assert all(f.metadata.get("help") for f in dataclasses.fields(kind))


def rate(step, **options):
    return learning_rate(torch.tensor(step), **({"peak": 1.0, "total": 100} | options)).item()


def test_learning_rates_of_the_papers():
    assert rate(50, schedule="fixmatch") == pytest.approx(math.cos(7 * math.pi / 32))
    assert rate(50, schedule="cosine") == pytest.approx(0.5)
    assert rate(77, schedule="constant") == 1
    assert [rate(t, schedule="cosine", warmup=4) for t in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    # FineSSL: 30 epochs of 500 steps, the cosine moves once an epoch, the last rate is 8.2e-5 of 0.03
    epochs = {"total": 15_000, "schedule": "cosine", "period": 500, "peak": 0.03}
    assert rate(499, **epochs) == rate(0, **epochs) == pytest.approx(0.03)
    assert rate(14_999, **epochs) == pytest.approx(0.03 * (1 + math.cos(math.pi * 29 / 30)) / 2, rel=1e-4)


def test_clock_starts_before_the_first_step():
    clock = Clock(10, 3)
    clock.advance()
    assert (clock.step.item(), clock.seed.item()) == (0, 3)
