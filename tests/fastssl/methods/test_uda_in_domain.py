"""UDA's in-domain filtering: who is chosen, what the stages train, and a whole run on digits with images that are none among them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.cli import main
from fastssl.methods import find
from fastssl.methods.uda import surest, top
from fastssl.models import Output
from fastssl.pipelines import sources
from fastssl.pipelines.batch import Split
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.engine.test_run import flat, records, state_of

EXTRA = 12  # rows 28 to 39 of the toy data
SPLIT = Split(np.arange(4), np.arange(4), np.ones(4, np.float32), np.setdiff1d(np.arange(40), [5, 30]), np.array([5]), "drawn")


def made(toy, ema=0.9, steps=20, **options):
    """The method on toy data whose last rows are images from elsewhere."""
    import dataclasses

    kind = find("uda")
    config = kind.Config(**{"in_domain": 2, "threshold": 0.0, **options})
    spec = dataclasses.replace(toy.spec(), extra=EXTRA)
    return kind(config, toy.network(encoder=toy.Normed), spec, unlabelled_batch=6, ema=ema, weak_pass="joint").double().train()


def looking(label, confidence):
    """A Look that finds this of each row that it is asked for, and remembers the rows."""

    def look(rows, reduce):
        look.asked = rows
        p = torch.full((len(rows), 5), 0.0, dtype=torch.float64)
        p[torch.arange(len(rows)), torch.tensor(label)[: len(rows)]] = torch.tensor(confidence, dtype=p.dtype)[: len(rows)]
        index = torch.from_numpy(rows)
        return index, *reduce(Output(p, p), torch.full_like(index, -1), index)

    look.split = SPLIT
    return look


def test_the_surest_of_each_predicted_class_are_taken():
    label = np.array([0, 1, 0, 0, 1, 2, 0])
    sure = np.array([0.3, 0.9, 0.7, 0.7, 0.2, np.nan, 0.1])
    assert top(label, sure, 2, 4).tolist() == [1, 2, 3, 4], (
        "class 0: the two 0.7; class 1 has no more; NaN is never chosen; class 3 is empty"
    )
    assert top(label, sure, 1, 4).tolist() == [1, 2], "equals: the earlier one"
    assert top(label, sure, 0, 4).tolist() == []
    z = torch.tensor([[1.0, 2, 0], [torch.inf, 0, 0], [5, 4, 4]])
    guess, value = surest(Output(z, z), None, None)
    assert guess.tolist() == [1, 0, 0] and torch.isnan(value[1])
    torch.testing.assert_close(value[[0, 2]], z.double().log_softmax(1).amax(1)[[0, 2]])


def test_choice_becomes_memory_and_the_split_without_labels(toy):
    m = made(toy)
    assert not m.kept.any() and m.split_of(SPLIT).unlabelled.max() == 27, "before the choice the set's own alone"
    before = {key: value.clone() for key, value in m.state_dict().items()}
    label = [0, 0, 0, 1, 2, 2, 2, 4, 4, 4, 4]
    look = looking(label, [5.0, 9, 7, 1, 3, 4, 2, 6, 8, 8, 1])
    said = m.prepare(1, look)
    rows = np.setdiff1d(np.arange(28, 40), [30])
    assert look.asked.tolist() == rows.tolist(), "row 30 takes no part in the run"
    chosen = [rows[i] for i in (1, 2, 3, 4, 5, 8, 9)]
    split = m.split_of(SPLIT)
    assert split.unlabelled.tolist() == [r for r in SPLIT.unlabelled if r < 28] + chosen
    assert split.labelled is SPLIT.labelled and split.label is SPLIT.label and split.test is SPLIT.test
    assert said.notes == [
        "in-domain: 7 of 11 extra images kept, 0 to 2 of each predicted class",
        "in-domain: 2 of 5 classes have fewer than 2, and all of theirs are kept: b 1, d 0",
    ]
    assert not said.warnings
    changed = [key for key, value in m.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["kept"] and m.kept.dtype == torch.bool, "predicted labels are not remembered anywhere"
    assert m.split_of(SPLIT).unlabelled.tolist() == split.unlabelled.tolist(), "a function of memory alone"


@pytest.mark.parametrize("pool", ["broken", "empty"])
def test_nothing_kept_is_the_sets_own_images_and_one_warning(toy, pool):
    import dataclasses

    m = made(toy)
    look = looking([0] * 11, [float("nan")] * 11)
    if pool == "empty":
        look.split = dataclasses.replace(SPLIT, unlabelled=np.arange(20))
    said = m.prepare(1, look)
    assert len(said.warnings) == 1 and "none of the" in said.warnings[0]
    assert m.split_of(look.split).unlabelled.max() < 28


def test_other_stages_and_other_runs_are_prepared_by_nothing(toy):
    m = made(toy)
    assert not m.prepare(0, None).notes and not m.kept.any()
    plain = toy.method("uda")
    assert not plain.prepare(1, None).notes and plain.split_of(SPLIT) is SPLIT and plain.stage(1, 20) is None


@pytest.mark.parametrize(("share", "steps", "lengths"), [(0.25, 20, [5, 15]), (0.01, 20, [1, 19]), (0.99, 20, [19, 1]), (0.5, 2, [1, 1])])
def test_lengths_of_the_stages(toy, share, steps, lengths):
    m = made(toy, base_share=share)
    stages = [m.stage(k, steps) for k in range(3)]
    assert stages[2] is None and [stage.steps for stage in stages[:2]] == lengths
    assert stages[0].views.unlabelled == () and stages[0].views.labelled == ("weak",) and stages[1].views is None


def test_a_probe_of_lp_ft_comes_after_the_choice(toy, monkeypatch):
    m = made(toy)
    monkeypatch.setattr("fastssl.methods.base.probe_share", lambda encoder: 0.4)
    stages = [m.stage(k, 20) for k in range(4)]
    assert [(s.name, s.steps) for s in stages[:3]] == [("base", 5), ("linear_probe", 6), ("train", 9)] and stages[3] is None
    before = m.kept.clone()
    m.prepare(2, None)  # which would fail if it looked
    assert torch.equal(m.kept, before)


def test_one_step_has_no_room_for_a_choice(toy):
    with pytest.raises(ConfigError, match="--steps 2"):
        made(toy).stage(0, 1)


@pytest.mark.parametrize("base", ["apart", "same"])
def test_the_network_apart_is_forgotten_and_the_same_one_goes_on(toy, base):
    m = made(toy, base=base, tsa="exp", align="uniform")
    start = {key: value.clone() for key, value in m.network.state_dict().items()}
    m.enter(m.stage(0, 20))
    batch = toy.batch(m.asked)
    terms = m.step(batch, toy.clock(3), lambda total: total.backward())
    rows = torch.logsumexp(z := m.network(batch.labelled[0]).logits, 1) - z[torch.arange(4), batch.label]
    assert torch.allclose(terms.total, rows.mean(), rtol=1e-9), "labels alone, none of them left out"
    assert set(terms.metrics) == {"loss_labelled"} and not m.alignment.begun
    with torch.no_grad():
        for p in [*m.network.parameters(), *m.ema.parameters()]:
            p.add_(0.1)
    moved = {key: value.clone() for key, value in m.network.state_dict().items()}
    places = [p.data_ptr() for p in m.parameters()]
    m.prepare(1, looking([0] * 11, [1.0] * 11))
    for network in (m.network, m.ema):
        for key, value in network.state_dict().items():
            if base == "apart":
                assert torch.equal(value, start[key]), key
            elif network is m.network:
                assert torch.equal(value, moved[key]), key
    assert [p.data_ptr() for p in m.parameters()] == places, "in place: what was captured goes on to serve"


def test_a_choice_among_nothing_is_refused(toy):
    with pytest.raises(ConfigError, match="--extra-unlabelled DIR"):
        toy.method("uda", in_domain=5)


# ---- runs

FLAGS = ["--model", "wrn-10-1", "--set", "data.size=8", "--set", "model.batchnorm_momentum=0.1", "--ema", "0.9", "--lr", "0.1", "--quiet"]
TRUE, OTHERS = 150, 450


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A folder of 150 digits (training rows of the set; sub-folders say nothing) and 450 images of noise, bars and torn digits."""
    folder, rng = tmp_path_factory.mktemp("elsewhere"), np.random.default_rng(0)
    digits = sources.load("digits", size=8)
    rows = rng.permutation(np.flatnonzero(~digits.test))[:TRUE]
    y, x = np.mgrid[:8, :8]
    for number in range(TRUE + OTHERS):
        if number < TRUE:
            image, name = digits.images[rows[number], 0], "digit"
        else:
            torn = np.rot90(digits.images[rng.choice(rows), 0]).reshape(4, 2, 8)[rng.permutation(4)].reshape(8, 8)
            bars = ((x * rng.integers(1, 4) + y * rng.integers(1, 4)) // 4 % 2 * 255).astype(np.uint8)
            image, name = (rng.integers(0, 256, (8, 8), dtype=np.uint8), torn, bars)[number % 3], "other"
        (folder / str(number % 7)).mkdir(exist_ok=True)
        Image.fromarray(np.repeat(image[..., None], 3, 2)).save(folder / str(number % 7) / f"{name}-{number:04d}.png")
    return folder


def run(folder, pool, *more, steps=120, k=12):
    args = ["--method", "uda", *FLAGS, "--labels-per-class", "4", "--batch-size", "20", "--ratio", "3", "--steps", str(steps)]
    given = ["--extra-unlabelled", str(pool), "--set", f"method.in_domain={k}", "--set", "method.base_share=0.5"]
    assert main(["train", *args, *given, *more, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_filter_keeps_digits_and_leaves_the_rest(tmp_path, pool, seed):
    """A quarter of the pool are digits; of what was kept 0.59, 0.61 and 0.69 were over seeds 0, 1 and 2."""
    out = run(tmp_path / "run", pool, "--seed", str(seed))
    kept = state_of(out)["method"]["kept"].numpy()
    names = sorted(path.relative_to(pool).as_posix() for path in pool.rglob("*.png"))
    share = np.mean(["digit" in name for name, chosen in zip(names, kept, strict=True) if chosen])
    assert len(kept) == TRUE + OTHERS and kept.sum() <= 120
    assert share > 2 * TRUE / (TRUE + OTHERS)
    log = (out / "log.txt").read_text()
    assert f"in-domain: {kept.sum()} of 600 extra images kept" in log and "stage 2, train: 60 steps" in log
    result = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    assert result["accuracy"] > 0.6


SHORT = ["--set", "train.eval_every=6", "--set", "method.threshold=0", "--batch-size", "4", "--ratio", "2"]


@pytest.mark.parametrize("base", ["apart", "same"])
def test_a_run_goes_on_bit_for_bit_inside_the_stages_and_between_them(tmp_path, pool, base):
    more = [*SHORT, "--set", f"method.base={base}", "--set", "method.align=uniform"]
    whole = run(tmp_path / "whole", pool, *more, steps=6)
    reference = flat(state_of(whole))
    assert reference["/method/kept"].any() and not reference["/method/kept"].all()
    for stop in (2, 3, 5):
        broken = run(tmp_path / f"stopped{stop}", pool, *more, "--set", f"train.stop_at={stop}", steps=6)
        halfway = flat(state_of(broken))
        assert halfway["/run/stage_index"] == (stop > 3) and bool(halfway["/method/kept"].any()) == (stop > 3)
        assert main(["train", "--resume", str(broken), "--quiet"]) == 0
        log = (broken / "log.txt").read_text()
        assert log.count("extra images kept") == 1, "the choice is made once, on whichever side of the stop"
        resumed = flat(state_of(broken))
        assert resumed.keys() == reference.keys()
        for key, value in reference.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed[key]), (stop, key)
        assert records(whole) == records(broken)


def test_without_the_filter_all_extra_images_are_drawn(tmp_path, pool):
    out = run(tmp_path / "run", pool, *SHORT, steps=2, k=0)
    assert "kept" not in state_of(out)["method"] and "in-domain" not in (out / "log.txt").read_text()
    assert (out / "split.csv").read_text().count("extra:") == TRUE + OTHERS
