"""What a method cannot work with ends in one sentence and the right exit code; what is merely odd is trained without NaN."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fastssl.cli import main
from fastssl.engine import given as what_is_given
from fastssl.methods import METHODS
from tests.fastssl.commands.test_bad_input import fails
from tests.fastssl.engine.test_run import flat, state_of
from tests.fastssl.method_cases import FOUNDATION

SIZE = ["--set", "data.size=8"]
NET = ["--model", "wrn-10-1", "--labels-per-class", "2"]
LABELS = "id,label\n" + "".join(f"digits/{row:04d},{row % 10}\n" for row in range(1797))  # well formed, and wrong


def method(name, **options):
    return ["--method", name, *NET, *SIZE, *(word for key, value in options.items() for word in ("--set", f"method.{key}={value}"))]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Foundation labels of all rows of the digits, as a flag."""
    path = tmp_path_factory.mktemp("given") / "given.csv"
    path.write_text(LABELS)
    return ["--foundation-labels", str(path)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, labels):
    """Finished runs of a step or two, by the names that the tests below give them."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "finessl": method("finessl"),
        "fixmatch": method("fixmatch"),
        "zeromatch": [*method("zeromatch", auxiliary="mlp"), *labels],
        "pl_feature": [*method("pl_feature"), *labels],
    }
    for name, args in made.items():
        assert main(["train", *args, "--batch-size", "4", "--ratio", "1", "--steps", "2", "--quiet", "--out", str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (LABELS.replace("digits/", "cats/"), ("labels for other ids", "cats/0000", "digits/0000")),
        (LABELS.replace(",3\n", ",cat\n"), ("unknown class 'cat'", "given.csv:5", "and 160 more")),
        (LABELS.replace("id,label", "id,lable"), ("label",)),
        (LABELS.replace("digits/0001,1", "digits/0001,1\ndigits/0001,2"), ("digits/0001", "keep one")),
        ("id,label\n", ("has no row",)),
    ],
    ids=["ids", "classes", "columns", "twice", "empty"],
)
@pytest.mark.parametrize("name", ["zeromatch", "pseudo_supervision", "pl_feature"])
def test_foundation_labels_of_something_else(capsys, tmp_path, name, text, fragments):
    (tmp_path / "given.csv").write_text(text)
    fails(capsys, tmp_path, [*method(name), "--foundation-labels", str(tmp_path / "given.csv")], 3, *fragments)


@pytest.mark.parametrize("name", ["zeromatch", "pseudo_supervision", "pl_feature"])
def test_methods_of_foundation_labels_ask_for_them(capsys, tmp_path, name):
    text = fails(capsys, tmp_path, method(name), 2, f"{name} learns from", "--foundation-labels FILE", "fastssl pseudolabel")
    assert text.count("\n") == 1


CARRIED = ("adamatch", "fixmatch", "flexmatch", "freematch", "softmatch")
BAD = [
    ("zeromatch", {"inner": "nothing"}, CARRIED),
    ("zeromatch", {"inner": "finessl"}, CARRIED),
    ("zeromatch", {"inner": "layermatch"}, ("method.inner 'layermatch'", "flexmatch")),
    ("pl_feature", {"inner": "zeromatch"}, ("method.inner 'zeromatch'",)),
    ("zeromatch", {"inner_options": "interpolate=true"}, ("inner adamatch", "leave interpolate at false")),
    ("pl_feature", {"inner_options": "interpolate=true"}, ("inner adamatch", "leave interpolate at false")),
    ("zeromatch", {"inner_options": "nonsense"}, ("method.inner_options", "name=value", "'nonsense'")),
    ("zeromatch", {"inner_options": "treshold=0.9"}, ("adamatch has no such option", "method.threshold")),
    ("zeromatch", {"inner": "fixmatch", "inner_options": "threshold=2"}, ("method.threshold", "at most 1")),
    ("zeromatch", {"distil_share": 1}, ("method.distil_share", "at most 0.99")),
    ("debiaspl", {"align": "uniform"}, ("method.align", "--method fixmatch")),
    ("freematch", {"least_threshold": 0.9, "most_threshold": 0.8}, ("least_threshold 0.9", "most_threshold 0.8", "swap")),
    ("softmatch", {"align_start": "batch", "align_memory": "queue"}, ("align_start=batch", "align_memory=ema")),
    ("fixmatch", {"weighting": "gaussian"}, ("gaussian", "smooth")),
    ("fixmatch", {"power": 0}, ("method.power", "above 0")),
    ("spl", {"threshold": 1.5}, ("method.threshold", "at most 1")),
    ("flexmatch", {"mapping": "round"}, ("method.mapping", "convex")),
    ("semikd", {}, ("semikd learns from a finished finessl run", "method.teacher=RUN")),
]


@pytest.mark.parametrize(("name", "options", "fragments"), BAD, ids=lambda value: json.dumps(value) if isinstance(value, dict) else None)
def test_options_that_a_method_cannot_take(capsys, tmp_path, labels, name, options, fragments):
    more = labels if name in FOUNDATION else []
    assert fails(capsys, tmp_path, [*method(name, **options), *more], 2, *fragments).count("\n") == 1


def test_conflicting_gradients_need_a_linear_head(capsys, tmp_path):
    for rule in ("conflict_global", "conflict_element"):
        args = [*method("layermatch", grad_relu=rule), "--set", "model.head=cosine"]
        fails(capsys, tmp_path, args, 2, f"grad_relu={rule}", "model.head=linear", "grad_relu=full")


def test_zeromatch_and_lp_ft_both_have_stages(capsys, tmp_path, labels):
    fails(capsys, tmp_path, [*method("zeromatch"), "--tune", "lp_ft", *labels], 2, "lp_ft", "another --tune")


def test_teachers_that_cannot_teach(capsys, tmp_path, runs):
    from PIL import Image

    teach = ["--set", f"method.teacher={runs / 'finessl'}"]
    fails(capsys, tmp_path, method("semikd", teacher=runs / "fixmatch"), 6, "a run of fixmatch", "no auxiliary head", "a run of finessl")
    fails(capsys, tmp_path, method("semikd", teacher=runs / "zeromatch"), 6, "another kind of head", "a run of finessl")
    fails(capsys, tmp_path, method("semikd", teacher=tmp_path), 6, str(tmp_path), "no run directory", "config.yaml")
    fails(capsys, tmp_path, ["--method", "semikd", *NET, "--set", "data.size=16", *teach], 2, "8 pixels", "16", "data.size=8")
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.full((8, 8, 3), 40 * number + (name == "b"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    args = ["--method", "semikd", "--data", str(tmp_path / "photos"), *NET, *SIZE, *teach]
    fails(capsys, tmp_path, args, 2, "knows the classes 0, 1, 2", "others")


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("layermatch", {"averaging": "outputs"}, "bank.mean 70.2 KiB"),  # 1,797 rows of 10 probabilities of 4 bytes
        ("flexmatch", {}, "learned.last 14.0 KiB"),  # 1,797 labels of 8 bytes
        ("finessl", {"pace_form": "bank"}, "pace.bank 14.0 KiB"),
    ],
)
def test_banks_that_cannot_fit(capsys, tmp_path, monkeypatch, name, options, named):
    monkeypatch.setattr(what_is_given, "environment", SimpleNamespace(memory=lambda: (2**40, 10_000)))
    fails(capsys, tmp_path, [*method(name, **options), "--device", "cpu"], 7, "memory of the method", named, "9.8 KiB free", "keeps less")
    monkeypatch.setattr(what_is_given, "environment", SimpleNamespace(memory=lambda: (2**40, 200_000)))
    args = ["train", *method(name, **options), "--device", "cpu", "--batch-size", "4", "--ratio", "1", "--steps", "1"]
    assert main([*args, "--out", str(tmp_path / "fits")]) == 0
    assert named in (tmp_path / "fits" / "log.txt").read_text(), "what fits is said at the start"


def test_a_network_that_needs_the_rows_label_is_not_judged_without(capsys, tmp_path, runs, labels):
    """pl_feature's runs, and zero_shot's with foundation labels: their networks alone would answer something else."""
    shown = tmp_path / "shown"
    assert main(["train", "--method", "zero_shot", *labels, "--quiet", "--out", str(shown)]) == 0
    bare = tmp_path / "bare"
    assert main(["train", "--method", "zero_shot", "--quiet", "--out", str(bare)]) == 0
    out = tmp_path / "out.safetensors"
    for run, name in ((runs / "pl_feature", "pl_feature"), (shown, "zero_shot")):
        for command in (["eval"], ["predict", "images"], ["export", "--out", str(out)], ["pseudolabel", "--out", str(out)]):
            word, *more = command
            capsys.readouterr()
            assert main([word, *(["--run"] if word == "pseudolabel" else []), str(run), *more]) == 2, command
            text = capsys.readouterr().err
            assert f"{name} judges a sample by its foundation label too" in text and text.count("\n") == 1
    assert main(["eval", str(bare)]) == 0 and not out.exists()


def test_test_images_without_a_foundation_label_are_warned_of(capsys, tmp_path):
    (tmp_path / "some.csv").write_text("".join(line + "\n" for line in LABELS.splitlines() if not line.startswith("digits/17")))
    flags = ["--foundation-labels", str(tmp_path / "some.csv"), "--batch-size", "4", "--ratio", "1", "--steps", "1", "--quiet"]
    for name, warned in (("pl_feature", True), ("zeromatch", False)):
        capsys.readouterr()
        assert main(["train", *method(name), *flags, "--out", str(tmp_path / name)]) == 0
        assert ("of 450 test images have no foundation label" in capsys.readouterr().err) == warned


def trained(capsys, tmp_path, args):
    """The result of a run of five steps, as many as the longest chain of stages wants, all of whose state and figures are finite."""
    capsys.readouterr()
    assert main(["train", *args, "--steps", "5", "--set", "train.report_every=1", "--quiet", "--json", "--out", str(tmp_path / "run")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    state = flat(state_of(tmp_path / "run"))
    assert all(value.isfinite().all() for value in state.values() if hasattr(value, "isfinite") and value.is_floating_point())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text() and len(lines) > 3 and result["skipped"] == 0
    assert 0 <= result["accuracy"] <= 1
    return result, [line for line in lines if line["event"] == "train"]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "zero_shot"])
def test_one_labelled_and_one_unlabelled_image_a_step(capsys, tmp_path, runs, labels, name):
    """One row has no variance."""
    more = labels if name in FOUNDATION else []
    more = [*more, "--set", f"method.teacher={runs / 'finessl'}"] if name == "semikd" else more
    more = [*more, "--set", "method.bank=own"] if name == "sentaugment" else more
    trained(capsys, tmp_path, [*method(name), *more, "--batch-size", "1", "--ratio", "1"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fixmatch", {"threshold": 1}),
        ("fixmatch", {"threshold": 1, "weighting": "sigmoid", "align": "uniform"}),
        ("spl", {"threshold": 1}),
        ("freematch", {"least_threshold": 1}),
        ("debiaspl", {"threshold": 1}),
        ("layermatch", {"threshold": 1, "averaging": "centres"}),
        ("layermatch", {"threshold": 1, "grad_relu": "conflict_element"}),
        ("finessl", {"threshold": 1, "least_weight": 1, "pace_threshold": 1}),
        ("zeromatch", {"inner": "fixmatch", "inner_options": "threshold=1"}),
    ],
    ids=str,
)
def test_a_run_in_which_no_row_is_ever_confident(capsys, tmp_path, labels, name, options):
    more = labels if name == "zeromatch" else []
    result, reports = trained(capsys, tmp_path, [*method(name, **options), *more, "--batch-size", "4", "--ratio", "2"])
    later = [line for line in reports if "kept" in line]
    assert later and all(line["kept"] == 0 and line["pseudo_accuracy"] is None and line["loss_unlabelled"] == 0 for line in later)
    assert result["kept"] == 0 and result["pseudo_accuracy"] is None
