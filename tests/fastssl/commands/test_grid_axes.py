"""What a sweep is asked for: lists, seeds, variants, and the plans that they make; whatever makes no grid is one sentence."""

from __future__ import annotations

import pytest

from fastssl.cli import parser
from fastssl.commands import grid_axes, train
from fastssl.commands.sweep import NOT_TAKEN, command, folder_name, lay_out
from fastssl.pipelines.errors import ConfigError


def parsed(*words):
    return parser().parse_args(["sweep", "--out", "somewhere", *words])


def planned(*words):
    return [(p.method, p.variant, p.chosen, p.settings, p.seed) for p in grid_axes.plans(parsed(*words))]


def test_seeds_are_numbers_and_ranges():
    assert grid_axes.seeds("0-2,7, 9-9") == [0, 1, 2, 7, 9]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1", ["1"]),
        ("1,2", ["1", "2"]),
        ("[a,b],c", ["a,b", "c"]),
        ("[[1,2]]", ["[1,2]"]),
        ("x[1,2]y, z", ["x[1,2]y", "z"]),
        ("", [""]),
        ("[],a", ["", "a"]),
    ],
)
def test_commas_divide_values_and_brackets_hold_them_together(text, found):
    assert grid_axes.values(text, "--set a.b") == found


def test_seeds_are_innermost_then_lists_then_variants_then_methods():
    words = [
        "--method",
        "fixmatch,supervised",
        "--seeds",
        "0-1",
        "--set",
        "train.lr=1,2",
        "--steps",
        "3",
        "--variant",
        "a: model.tune=bias",
    ]
    both = {"train.steps": "3", "model.tune": "bias"}
    expected = [
        (method, "a", {**both, "train.lr": lr}, (("train.lr", lr),), seed)
        for method in ("fixmatch", "supervised")
        for lr in ("1", "2")
        for seed in (0, 1)
    ]
    assert planned(*words) == expected


def test_flags_take_lists_but_paths_do_not():
    assert [p[3] for p in planned("--method", "fixmatch", "--labels-per-class", "1,4")] == [
        (("data.labels_per_class", "1"),),
        (("data.labels_per_class", "4"),),
    ]
    ((_, _, chosen, settings, _),) = planned("--method", "fixmatch", "--data", "a,b", "--split", "c,d")
    assert chosen == {"data.name": "a,b", "data.split": "c,d"} and settings == ()
    assert set(grid_axes.ONE_VALUE) <= set(train.FLAGS)


def test_a_variant_with_a_method_stands_for_itself():
    words = ["--variant", "plain: method.name=fixmatch", "--variant", "low: train.lr=1", "--method", "supervised"]
    assert [p[:3] for p in planned(*words)] == [("supervised", "low", {"train.lr": "1"}), ("fixmatch", "plain", {})]
    assert [p[:2] for p in planned(*words[:2], *words[4:])] == [("supervised", None), ("fixmatch", "plain")]


def test_peers_are_multiplied_by_what_concerns_data_alone():
    words = ["--method", "fixmatch,sklearn:SelfTraining", "--set", "train.lr=1,2", "--labels-per-class", "1,4", "--seeds", "0-1"]
    peers = [p for p in planned(*words, "--variant", "a:", "--variant", "b: train.ema=0", "--variant", "c: data.size=8") if "sk" in p[0]]
    assert [(p[1], p[2]["data.labels_per_class"], p[4]) for p in peers] == [
        (variant, labels, seed) for variant in (None, "c") for labels in "14" for seed in (0, 1)
    ]
    assert all("train.lr" not in p[2] and p[3] == (("data.labels_per_class", p[2]["data.labels_per_class"]),) for p in peers)


def test_a_preset_names_the_method():
    (cell,) = lay_out(parsed("--preset", "fixmatch_cifar10_40"))
    assert cell.method == "fixmatch" and cell.name == "fixmatch-seed0" and cell.config.data.labels_total == 40


def test_a_run_is_configured_as_train_would_but_for_two_defaults():
    (cell,) = lay_out(parsed("--method", "fixmatch", "--seeds", "3", "--set", "data.labels_total=[20]", "--deterministic"))
    words = ["--method", "fixmatch", "--seed", "3", "--labels-total", "20", "--deterministic"]
    config = train.configure(parser().parse_args(["train", *words, "--set", "train.keep=1", "--set", "train.eval_every=300"]))
    assert cell.config == config and cell.config.train.steps == 300
    (cell,) = lay_out(parsed("--method", "fixmatch", "--set", "train.keep=4", "--set", "train.eval_every=7"))
    assert (cell.config.train.keep, cell.config.train.eval_every) == (4, 7)


def test_names_are_good_for_folders_and_tell_runs_apart():
    plan = grid_axes.Plan("my_pkg.mine:Best", "a b/c", {}, (("train.lr", "1e-3"), ("data.split", "/x/y" * 60)), 4)
    name = folder_name(plan, plan.method, {"train.lr": "lr", "data.split": "split"})
    assert name.startswith("my_pkg.mine_Best-a_b_c-lr=1e-3-split=_x_y_x_y") and name.endswith("-seed4") and len(name) < 160
    other = grid_axes.Plan(plan.method, plan.variant, {}, (("train.lr", "1e-3"), ("data.split", "/x/y" * 61)), 4)
    assert folder_name(other, plan.method, {"train.lr": "lr", "data.split": "split"}) != name
    words = ["--method", "fixmatch", "--set", "train.lr=1,2", "--set", "train.steps=3,4", "--variant", "fixmatch: model.tune=bias"]
    assert [cell.name for cell in lay_out(parsed(*words))][1] == "fixmatch-lr=1-steps=4-seed0"


def test_every_flag_of_train_is_a_flag_here_but_those_of_one_run():
    (commands,) = [action.choices for action in parser()._actions if isinstance(action.choices, dict)]
    flags = {name: {flag for action in sub._actions for flag in action.option_strings} for name, sub in commands.items()}
    assert flags["train"] - flags["sweep"] == {"--seed", "--overwrite", "--resume", "--profile", "--no-profile"}
    assert NOT_TAKEN - {"--help"} <= flags["train"]


def test_the_command_is_written_down_as_it_can_be_given_again():
    words = ["--method", "a,b", "--variant", "x y: train.lr=1", "--variant", "z:", "--set", "train.lr=1,2", "--no-deterministic", "--quiet"]
    args = parsed(*words, "--seeds", "0-4", "--jobs", "2", "--steps", "5,6")
    import shlex

    assert parser().parse_args(shlex.split(command(args))[1:]) == args
    assert command(parsed("--method", "a")) == "fastssl sweep --method a --out somewhere"


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ([], ("--method",)),
        (["--variant", "a: train.lr=1"], ("variant a names no method",)),
        (["--method", "fixmatch,fixmatch"], ("--method", "fixmatch twice")),
        (["--method", "fixmatch", "--seeds", "4-0"], ("--seeds", "4-0")),
        (["--method", "fixmatch", "--seeds", "1,1"], ("--seeds", "1 twice")),
        (["--method", "fixmatch", "--seeds", "-1"], ("--seeds",)),
        (["--method", "fixmatch", "--set", "train.lr=1,1"], ("train.lr", "1 twice")),
        (["--method", "fixmatch", "--set", "train.lr=1,,2"], ("train.lr", "empty value")),
        (["--method", "fixmatch", "--set", "train.lr=[1,2"], ("train.lr", "brackets")),
        (["--method", "fixmatch", "--set", "train.lr=1],2["], ("train.lr", "brackets")),
        (["--method", "fixmatch", "--set", "train.lr=1", "--lr", "1"], ("train.lr", "given twice")),
        (["--method", "fixmatch", "--set", "train.seed=1"], ("train.seed", "--seeds")),
        (["--method", "fixmatch", "--set", "method.name=supervised"], ("method.name", "--method")),
        (["--method", "fixmatch", "--set", "train.stop_at=1"], ("train.stop_at", "to their end")),
        (["--method", "fixmatch", "--variant", "a: train.stop_at=1"], ("variant a", "train.stop_at")),
        (["--method", "fixmatch", "--variant", "train.lr=1"], ("--variant", "NAME:")),
        (["--method", "fixmatch", "--variant", "a: lr"], ("section.option=value", "'lr'")),
        (["--method", "fixmatch", "--variant", "a:", "--variant", "a: train.lr=1"], ("--variant names a twice",)),
        (["--method", "fixmatch", "--variant", "a: train.lr=1", "--lr", "2"], ("train.lr", "variant a")),
        (["--method", "sklearn:KMeans"], ("sklearn:KMeans", "sklearn:LabelSpreading")),
        (["--variant", "a: method.name=sklearn:SelfTraining train.lr=1"], ("variant a", "data.* alone", "train.lr")),
        (["--method", "fixmach"], ("fixmach", "fixmatch")),
        (["--method", "supervised", "--set", "method.threshold=0.5,0.6"], ("supervised", "method.threshold")),
        (["--method", "fixmatch", "--set", "train.steps=2,x"], ("train.steps", "'x'")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_makes_no_grid_is_refused(words, fragments):
    with pytest.raises(ConfigError) as error:
        lay_out(parsed(*words))
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)
