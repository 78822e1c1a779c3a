"""A stage may draw other views than the one before: the same rows, the same pictures, at the same place in the streams."""

import pytest
import torch

from fastssl.pipelines import sources, splits
from fastssl.pipelines.batch import Views
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.resident import ResidentPipeline

FULL = Views(("weak",), ("weak", "strong"), 1)
LESS = Views((), ("weak",))


def made(kind, folder, views):
    options = {"batch_size": 4, "ratio": 3, "seed": 5, "size": 16}
    if kind == "resident":
        source = sources.load("digits")
        return ResidentPipeline(source, splits.make(source, per_class=2), views, **options)
    pytest.importorskip("nvidia.dali", reason="DALI comes with the dali extra: pip install nvidia-dali-cuda120")
    from fastssl.pipelines.streamed import DaliPipeline

    source = sources.load(str(folder()), size=16, pipeline="dali")
    return DaliPipeline(source, splits.make(source, per_class=4), views, **options)


def copied(batch):
    return [tuple(v.clone() for v in part) if isinstance(part, tuple) else part.clone() for part in batch]


@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_other_views_are_drawn_at_the_same_place(kind, folder):
    plain, switching = made(kind, folder, FULL), made(kind, folder, FULL)
    expected = [copied(plain.draw()) for _ in range(6)]
    for number, views in enumerate((FULL, LESS, LESS, FULL, LESS, FULL)):
        switching.show(views)
        labelled, label, weight, index, unlabelled, rows, hidden, _ = copied(switching.draw())
        want = expected[number]
        assert len(labelled) == len(views.labelled) and len(unlabelled) == len(views.unlabelled)
        assert torch.equal(rows, want[5]) and torch.equal(index, want[3]) and torch.equal(hidden, want[6])
        for mine, theirs in zip(unlabelled, want[4][: len(unlabelled)], strict=True):
            assert torch.equal(mine, theirs)
        for mine, theirs in zip(labelled, want[0], strict=False):
            assert torch.equal(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), switching.state_dict().values(), strict=True))


def test_views_that_count_no_unlabelled_rows_and_unknown_ones(folder):
    pipeline = made("resident", folder, FULL)
    pipeline.show(Views(("weak",)))
    batch = pipeline.draw()
    assert batch.unlabelled == () and len(batch.unlabelled_index) == 0 and len(batch.labelled[0]) == 4
    with pytest.raises(ConfigError, match="view"):
        pipeline.show(Views(("wek",)))
    assert FULL.count(7) == 15 and LESS.count(3) == 3
