"""DivideMix against a float64 calculation of every stage, its division of the labels, and the ways in which nothing is divided."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from fastssl.methods import find
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.oracle_dividemix import CLASSES, IMAGES, KNOWN, NAMES, SPLIT, Oracle, looking, made


@pytest.mark.parametrize("normed", [False, True], ids=["bare", "batch-norm"])
@pytest.mark.parametrize(
    "options",
    [{}, {"mixup": 0.0, "temperature": 1.0, "penalty": 0.0, "ramp_epochs": 0.0}, {"warmup_penalty": 0.7, "mixup": 0.5, "lambda_u": 5.0}],
    ids=["default", "all off", "asymmetric"],
)
def test_ten_steps_of_each_stage_against_the_equation(toy, options, normed):
    m = made(toy, toy.Normed if normed else None, every=6, **options)
    m.verdicts.w.uniform_()
    for k, at in enumerate((*NAMES, *NAMES)):
        m.enter(m.stage(k, 40))
        assert bool(m.asked.unlabelled) == (k > 1)
        one = Oracle(m, toy, at, **options)
        if k == 3:  # the fourth epoch of the second network
            one.epoch, one.begun = 3, 5
            m.epochs.number.fill_(3)
            m.epochs.begun[1] = 5
        oracle.follow(m, toy, one, sharpen=1.5 if k in (0, 2) else 1.0, mixed=False)


def mixture(loss):
    """The posterior of small losses, as the code asks scikit-learn for it."""
    x = ((loss - loss.min()) / (loss.max() - loss.min()))[:, None]
    model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(x)
    return model.predict_proba(x)[:, model.means_.argmin()], x[:, 0]


def test_each_network_divides_for_the_other(toy):
    m = made(toy)
    with torch.no_grad():
        for net in (m.network, m.second):
            net.head.weight.mul_(40)
    assert m.split_of(SPLIT) is SPLIT and not m.prepare(0, None).notes and not m.prepare(1, None).notes
    assert m.split_of(SPLIT) is SPLIT
    said = m.prepare(2, looking(m))
    clean = []
    for side, net in enumerate((m.network, m.second)):
        loss = torch.nn.functional.cross_entropy(net(IMAGES[:30]).logits, torch.arange(30) % CLASSES, reduction="none")
        w, _ = mixture(loss.detach().numpy())
        np.testing.assert_allclose(m.verdicts.w[side, :30], w, atol=1e-5)
        clean.append((w > 0.5, w))
        assert said.values[f"clean_{('first', 'second')[side]}"] == (w > 0.5).sum()
    for k, (mask, w) in ((2, clean[1]), (3, clean[0])):
        m.prepare(k, looking(m)) if k == 3 else None
        got = m.split_of(SPLIT)
        assert got.labelled.tolist() == KNOWN[mask].tolist() and got.label.tolist() == (KNOWN % CLASSES)[mask].tolist()
        np.testing.assert_allclose(got.weight, w[mask], atol=1e-5)
        assert got.unlabelled.tolist() == sorted([*KNOWN[~mask], *range(30, 36)]) and got.test is SPLIT.test and got.hash == ""
    assert not np.array_equal(clean[0][0], clean[1][0]), "or nothing is shown"
    assert said.notes[0].startswith("dividemix, epoch 1: ") and "look clean to the second network" in said.notes[0]
    assert "moved" not in said.values and m.prepare(4, looking(m)).values["moved"] == 0


def test_a_weight_of_the_users_own_counts(toy):
    """A label of weight 0 is judged by nobody and is no label; 0.5 halves the trust."""
    weight = np.ones(30, np.float32)
    weight[3], weight[4] = 0, 0.5
    split = dataclasses.replace(SPLIT, weight=weight)
    m = made(toy)
    m.prepare(2, looking(m, split, easy=dict.fromkeys(NAMES, list(range(20)))))
    got = m.split_of(split)
    assert m.verdicts.w[1, 3] == -1 and 3 in got.unlabelled and 3 not in got.labelled
    assert got.weight[got.labelled == 4] == pytest.approx(0.5, abs=0.01) and got.weight[got.labelled == 5] == pytest.approx(1, abs=0.01)


def lengths(m, steps):
    found, k = [], 0
    while (stage := m.stage(k, steps)) is not None:
        found.append(stage)
        k += 1
    return found


@pytest.mark.parametrize("steps", [4, 5, 7, 20, 47, 200, 1000])
@pytest.mark.parametrize("options", [{}, {"every": 3}, {"warmup_share": 0.5}], ids=str)
def test_the_stages_use_up_the_run(toy, steps, options):
    """However the lengths of the epochs turn out."""
    rng, m = np.random.default_rng(steps), made(toy, **options)
    stages = lengths(m, steps)
    assert sum(stage.steps for stage in stages) == steps and all(stage.steps > 0 for stage in stages)
    assert [stage.networks for stage in stages[:4]] == [(name,) for name in (*NAMES, *NAMES)]
    assert stages[0].steps == stages[1].steps and len({stage.kind for stage in stages}) == 4
    assert [stage.goes_on for stage in stages[:4]] == [True, True, False, True]
    k, done = 0, 0
    while (stage := m.stage(k, steps)) is not None:  # as a run walks
        easy = {name: rng.choice(30, rng.integers(8, 25), replace=False).tolist() for name in NAMES}
        m.prepare(k, looking(m, easy=easy))
        stage = m.stage(k, steps)
        assert stage.steps > 0
        if k >= 2 and k % 2 == 0 and not options.get("every") and steps > 100 and done + 100 < steps:
            visits = [len((m._divided(SPLIT, side) or SPLIT).labelled) // 6 for side in range(2)]
            assert stage.steps == max(round(sum(visits) / 2), 1)
            assert m.stage(k + 1, steps).steps == stage.steps, "one schedule fits both networks"
        done, k = done + stage.steps, k + 1
    assert done == steps


def test_fewer_steps_than_stages_are_refused(toy):
    with pytest.raises(ConfigError, match="give --steps 4 or more"):
        made(toy).stage(0, 3)


def test_the_ramp_counts_epochs(toy):
    m = made(toy, every=4)
    m.enter(m.stage(2, 100))
    m.epochs.number.fill_(2)
    m.epochs.begun.fill_(8)
    assert float(m._ramp(toy.clock(8))) == pytest.approx(2 / 16) and float(m._ramp(toy.clock(10))) == pytest.approx(2.5 / 16)
    assert float(m._ramp(toy.clock(400))) == 1


@pytest.mark.parametrize("case", ["all alike", "nan everywhere"])
def test_an_empty_part_is_one_warning_and_the_warm_ups_loss(toy, case):
    """Losses that are all alike leave nothing noisy, losses that are not finite nothing clean."""
    m = made(toy)
    split = dataclasses.replace(SPLIT, unlabelled=KNOWN) if case == "all alike" else SPLIT
    states = {key: value.clone() for key, value in m.state_dict().items()}
    if case == "all alike":
        with torch.no_grad():
            for p in m.parameters():
                p.zero_()
    look = looking(m, split, spoil=range(30) if case == "nan everywhere" else ())
    warnings = []
    for k in range(2, 8):
        said = m.prepare(k, look)
        warnings += said.warnings
        stage = m.stage(k, 100)
        assert stage.name == f"warm_up_{('first', 'second')[k % 2]}" and stage.kind == m.stage(k % 2, 100).kind and stage.goes_on
        assert m.split_of(split) is split and stage.steps == 5, "30 labels, 6 a step"
        if k % 2 == 0:
            assert said.values["clean_first"] == (30 if case == "all alike" else 0)
            assert said.values["low_first"] == (0 if case == "all alike" else None)
    assert len(warnings) == 1 and "nothing is clean, or nothing noisy, for the first and the second network" in warnings[0]
    m.load_state_dict({key: value for key, value in states.items() if key.startswith(NAMES)}, strict=False)
    m.enter(stage)
    b = toy.batch(m.asked)
    wanted = oracle.cross_entropy(m.second(b.labelled[0]).logits, b.label).mean()
    assert torch.allclose(m.loss(b, toy.clock()).total, wanted)
    # Once the losses can be told apart, the epoch is divided.
    m.prepare(8, looking(m, easy=dict.fromkeys(NAMES, list(range(18)))))
    assert m.stage(8, 100).name == "epoch_first" and m.split_of(SPLIT).labelled.tolist() == list(range(18))
    m.enter(m.stage(8, 100))
    assert float(m._ramp(toy.clock(0))) == 3 / 16, "plain epochs did not move its own clock"


def test_without_noise_samples_that_have_no_label_are_guessed(toy):
    m = made(toy)
    with torch.no_grad():
        for p in m.parameters():
            p.zero_()
    assert not m.prepare(2, looking(m)).warnings
    assert m.stage(2, 60).name == "epoch_first"
    assert m.split_of(SPLIT).unlabelled.tolist() == list(range(30, 36)) and (m.split_of(SPLIT).weight == 1).all()


def test_a_class_that_one_network_learns_from_all_labels_has_not_vanished(toy):
    m = made(toy)
    easy = [row for row in range(30) if row % CLASSES != 2]
    with torch.no_grad():
        for p in m.second.parameters():
            p.zero_()
    warnings = m.prepare(2, looking(m, dataclasses.replace(SPLIT, unlabelled=KNOWN), easy={"network": easy})).warnings
    assert len(warnings) == 1 and "for the first network, so that it learns from all labels" in warnings[0]
    assert sum(name.startswith("warm_up") for name in (m.stage(2, 60).name, m.stage(3, 60).name)) == 1


def test_a_class_without_clean_labels_is_one_warning(toy):
    m = made(toy)
    easy = [row for row in range(30) if row % CLASSES != 2 and row < 25]
    warnings = [text for k in (2, 4, 6) for text in m.prepare(k, looking(m, easy=dict.fromkeys(NAMES, easy))).warnings]
    assert warnings == ["dividemix, epoch 1: no label of c looks clean, so that guesses alone teach it"]
    assert 2 not in m.split_of(SPLIT).label
    m.enter(m.stage(6, 60))
    total = m.loss(toy.batch(m.asked)._replace(label=torch.tensor([0, 1, 3, 4])), toy.clock(9)).total
    assert torch.isfinite(total)


def test_lost_files_are_in_neither_part_and_nan_is_never_clean(toy):
    m = made(toy)
    m.prepare(2, looking(m, easy=dict.fromkeys(NAMES, list(range(20))), lost=(1, 25), spoil=(2, 3)))
    split = m.split_of(SPLIT)
    assert split.labelled.tolist() == [0, *range(4, 20)] and not {1, 25} & set(split.unlabelled.tolist())
    assert {2, 3} <= set(split.unlabelled.tolist()) and np.isfinite(split.weight).all() and not m.verdicts.w.isnan().any()


def test_the_other_network_stays_as_it_is(toy):
    for k, (moving, still) in ((2, NAMES), (3, NAMES[::-1])):
        m = made(toy, toy.Normed, ema=0.9)
        m.enter(m.stage(k, 40))
        before = {key: value.clone() for key, value in m.state_dict().items()}
        m.step(toy.batch(m.asked), toy.clock(3), lambda total: total.backward())
        assert all(p.grad is None for p in m.get_submodule(still).parameters())
        assert all(p.grad.abs().sum() > 0 for p in m.get_submodule(moving).head.parameters())
        changed = {key.split(".")[0] for key, value in m.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == {moving}, "its running statistics alone"
        (average,) = m.averages()
        assert average.source is m.get_submodule(moving) and not m.second_ema.training and m.second.training
    assert m.judges() == ("ema", "second_ema") and made(toy).judges() == NAMES


def test_what_it_refuses(toy):
    kind = find("dividemix")
    with pytest.raises(ValueError, match="pass another one of the same make as second"):
        kind(kind.Config(), toy.network(), toy.spec())
    assert kind.others(kind.Config()) == {"second": ""}
