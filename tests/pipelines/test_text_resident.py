"""Texts drawn in groups of like length: which rows, how often, of what shape, and where a resume goes on."""

from collections import Counter

import numpy as np
import pytest
import torch

from fastssl.pipelines import splits, text
from fastssl.pipelines.batch import Views
from fastssl.pipelines.errors import CheckpointError, ConfigError, DataError
from fastssl.pipelines.text_resident import TextPipeline
from fastssl.pipelines.text_streams import Stream, grouped
from fastssl.pipelines.text_table import from_table
from fastssl.pipelines.text_views import with_variants
from tests import text_set

BOTH = Views(("weak",), ("weak", "strong"), no_grad=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text.load_tokenizer(str(text_set.encoder(tmp_path_factory.mktemp("encoder"))))


def source_of(rows=120, **columns):
    found = text_set.sentences(rows)
    made = {"text": [row.text for row in found], "label": [row.label for row in found], **columns}
    test = text_set.sentences(rows + 20)[rows:]
    return from_table(made, test={"text": [row.text for row in test], "label": [row.label for row in test]})


def pipeline(tokenizer, source=None, views=BOTH, split=None, **options):
    source = source or source_of()
    split = split or splits.make(source, per_class=2, seed=0)
    together, variants = with_variants(source.texts, source.augmented)
    tokens = text.tokenised(tokenizer, together, 64, cache=False)
    options = {"batch_size": 4, "ratio": 3, "policy": "tfidf"} | options
    return TextPipeline(source, tokens, tokenizer, split, views, variants=variants, **options)


def test_views_are_the_rows_own_texts(tokenizer):
    run = pipeline(tokenizer)
    for _ in range(5):
        batch = run.draw()
        for views, index in ((batch.labelled, batch.index), (batch.unlabelled[:1], batch.unlabelled_index)):
            for view, row in zip(views[0], index.tolist(), strict=True):
                own = tokenizer.backend(run.source.texts[row])["input_ids"]
                assert view.dtype == torch.int64 and view[view >= 0].tolist() == own
        assert batch.label.tolist() == [int(run.source.label[row]) for row in batch.index]
        assert batch.hidden_label.tolist() == [int(run.source.label[row]) for row in batch.unlabelled_index]
        assert (batch.unlabelled[0] != batch.unlabelled[1]).any(), "the strong view is another text"
        assert len(batch.unlabelled[0]) == 12 and batch.unlabelled[0].shape[1] in run._streams["unlabelled"].lengths


def test_each_row_comes_once_an_epoch_whatever_its_group(tokenizer):
    run = pipeline(tokenizer)
    steps, seen, forms = 10 * 40, Counter(), Counter()
    for _ in range(steps):
        forms[run.form] += 1
        seen.update(run.draw().unlabelled_index.tolist())
    assert set(seen) == set(run.split.unlabelled.tolist()) and len(forms) > 1
    mean = steps * 12 / len(seen)
    assert max(abs(count - mean) for count in seen.values()) <= 2, "every row as often as any other, but for where a group stands"
    assert set(forms) <= set(run.forms)


def test_a_group_holds_what_fits_it(tokenizer):
    run = pipeline(tokenizer)
    for stream, part in zip(run._streams.values(), (run.split.labelled, run.split.unlabelled), strict=True):
        assert sorted(stream.rows[: len(part)].tolist()) == sorted(part.tolist())
        for k, length in enumerate(stream.lengths):
            rows = stream.rows[stream.start[k] : stream.start[k] + stream.count[k]].tolist()
            assert run._size[rows].max() <= length and len(rows) >= min(12, len(part))


def test_grouping_merges_what_is_smaller_than_a_batch():
    group, lengths = grouped(np.array([5, 5, 5, 9, 20, 20, 20, 40]), (8, 16, 32, 64), 3)
    assert lengths == (8, 64) and group.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    group, lengths = grouped(np.array([5, 60]), (8, 64), 5)
    assert lengths == (64,) and group.tolist() == [0, 0]
    group, lengths = grouped(np.array([5] * 6 + [9] * 6), (8, 16, 64), 5)
    assert lengths == (8, 16) and group.tolist() == [0] * 6 + [1] * 6


def test_turns_go_by_the_rows_of_each_group_and_know_no_device():
    stream = Stream(100, 7, torch.device("cpu"))
    stream.use(np.arange(100), np.array([5] * 70 + [20] * 30), (8, 32), 4, single=False)
    turns = [stream.turn(step) for step in range(1000)]
    assert abs(sum(turns) - 300) <= 2
    assert max(abs(sum(turns[at : at + 50]) - 15) for at in range(0, 1000, 50)) <= 2


def test_a_draw_is_a_function_of_seed_and_step(tokenizer):
    source = source_of()
    a, b, other = (pipeline(tokenizer, source, seed=seed) for seed in (0, 0, 1))
    differ = False
    for _ in range(6):
        one, two, three = a.draw(), b.draw(), other.draw()
        for x, y in zip((*one.labelled, *one.unlabelled), (*two.labelled, *two.unlabelled), strict=True):
            assert torch.equal(x, y)
        differ |= one.unlabelled_index.tolist() != three.unlabelled_index.tolist()
    assert differ


def test_resume_goes_on_where_it_was(tokenizer):
    source = source_of()
    run, again = pipeline(tokenizer, source), pipeline(tokenizer, source)
    for _ in range(7):
        run.draw()
    again.load_state_dict(run.state_dict())
    assert again.form == run.form
    for _ in range(5):
        for x, y in zip(run.draw(), again.draw(), strict=True):
            assert all(map(torch.equal, x, y)) if isinstance(x, tuple) else torch.equal(x, y)
    assert int(run.tokens_seen) == int(again.tokens_seen)
    with pytest.raises(CheckpointError, match="counts draws of texts; the checkpoint holds step"):
        run.load_state_dict({"step": torch.tensor(1)})


def test_tokens_seen_leaves_padding_out(tokenizer):
    run = pipeline(tokenizer)
    batches = [run.draw() for _ in range(4)]
    assert int(run.tokens_seen) == sum(int((view >= 0).sum()) for b in batches for view in (*b.labelled, *b.unlabelled))


def test_pieces_of_a_step_have_one_form(tokenizer):
    run = pipeline(tokenizer, pieces=3)
    for _ in range(12):
        forms = []
        for _ in range(3):
            forms.append(run.form)
            run.draw()
        assert len(set(forms)) == 1


def test_a_recording_is_told_of(tokenizer):
    """What a captured step replays on the device, the host's count follows."""
    source = source_of()
    run, host = pipeline(tokenizer, source), pipeline(tokenizer, source)
    for _ in range(9):
        assert run.form == host.form
        run.draw()
        host.passed()
    with run.held(run.forms[-1]):
        assert run.form == run.forms[-1]
        assert run.draw().unlabelled[0].shape[1] == run.forms[-1][3]


def test_sweeps_go_over_each_row_once(tokenizer):
    run = pipeline(tokenizer)
    for part, rows in (("test", run.split.test), ("labelled", run.split.labelled), (np.array([7, 3, 5]), np.array([7, 3, 5]))):
        pieces = list(run.sweep(part, 8))
        assert torch.cat([piece.index for piece in pieces]).tolist() == rows.tolist()
        loose = list(run.sweep(part, 8, ordered=False))
        assert sorted(torch.cat([piece.index for piece in loose]).tolist()) == sorted(rows.tolist())
        for piece in (*pieces, *loose):
            for view, row in zip(piece.inputs, piece.index.tolist(), strict=True):
                assert view[view >= 0].tolist() == tokenizer.backend(run.source.texts[row])["input_ids"]
    assert (
        list(run.sweep(np.array([4]), view="strong"))[0].inputs.tolist() == list(run.sweep(np.array([4]), view="strong"))[0].inputs.tolist()
    )


def test_many_labels_alone_come_in_groups(tokenizer):
    source = source_of(400)
    everything = splits.make(source, fraction=1.0, seed=0)
    alone = pipeline(tokenizer, source, Views(("weak",)), everything)
    assert len(alone._streams["labelled"].lengths) > 1 and len(alone.forms) == len(alone._streams["labelled"].lengths)
    beside = pipeline(tokenizer, source, BOTH, everything)
    assert len(beside._streams["labelled"].lengths) == 1
    alone.show(BOTH)
    assert alone.forms == beside.forms and len(alone.draw().unlabelled) == 2


def test_translations_come_in_strong_views(tokenizer):
    found = text_set.sentences(120)
    other = [f"{row.label} {row.label} music" if number % 2 else "" for number, row in enumerate(found)]
    run = pipeline(tokenizer, source_of(text_aug_0=other), policy="back_translation")
    for _ in range(6):
        batch = run.draw()
        for weak, strong, row in zip(*batch.unlabelled, batch.unlabelled_index.tolist(), strict=True):
            wanted = tokenizer.backend(other[row])["input_ids"] if other[row] else weak[weak >= 0].tolist()
            assert strong[strong >= 0].tolist() == wanted


def test_another_split_is_taken_in_place(tokenizer):
    source = source_of()
    run = pipeline(tokenizer, source)
    address = run._streams["unlabelled"].rows.data_ptr()
    run.use(splits.make(source, per_class=3, seed=5))
    assert run._streams["unlabelled"].rows.data_ptr() == address
    labels = {int(row): int(label) for row, label in zip(run.split.labelled, run.split.label, strict=True)}
    for _ in range(6):
        batch = run.draw()
        assert [labels[row] for row in batch.index.tolist()] == batch.label.tolist()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batch_size": 0}, ConfigError, "at least one labelled text"),
        ({"ratio": 0}, ConfigError, "at least one unlabelled text"),
        ({"views": Views(("simclr",))}, ConfigError, "view 'simclr' is for images"),
        ({"views": Views(("weak",), ("strong",), probe=True)}, ConfigError, "method.ctaugment learns how strong views of images"),
        ({"policy": "fixmatch"}, ConfigError, "policy 'fixmatch' is for images"),
        ({"policy": "back_translation"}, ConfigError, "text_aug_0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(tokenizer, options, error, words):
    with pytest.raises(error, match=words):
        pipeline(tokenizer, **options)


def test_an_empty_part_is_said(tokenizer):
    source = source_of()
    split = splits.make(source, per_class=2, seed=0)
    none = np.zeros(0, np.int64)
    for field, words in (("unlabelled", "no unlabelled texts"), ("labelled", "no labelled texts")):
        with pytest.raises(DataError, match=words):
            pipeline(tokenizer, source, split=type(split)(**{**split.__dict__, field: none}))


def test_what_is_tested_decides_nothing_that_is_drawn(tokenizer):
    """Longer test texts: the same batches, and sweeps that hold them."""
    rows = text_set.sentences(120)
    made = {"text": [row.text for row in rows], "label": [row.label for row in rows]}
    runs = []
    for times in (1, 3):
        test = {"text": [" ".join([row.text] * times) for row in text_set.sentences(140)[120:]], "label": [row.label for row in rows[:20]]}
        runs.append(pipeline(tokenizer, from_table(made, test=test)))
    assert runs[0].lengths == runs[1].lengths and runs[0].spec.shape[0] < runs[1].spec.shape[0]
    for _ in range(8):
        for x, y in zip(runs[0].draw(), runs[1].draw(), strict=True):
            assert all(map(torch.equal, x, y)) if isinstance(x, tuple) else torch.equal(x, y)
    assert max(piece.inputs.shape[1] for piece in runs[1].sweep("test")) == runs[1].spec.shape[0]
