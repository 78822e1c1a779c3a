"""Label propagation: job and loss against a plain calculation in float64 by SciPy; graphs that fall apart; rounds that go on."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.models import Output
from fastssl.pipelines.batch import Split
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle, oracle_graph
from tests.fastssl.methods.agreement import Agreement, rows_of_labels, squared

ROWS, CLASSES = 40, 5
LABELLED = np.array([0, 1, 2, 3, 4, 5, 6, 7, 12])
LABEL = np.array([0, 0, 1, 1, 2, 3, 3, 4, 4])
WEIGHTS = np.array([1, 1, 1, 0.5, 1, 1, 0, 1, 1], np.float32)  # row 6 does not count
SPLIT = Split(LABELLED, LABEL, WEIGHTS, np.setdiff1d(np.arange(40), [8, 9]), np.array([8, 9]), "drawn")
IMAGES = torch.randn(ROWS, 3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def looking(split=SPLIT, lost=(), features=None, asked=None):
    """A Look that forwards the toy images, of which some are lost, in an order of its own; or says these [ROWS, d] features instead."""

    def look(part, reduce, view="plain", network=None):
        assert part == "train" and network is None
        if asked is not None:
            asked.append(view)
        rows = np.random.default_rng(1).permutation(np.setdiff1d(np.union1d(split.labelled, split.unlabelled), lost))
        given = np.full(ROWS, -1)
        given[split.labelled] = split.label
        index = torch.from_numpy(rows)
        with torch.no_grad():
            out = look.m.judged().eval()(IMAGES[index])
        out = Output(out.logits, out.features if features is None else features[index])
        return index, *reduce(out, torch.from_numpy(given)[index], index)

    look.split = split
    return look


def prepared(m, k=1, **how):
    look = looking(**how)
    look.m = m
    return m.prepare(k, look)


def made(toy, ema=0.0, labels=(2, 2, 1, 2, 2), network=None, **options):
    kind = find("label_propagation")
    config = kind.Config(**{"neighbours": 6, **options})
    spec = dataclasses.replace(toy.spec(), unlabelled=38, labelled_counts=labels)
    return kind(config, network or toy.network(), spec, unlabelled_batch=6, ema=ema).double().train()


class Oracle(Agreement):
    """The job and the step once more."""

    own = {"neighbours": 6, "power": 3.0, "alpha": 0.99, "seeds": "share", "certainty": True, "balance": True, "consistency": 0.0}
    own |= {"ramp_share": 5 / 180, "iterations": 20, "tolerance": 1e-6}

    def __init__(self, m, toy, **options):
        super().__init__(m, toy, **options)
        self.label, self.omega, self.zeta = np.full(ROWS, -1), np.zeros(ROWS), np.ones(CLASSES)
        self.told, self.young = False, True

    def job(self):
        """By the judged network as it stands: the average, where one is kept."""
        self.values = {name: p.detach() for name, p in self.m.named_parameters()}
        rows = np.setdiff1d(np.arange(ROWS), [8, 9])
        at, weights = "network.encoder.layers.", self.values
        if self.average:
            weights = {f"network.{name}": v for name, v in self.average.items()}
        h = IMAGES[rows].flatten(1) @ weights[f"{at}1.weight"].T + weights[f"{at}1.bias"]
        if self.normed:
            kept = self.running["ema" if self.average else "network"]
            mean, var = torch.as_tensor(kept["running_mean"]), torch.as_tensor(kept["running_var"])
            h = weights[f"{at}2.weight"] * (h - mean) / torch.sqrt(var + 1e-5) + weights[f"{at}2.bias"]
        last = 4 if self.normed else 3
        x = (torch.tanh(h) @ weights[f"{at}{last}.weight"].T + weights[f"{at}{last}.bias"]).numpy()
        _, s = oracle_graph.graph(x, self.o.neighbours, self.o.power)
        given, strength = np.full(ROWS, -1), np.zeros(ROWS)
        given[LABELLED], strength[LABELLED] = LABEL, WEIGHTS
        given, strength = given[rows], strength[rows]
        how = {"alpha": self.o.alpha, "seeds": self.o.seeds, "iterations": self.o.iterations, "tolerance": self.o.tolerance}
        label, omega = oracle_graph.judged(oracle_graph.spread(s, given, strength, CLASSES, **how))
        omega = omega / omega.max() if self.o.certainty else (label >= 0) * 1.0
        label, omega = np.where(strength > 0, given, label), np.where(strength > 0, strength, omega)
        self.label[rows], self.omega[rows] = label, omega
        self.zeta = np.array([len(rows) / CLASSES / max(1, (label == c).sum()) for c in range(CLASSES)]) if self.o.balance else np.ones(5)

    def loss(self, batch):
        teaches, zeta = self.o.consistency > 0, torch.from_numpy(self.zeta)
        if not batch.unlabelled:
            ((z, _),) = self.together([*batch.labelled], moves=True)
            return (zeta[batch.label] * rows_of_labels(z, batch)).mean()
        if teaches:
            with torch.no_grad():
                said = self.together([batch.labelled[1], batch.unlabelled[0]], net="ema", moves=True)
        (labelled, _), (other, _) = self.together([batch.labelled[0], batch.unlabelled[-1]], moves=True)
        index = batch.unlabelled_index.numpy()
        label = np.maximum(self.label[index], 0)
        weight = torch.from_numpy(self.omega[index] * self.zeta[label])
        rows = torch.cat([zeta[batch.label] * rows_of_labels(labelled, batch), weight * oracle.cross_entropy(other, label)])
        total = rows.sum() / len(rows)
        if teaches:
            u = min(1.0, self.step / (self.o.ramp_share * self.total))
            target = torch.softmax(torch.cat([z for z, _ in said]), 1)
            total = total + self.o.consistency * np.exp(-5 * (1 - u) ** 2) * squared(torch.cat([labelled, other]), target).mean()
        return total

    def decay(self):
        return 0.97

    def moved(self):
        if self.young:
            super().moved()
            return
        for name, p in self.m.network.named_parameters():
            if name in self.average:
                self.average[name] = 0.97 * self.average[name] + 0.03 * p.detach()

    def state(self):
        own = {"table.label": self.label, "table.omega": self.omega, "table.zeta": self.zeta, "table.told": self.told}
        return super().state() | own


FORMS = {
    "of the code": {},
    "of the paper, near": {"seeds": "one", "alpha": 0.6, "tolerance": 1e-10, "iterations": 200},
    "other graph, no weights": {"power": 1.0, "alpha": 0.5, "neighbours": 12, "certainty": False, "balance": False},
    "few iterations, certainty alone": {"iterations": 4, "balance": False},
    "mean teacher, strong": {"consistency": 100.0, "view": "strong"},
}


@pytest.mark.parametrize("network", ["plain", "batch-norm"])
@pytest.mark.parametrize("form", FORMS)
def test_ten_steps_of_each_stage_and_two_jobs_against_the_equations(toy, form, network):
    options = FORMS[form]
    ema = 0.97 if "consistency" in options else 0.0
    net = toy.network("linear", encoder=toy.Normed) if network == "batch-norm" else toy.network()
    m = made(toy, ema, network=net, **options)
    both = Oracle(m, toy, **options)
    m.prepare(0, None)  # it would fail if it looked
    m.enter(m.stage(0, 40))
    assert bool(m.asked.unlabelled) == bool(ema)
    oracle.follow(m, toy, both, total=10, sharpen=1.0, mixed=False)
    for k in (1, 2):
        both.job()
        before = m.table.label.clone()
        said = prepared(m, k)
        m.train().enter(m.stage(k, 40))
        assert not said.warnings and m.asked == m.asks(m.config)
        new = np.setdiff1d(np.arange(ROWS), [8, 9, *LABELLED[WEIGHTS > 0]])
        moved = int(((before.numpy() >= 0) & (before.numpy() != both.label)).sum())
        assert said.values["moved"] == moved and said.values["propagated"] == len(new)
        assert said.values["certainty"] == pytest.approx(both.omega[new].mean(), abs=1e-6)
        both.young = False
        oracle.follow(m, toy, both, total=30, sharpen=1.0, mixed=False)
    assert len(set(both.label[new])) > 1


def test_labelled_rows_keep_their_labels_and_come_in_their_own_stream_alone(toy):
    m = made(toy)
    assert prepared(m).notes[0].startswith("label_propagation, round 1 of 0: 30 of 30 images labelled by the graph")
    at = torch.from_numpy(LABELLED[WEIGHTS > 0])
    assert m.table.label[at].tolist() == LABEL[WEIGHTS > 0].tolist() and m.table.omega[at].tolist() == WEIGHTS[WEIGHTS > 0].tolist()
    assert m.table.label[8] == m.table.label[9] == -1 and not m.table.omega[[8, 9]].any(), "test rows are not looked at"
    assert m.split_of(SPLIT).unlabelled.tolist() == np.setdiff1d(SPLIT.unlabelled, LABELLED).tolist()
    every = dataclasses.replace(SPLIT, unlabelled=LABELLED)
    apart = dataclasses.replace(SPLIT, unlabelled=np.array([20, 21]))
    assert m.split_of(every) is every and m.split_of(apart) is apart, "nothing else there is; nothing to leave out"
    zeta = m.table.zeta
    counts = torch.bincount(m.table.label[m.table.label >= 0], minlength=CLASSES)
    torch.testing.assert_close(zeta * counts, torch.full((CLASSES,), 38 / CLASSES, dtype=zeta.dtype))
    b = toy.batch(m.asked)
    seen = m.loss(b._replace(unlabelled_index=at[:6]), toy.clock()).metrics
    assert seen["kept"] == 1


def test_the_view_of_the_graph(toy):
    for view in ("plain", "weak"):
        asked = []
        prepared(made(toy, graph_view=view), asked=asked)
        assert asked == [view]


def apart():
    """[ROWS, 6] features: row 20 opposite to all, 21 zeros, 22 no number, 23 to 25 an island; all else like the first."""
    x = torch.zeros(ROWS, 6, dtype=torch.float64)
    x[:, :2] = 1 + torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[20], x[21], x[22, 0] = -1.0, 0.0, torch.nan
    x[20, 2:] = 0
    x[23:26] = torch.tensor([0, 0, 0, 1, 1, 0.0])
    return x


def test_isolated_points_weigh_nothing_and_are_one_warning(toy):
    m = made(toy)
    said = prepared(m, features=apart())
    assert len(said.warnings) == 1 and "6 of 30 images weigh 0: 3 are like no other" in said.warnings[0]
    assert (said.values["isolated"], said.values["unreached"], said.values["propagated"]) == (3, 6, 24)
    assert m.table.label[20:26].tolist() == [-1] * 6 and not m.table.omega[20:26].any() and m.table.omega.isfinite().all()
    again = prepared(m, 2, features=apart())
    assert not again.warnings and "weigh 0" in again.notes[1], "said once"
    other = made(toy)
    other.load_state_dict(m.state_dict())
    assert not prepared(other, 3, features=apart()).warnings, "after a resume too"
    b = toy.batch(m.asked)
    b = b._replace(unlabelled_index=torch.tensor([20, 21, 22, 23, 24, 25]))
    alone = m.loss(b, toy.clock())
    assert alone.metrics["loss_unlabelled"] == 0 == alone.metrics["kept"] and torch.isfinite(alone.total)


@pytest.mark.parametrize(
    "case", ["a class without a label", "no label counts", "no number at all", "one sample", "every neighbour", "one iteration"]
)
def test_what_can_go_wrong_is_one_warning_and_never_nan(toy, case):
    m, how = made(toy, **{"every neighbour": {"neighbours": ROWS - 1}, "one iteration": {"iterations": 1}}.get(case, {})), {}
    if case == "a class without a label":
        how["split"] = dataclasses.replace(SPLIT, weight=np.where(LABEL == 3, 0, WEIGHTS).astype(np.float32))
    elif case == "no label counts":
        how["split"] = dataclasses.replace(SPLIT, weight=np.zeros(9, np.float32))
    elif case == "no number at all":
        how["features"] = torch.full((ROWS, 6), torch.nan, dtype=torch.float64)
    elif case == "one sample":
        how["lost"] = tuple(range(1, ROWS))
    said = prepared(m, **how)
    assert len(said.warnings) == 1 and m.table.omega.isfinite().all() and m.table.zeta.isfinite().all()
    if case == "a class without a label":
        assert "no image is labelled d, so that none becomes it" in said.warnings[0] and not (m.table.label == 3).any()
        assert m.table.zeta[3] == pytest.approx(38 / 5), "no class weighs infinitely"
    elif case == "every neighbour":
        assert said.warnings == [f"label_propagation: method.neighbours={ROWS - 1} joins every image to every other; give fewer"]
    elif case == "one iteration":
        assert "no path leads from a labelled one within 1 iterations; raise method.neighbours or" in said.warnings[0]
    else:
        (unlabelled,) = torch.where(torch.isin(torch.arange(ROWS), torch.from_numpy(LABELLED), invert=True))
        assert not m.table.omega[unlabelled].any()
    m.train()
    terms = m.loss(toy.batch(m.asked), toy.clock(3))
    terms.total.backward()
    assert torch.isfinite(terms.total) and all(p.grad.isfinite().all() for p in m.network.parameters())


def test_lost_files_have_no_label(toy):
    m = made(toy)
    prepared(m)
    prepared(m, 2, lost=(15, 30, 3))
    assert m.table.label[[15, 30, 3]].tolist() == [-1] * 3 and not m.table.omega[[15, 30, 3]].any()
    assert (m.table.label >= 0).sum() == 35


@pytest.mark.parametrize(
    ("steps", "share", "every", "lengths"),
    [
        (40, 0.25, 0, [10, 7, 7, 7, 9]),  # 38 rows by 6 are 7 steps; 2 that are left join the last
        (40, 0.25, 8, [10, 8, 8, 8, 6]),
        (40, 0.25, 100, [10, 30]),
        (2, 0.9, 0, [1, 1]),
        (3, 0.01, 1, [1, 1, 1]),
    ],
)
def test_lengths_of_the_stages(toy, steps, share, every, lengths):
    m = made(toy, warmup_share=share, every=every)
    stages = [m.stage(k, steps) for k in range(len(lengths) + 3)]
    assert [s.steps for s in stages[: len(lengths)]] == lengths and stages[len(lengths) :] == [None] * 3 and sum(lengths) == steps
    assert stages[0].name == "labels" and not stages[0].views.unlabelled
    assert len({s.kind for s in stages[1 : len(lengths)]}) == 1 and stages[1].schedule == steps - lengths[0], "one Step, one schedule"
    assert [s.goes_on for s in stages[: len(lengths)]] == [False, False, *[True] * (len(lengths) - 2)], "the optimiser starts afresh once"
    look = looking()
    look.m = m
    assert f"round 1 of {len(lengths) - 1}: " in m.prepare(1, look).notes[0]


def test_mean_teachers_average_is_young_in_the_first_stage_alone(toy):
    m = made(toy, ema=0.97, consistency=100.0)
    m.enter(m.stage(0, 40))
    (one,) = m.averages()
    assert one.buffers == "own" and one.decay(torch.tensor(0)) == pytest.approx(0.5)
    m.enter(m.stage(1, 40))
    (one,) = m.averages()
    assert one.buffers == "own" and one.decay == 0.97
    plain = made(toy, ema=0.97)
    assert plain.averages()[0].buffers == "source" and plain.whole == 0 and m.whole == 1


def test_what_cannot_be_is_one_sentence(toy, monkeypatch):
    with pytest.raises(ConfigError, match="method.consistency is taught by the averaged network"):
        made(toy, consistency=100.0)
    with pytest.raises(ConfigError, match="--steps 2"):
        made(toy).stage(0, 1)
    monkeypatch.setattr("fastssl.methods.label_propagation.installed", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'fastssl\[faiss\]'"):
        made(toy, search="faiss")
    monkeypatch.setattr("fastssl.methods.bricks.rounds.probe_share", lambda encoder: 0.5)
    with pytest.raises(ConfigError, match="cannot be tuned by lp_ft"):
        made(toy)
