"""The resident pipeline: shapes, order, keys, resume, splits in place, sweeps."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from fastssl.pipelines import sources, splits
from fastssl.pipelines.batch import Batch, Views
from fastssl.pipelines.errors import CheckpointError, ConfigError, DataError
from fastssl.pipelines.resident import ResidentPipeline
from fastssl.pipelines.views import RECIPES

VIEWS = Views(("weak",), ("weak", "strong", "strong"), 1)


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits", size=16)


@pytest.fixture(scope="module")
def split(digits):
    return splits.make(digits, per_class=4)


def pipeline(digits, split, views=VIEWS, *, batch_size=8, ratio=3, **options):
    return ResidentPipeline(digits, split, views, batch_size=batch_size, ratio=ratio, **options)


def flat(batch: Batch):
    return [*batch.labelled, batch.label, batch.weight, batch.index, *batch.unlabelled, batch.unlabelled_index, batch.hidden_label]


def same(a: Batch, b: Batch):
    return all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def test_a_batch_is_what_the_contract_says(digits, split):
    batch = pipeline(digits, split).draw()
    assert [tuple(v.shape) for v in batch.labelled] == [(8, 3, 16, 16)] and [tuple(v.shape) for v in batch.unlabelled] == [
        (24, 3, 16, 16)
    ] * 3
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in (*batch.labelled, *batch.unlabelled))
    assert batch.label.dtype == batch.index.dtype == batch.unlabelled_index.dtype == batch.hidden_label.dtype == torch.int64
    assert batch.weight.dtype == torch.float32
    assert set(batch.index.tolist()) <= set(split.labelled) and torch.equal(batch.label, torch.from_numpy(digits.label)[batch.index])
    assert torch.equal(batch.hidden_label, torch.from_numpy(digits.label)[batch.unlabelled_index])
    assert not set(batch.unlabelled_index.tolist()) & set(split.test)
    assert not torch.equal(batch.unlabelled[1], batch.unlabelled[2]), "two strong views of one sample differ"


def test_labels_and_weights_are_the_splits(digits, split):
    changed = dataclasses.replace(split, label=(split.label + 1) % 10, weight=np.arange(40, dtype=np.float32))
    batch = pipeline(digits, changed).draw()
    at = np.searchsorted(split.labelled, batch.index.numpy())
    assert batch.label.tolist() == changed.label[at].tolist() and batch.weight.tolist() == changed.weight[at].tolist()


def test_unknown_labels_are_minus_one(digits, split):
    source = dataclasses.replace(digits, label=np.where(digits.given, -1, digits.label))
    assert (pipeline(source, split).draw().hidden_label == -1).all()


def test_an_epoch_visits_each_row_once(digits, split):
    run = pipeline(digits, split, Views(("plain",), ("plain",)), batch_size=5, ratio=1)
    draws = [run.draw() for _ in range(270)]
    labelled = torch.cat([b.index for b in draws])[: 33 * 40].view(33, 40)
    assert torch.equal(labelled.sort(1).values, torch.from_numpy(split.labelled).expand_as(labelled))
    assert not torch.equal(labelled[0], labelled[1])
    unlabelled = torch.cat([b.unlabelled_index for b in draws])[: len(split.unlabelled)]
    assert torch.equal(unlabelled.sort().values, torch.from_numpy(split.unlabelled))


def test_a_set_smaller_than_a_batch_repeats_rows_with_fresh_views(digits):
    split = splits.make(digits, per_class=1)
    batch = pipeline(digits, split, batch_size=25).draw()
    rows, counts = batch.index.unique(return_counts=True)
    assert len(rows) == 10 and counts.min() == 2 and counts.max() == 3
    for row in rows:
        views = batch.labelled[0][batch.index == row].flatten(1)
        # 16 pixels give 25 crops: most pairs differ, and none may be equal for every row.
        assert len(views) > 1
    distinct = sum(len(batch.labelled[0][batch.index == row].flatten(1).unique(dim=0)) for row in rows)
    assert distinct >= 20


@pytest.mark.parametrize("policy", ["fixmatch", "usb"])
def test_a_view_does_not_depend_on_the_batch(digits, split, policy):
    """(sample, visit, view) decide: streams of different batch sizes show the same images."""

    def seen(batch_size, draws):
        run = pipeline(digits, split, batch_size=batch_size, ratio=2, policy=policy)
        batches = [run.draw() for _ in range(draws)]
        return [torch.cat([flat(b)[i] for b in batches]) for i in range(len(flat(batches[0])))]

    assert all(torch.equal(a, b) for a, b in zip(seen(4, 15), seen(20, 3), strict=True))


def test_seeds_and_streams_have_their_own_keys(digits, split):
    a, b = pipeline(digits, split, seed=0).draw(), pipeline(digits, split, seed=1).draw()
    assert not torch.equal(a.index, b.index) and not torch.equal(a.unlabelled_index, b.unlabelled_index)
    assert same(a, pipeline(digits, split, seed=0).draw())
    # One and the same set in both streams, one batch an epoch: the same rows come in another order and with other crops.
    both = dataclasses.replace(split, unlabelled=split.labelled)
    batch = pipeline(digits, both, Views(("weak",), ("weak",)), batch_size=40, ratio=1).draw()
    assert torch.equal(batch.index.sort().values, batch.unlabelled_index.sort().values) and not torch.equal(
        batch.index, batch.unlabelled_index
    )
    matched = batch.unlabelled[0][batch.unlabelled_index.argsort()] == batch.labelled[0][batch.index.argsort()]
    assert not matched.flatten(1).all(1).all()


@pytest.mark.parametrize("k", [1, 6])
def test_resume_in_mid_epoch_is_bit_for_bit(digits, split, k):
    whole = pipeline(digits, split)
    batches = [whole.draw() for _ in range(9)]
    first = pipeline(digits, split)
    for _ in range(k):
        first.draw()
    state = {name: value.clone() for name, value in first.state_dict().items()}
    resumed = pipeline(digits, split)
    address = resumed.step.data_ptr()
    resumed.load_state_dict(state)
    assert resumed.step.data_ptr() == address
    assert all(same(resumed.draw(), batch) for batch in batches[k:])
    assert state["step"].item() == k and resumed.state_dict()["step"].item() == 9


def test_a_foreign_state_is_refused(digits, split):
    with pytest.raises(CheckpointError, match="this pipeline's state is a single step; the checkpoint holds cursor, epoch"):
        pipeline(digits, split).load_state_dict({"epoch": torch.tensor(1), "cursor": torch.tensor(2)})


def test_no_global_generator_is_read_or_moved(digits, split):
    def state():
        return torch.random.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()

    torch.manual_seed(5)
    run, before = pipeline(digits, split), state()
    first = run.draw()
    list(run.sweep("test", view="strong"))
    assert state() == before
    torch.manual_seed(6)
    assert same(first, pipeline(digits, split).draw())


def test_threads_do_not_change_a_batch(digits, split):
    one = pipeline(digits, split).draw()
    torch.set_num_threads(2)
    assert same(one, pipeline(digits, split).draw())


@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_normalisation(digits, split, mean, std):
    source = dataclasses.replace(digits, mean=mean, std=std)
    piece = next(pipeline(source, split).sweep("test", 7))
    m, s = torch.tensor(mean).double().view(3, 1, 1), torch.tensor(std).double().view(3, 1, 1)
    expected = (torch.from_numpy(source.images[piece.index]).double() / 255 - m) / s
    assert (piece.inputs.double() - expected).abs().max() < 1e-6
    assert piece.inputs.is_contiguous() and source.images.min() == 0 and source.images.max() == 255


def test_sweeps_visit_each_row_once_in_order(digits, split):
    run = pipeline(digits, split)
    trained = np.union1d(split.labelled, split.unlabelled)
    for part, rows in [("labelled", split.labelled), ("unlabelled", split.unlabelled), ("test", split.test), ("train", trained)]:
        pieces = list(run.sweep(part, 100))
        assert torch.equal(torch.cat([p.index for p in pieces]), torch.from_numpy(rows))
        assert torch.equal(torch.cat([p.label for p in pieces]), torch.from_numpy(digits.label[rows]))
        assert {len(p.inputs) for p in pieces[:-1]} <= {100}
    assert run.step.item() == 0, "a sweep does not move the stream"


@pytest.mark.parametrize("view", list(RECIPES))
def test_sweeps_do_not_depend_on_the_batch_size(digits, split, view):
    run = pipeline(digits, split, policy="ctaugment" if view == "probe" else "fixmatch")
    small, large = (torch.cat([p.inputs for p in run.sweep("labelled", size, view)]) for size in (7, 64))
    assert torch.equal(small, large)
    assert torch.equal(small, torch.cat([p.inputs for p in run.sweep("labelled", 40, view)]))


def test_a_new_split_is_taken_in_place(digits, split):
    run = pipeline(digits, split)
    run.draw()
    addresses = [run._rows["labelled"].data_ptr(), run._label.data_ptr(), run._count["unlabelled"].data_ptr()]
    wider = splits.make(digits, per_class=7, seed=3)
    wider = dataclasses.replace(wider, label=(wider.label + 3) % 10, unlabelled=wider.unlabelled[::2])
    run.use(wider)
    assert addresses == [run._rows["labelled"].data_ptr(), run._label.data_ptr(), run._count["unlabelled"].data_ptr()]
    assert run.split is wider and run.spec.unlabelled == len(wider.unlabelled)
    fresh = pipeline(digits, wider)
    fresh.load_state_dict(run.state_dict())
    batch = run.draw()
    assert same(batch, fresh.draw())
    assert torch.equal(batch.label, (torch.from_numpy(digits.label)[batch.index] + 3) % 10)
    assert set(batch.unlabelled_index.tolist()) <= set(wider.unlabelled)
    assert next(run.sweep("labelled", 70)).label.tolist() == wider.label.tolist()


def test_spec(digits, split):
    spec = pipeline(digits, split).spec
    assert (spec.name, spec.num_classes, spec.shape, spec.rows, spec.unlabelled) == ("digits", 10, (3, 16, 16), 1797, 1347)
    assert spec.mean == (0.5,) * 3 and spec.keeps_label == frozenset()
    assert pipeline(dataclasses.replace(digits, flip=True), split).spec.keeps_label == {"flip"}


def test_views_may_come_in_any_order_and_number(digits, split):
    one = pipeline(digits, split, Views(("strong", "plain", "weak"), ("strong", "weak", "plain"))).draw()
    images = torch.from_numpy(digits.images)
    assert torch.allclose(one.labelled[1], images[one.index].float() / 127.5 - 1, atol=1e-6)
    assert torch.allclose(one.unlabelled[2], images[one.unlabelled_index].float() / 127.5 - 1, atol=1e-6)
    # A view's number is part of its key, its neighbours are not.
    two = pipeline(digits, split, Views(("strong", "weak", "weak"), ("strong", "weak"))).draw()
    assert torch.equal(one.labelled[0], two.labelled[0]) and torch.equal(one.labelled[2], two.labelled[2])
    assert torch.equal(one.unlabelled[1], two.unlabelled[1])


def test_supervised_methods_need_no_unlabelled_rows(digits, split):
    alone = dataclasses.replace(split, unlabelled=np.zeros(0, np.int64))
    batch = pipeline(digits, alone, Views(("weak",))).draw()
    assert batch.unlabelled == () and len(batch.unlabelled_index) == len(batch.hidden_label) == 0
    with pytest.raises(DataError, match="no unlabelled images in digits") as caught:
        pipeline(digits, alone)
    assert caught.value.exit_code == 3
    run = pipeline(digits, split)
    with pytest.raises(DataError, match="no unlabelled images"):
        run.use(alone)
    with pytest.raises(DataError, match="no labelled images in digits"):
        run.use(dataclasses.replace(split, labelled=split.labelled[:0], label=split.label[:0], weight=split.weight[:0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0: ask for at least one"),
        ({"ratio": 0}, "ratio 0: ask for at least one"),
        ({"policy": "fixmatsch"}, "unknown policy 'fixmatsch'; did you mean fixmatch"),
        ({"views": Views(("weak",), ("storng",))}, "unknown view 'storng'; did you mean strong"),
    ],
)
def test_refused(digits, split, options, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(digits, split, **options)


def test_unknown_part_and_view_of_a_sweep(digits, split):
    run = pipeline(digits, split)
    with pytest.raises(ConfigError, match="unknown part 'trian'; did you mean train"):
        next(run.sweep("trian"))
    with pytest.raises(ConfigError, match="unknown view 'wek'; did you mean weak"):
        next(run.sweep("test", view="wek"))


def test_digits_keep_their_own_size(split):
    native = sources.load("digits")
    batch = pipeline(native, splits.make(native, per_class=4), policy="digits").draw()
    assert batch.unlabelled[1].shape == (24, 3, 8, 8)
    assert torch.equal(batch.index, pipeline(native, split, policy="fixmatch").draw().index)


def test_a_jpeg_folder_with_labels_draws_and_sweeps(folder, digit_files, tmp_path):
    """The whole way from files to batches: a folder of JPEGs, a short labels.csv, a held-out part."""
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{n},{n[0]}\n" for n in sorted(digit_files)[::3]))
    source = sources.load(folder(), labels=table, size=32)
    split = splits.make(source, holdout=0.25)
    run = ResidentPipeline(source, split, VIEWS, batch_size=6, ratio=2)
    batch = run.draw()
    assert batch.unlabelled[2].shape == (12, 3, 32, 32) and (batch.hidden_label >= 0).all()
    assert sorted(source.label[split.test]) == [0, 1, 2, 3] and len(split.labelled) == 12 and len(split.unlabelled) == 44
    assert len(torch.cat([p.label for p in run.sweep("test")])) == 4
