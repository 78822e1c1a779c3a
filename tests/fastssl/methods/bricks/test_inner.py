"""Inner methods: their options, their errors, and that they have no network of their own."""

import pytest
from torch import nn

from fastssl.methods import find
from fastssl.methods.bricks.inner import CARRIED, inner_config, make_inner
from fastssl.models import Network
from fastssl.pipelines.errors import ConfigError


def config(name, text):
    return inner_config(name, find(name), text)


def test_options_are_read_as_they_are_written():
    c = config("fixmatch", " threshold = 0.7,weighting=smooth , power=2,")
    assert (c.threshold, c.weighting, c.power, c.lambda_u) == (0.7, "smooth", 2.0, 1.0)
    assert config("flexmatch", "threshold_warmup=no").threshold_warmup is False
    for name in CARRIED:
        if name != "adamatch":
            assert config(name, "") == find(name).Config()


def test_an_inner_adamatch_is_usbs_unless_told_otherwise():
    c = config("adamatch", "")
    assert (c.strong_labelled, c.interpolate, c.ramp, c.align_memory, c.threshold, c.align) == (
        False,
        False,
        False,
        "ema",
        0.95,
        "predicted",
    )
    c = config("adamatch", "threshold=0.9,ramp=true,strong_labelled=true,align_memory=queue")
    assert (c.strong_labelled, c.interpolate, c.ramp, c.align_memory, c.threshold) == (True, False, True, "queue", 0.9)


ERRORS = [
    ("fixmatch", "treshold=0.7", "threshold"),  # the nearest name
    ("fixmatch", "mapping=convex", "no such option"),
    ("fixmatch", "threshold=0.7,threshold=0.8", "each name once"),
    ("adamatch", "threshold=0.7,threshold=0.8", "each name once"),
    ("fixmatch", "threshold", "name=value"),
    ("fixmatch", "threshold=", "a number"),
    ("fixmatch", "threshold=high", "a number"),
    ("fixmatch", "threshold=1.5", "at most 1"),
    ("fixmatch", "threshold=nan", "threshold"),
    ("flexmatch", "mapping=round", "mapping"),
    ("flexmatch", "threshold_warmup=maybe", "true or false"),
    ("softmatch", "sigmas=0", "above 0"),
]


@pytest.mark.parametrize(("name", "text", "words"), ERRORS)
def test_errors_name_the_place(name, text, words):
    with pytest.raises(ConfigError, match="method.inner_options") as caught:
        config(name, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_inner_method_has_memory_and_no_network(toy):
    for name in CARRIED:
        inner = make_inner(name, find(name), "", toy.network(), toy.spec(), unlabelled_batch=6, ema=0.999)
        assert inner.network is None and inner.ema is None and not list(inner.parameters())
    assert "learned.last" in make_inner("flexmatch", find("flexmatch"), "", toy.network(), toy.spec()).state_dict()


@pytest.mark.parametrize("outer", ["zeromatch", "pl_feature"])
def test_interpolation_takes_a_forward_pass_that_an_inner_method_has_not(toy, outer):
    normed = Network(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(27)), nn.Linear(27, 5))
    normed.encoder.num_features = 27
    kind = find(outer)
    with pytest.raises(ConfigError, match="leave interpolate at false"):
        kind(kind.Config(inner_options="interpolate=true"), normed, toy.spec())
    kind(kind.Config(), normed, toy.spec())
    # without batch-norm there is nothing to interpolate between
    toy.method(outer, inner_options="interpolate=true")


def test_views_are_the_inner_methods(toy):
    kind = find("pl_feature")
    both = kind.views_of(kind.Config(inner_options="strong_labelled=true"))
    assert both.labelled == ("weak", "strong") and both.unlabelled == ("weak", "strong") and both.no_grad == 1
    kind = find("zeromatch")
    assert kind.views_of(kind.Config()).no_grad == 0 and kind.views_of(kind.Config(annealing="off")).no_grad == 1
    assert kind.views_of(kind.Config(inner="fixmatch")).labelled == ("weak",)
