"""A file of foundation labels: read back exactly, noise that nests, and every fault in one sentence with its line."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from fastssl.pipelines import foundation, splits
from fastssl.pipelines.batch import DataSpec, FoundationLabels, Views
from fastssl.pipelines.errors import ConfigError, DataError
from fastssl.pipelines.resident import ResidentPipeline
from fastssl.pipelines.source import Source

CLASSES = ("ant", "bee", "cat", "dog")


def made(rows=40, test=8, classes=CLASSES):
    label = np.arange(rows) % len(classes)
    return Source(
        name="zoo",
        classes=classes,
        ids=[f"{i:03d}.png" for i in range(rows)],
        label=label,
        given=np.ones(rows, bool),
        test=np.arange(rows) >= rows - test,
        images=np.zeros((rows, 3, 4, 4), np.uint8),
        content=np.arange(rows).astype(np.uint64),
        flip=False,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )


@pytest.fixture
def read(tmp_path):
    """Reads a file of the given text (or of [(id, label)] rows) against the zoo: (labels, warnings, notes)."""

    def run(content, source=None, **options):
        source = made() if source is None else source
        path = tmp_path / "pseudo.csv"
        if not isinstance(content, str | bytes):
            content = "id,label\n" + "".join(f"{name},{label}\n" for name, label in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        warnings, notes = [], []
        split = splits.make(source, per_class=2)
        found = foundation.read(path, source, split, warn=warnings.append, note=notes.append, **options)
        assert found.label.dtype == np.int64 and found.weight.dtype == np.float32
        assert len(found.label) == len(found.weight) == len(source)
        return found, warnings, notes

    return run


def true_rows(source, keep=lambda i: True):
    return [(name, source.classes[c]) for i, (name, c) in enumerate(zip(source.ids, source.label, strict=True)) if keep(i)]


def test_a_whole_file_in_any_order_gives_labels_and_one_note(read):
    source = made()
    found, warnings, notes = read(true_rows(source)[::-1])
    assert found.label.tolist() == source.label.tolist() and (found.weight == 1).all()
    assert not warnings
    assert notes == ["foundation labels: pseudo.csv labels 32 of 32 training images and agrees with 8 of 8 labelled ones (100.0 %)"]


def test_confidence_is_the_weight_and_blanks_are_missing(read):
    text = "\ufeffID;Label;Confidence\r\n000.png;bee;0.25\r\n001.png;;0.9\r\n002.png;cat;\r\n\r\n003.png; dog ;1\r\n"
    found, warnings, _ = read(text)
    assert found.label[:5].tolist() == [1, -1, 2, 3, -1]
    assert found.weight[:5].tolist() == [0.25, 0, 1, 1, 0]
    (missing,) = [w for w in warnings if "without a foundation label" in w]
    assert "29 of 32 (001.png, 004.png," in missing


def test_path_serves_as_id_and_guarded_cells_are_read(read):
    source = made()
    source.ids[0] = "-0.png"
    found, _, _ = read("path,label\n'-0.png,cat\n001.png,cat\n", source)
    assert found.label[:2].tolist() == [2, 2]


def test_only_the_labels_of_the_split_are_looked_at(read):
    """What the set knows of unlabelled and of test rows changes nothing of what is said."""
    source, other = made(), made()
    split = splits.make(source, per_class=2)
    _, warnings, notes = read(true_rows(source))
    hidden = np.setdiff1d(np.arange(40), split.labelled)
    other.label[hidden] = (other.label[hidden] + 1) % 4
    told = []
    foundation._tell("pseudo.csv", source.label, other, split, np.arange(32), warnings.append, told.append)
    assert told == notes and not warnings


@pytest.mark.parametrize(
    ("text", "place", "sentence"),
    [
        ("id,label\n000.png,bea\n", "pseudo.csv:2", "unknown class 'bea'; did you mean bee?"),
        (
            "id,label\n000.png,bee\n001.png,ant\n000.png,cat\n",
            "pseudo.csv:4",
            "'000.png' is labelled 'cat' here and 'bee' in line 2; keep one",
        ),
        ("id,label,confidence\n000.png,bee,1.5\n", "pseudo.csv:2", "confidence '1.5' is not a number from 0 to 1"),
        ("id,label,confidence\n000.png,bee,-0.1\n", "pseudo.csv:2", "confidence '-0.1' is not a number from 0 to 1"),
        ("id,label,confidence\n000.png,bee,nan\n", "pseudo.csv:2", "confidence 'nan' is not a number from 0 to 1"),
        ("id,label,confidence\n000.png,bee,high\n", "pseudo.csv:2", "confidence 'high' is not a number"),
        ("id,label\n,bee\n", "pseudo.csv:2", "the id is blank"),
        ("id,confidence\n000.png,1\n", "pseudo.csv:1", "column 'label' is missing"),
        ("path,lable\n000.png,bee\n", "pseudo.csv:1", "unknown column 'lable'; did you mean label?"),
        ("name,label\n000.png,bee\n", "pseudo.csv:1", "column 'id' is missing"),
        ("id,label\n000.png\n", "pseudo.csv:2", "number of fields is 1"),
        ("id,label\n", "pseudo.csv:1", "has no row below its header"),
        ("", "pseudo.csv:1", "the file is empty"),
    ],
)
def test_faults_are_listed_with_their_lines(read, text, place, sentence):
    with pytest.raises(DataError, match="does not fit zoo; correct these lines") as error:
        read(text)
    assert any(at == place and sentence in what for at, what in error.value.problems), error.value.problems


def test_all_faults_come_at_once(read):
    with pytest.raises(DataError) as error:
        read("id,label,confidence\n000.png,bea,1\n001.png,ant,7\n002.png,ant,1\n003.png,elk,1\n")
    assert [place for place, _ in error.value.problems] == ["pseudo.csv:2", "pseudo.csv:3", "pseudo.csv:5"]


def test_labels_for_other_ids_name_one_of_each(read):
    with pytest.raises(DataError, match=r"labels for other ids: 'x/1.png' is one of its own, '000.png' is one of zoo"):
        read("id,label\nx/1.png,lion\nx/2.png,tiger\n")  # their classes are other ones too: the ids are what to say


def test_test_rows_alone_and_blanks_alone_are_refused(read):
    source = made()
    for rows in (true_rows(source, lambda i: source.test[i]), [(name, "") for name in source.ids]):
        with pytest.raises(DataError, match="no label for any of the 32 training images"):
            read(rows)


def test_a_file_that_is_not_utf_8_and_one_that_is_not_there(read, tmp_path):
    with pytest.raises(DataError, match="not UTF-8") as error:
        read(b"id,label\n000.png,b\xe9e\n")
    assert error.value.problems[0][0] == "pseudo.csv:2"
    source = made()
    with pytest.raises(DataError, match=r"cannot read .*nowhere.csv: No such file"):
        foundation.read(tmp_path / "nowhere.csv", source, splits.make(source, per_class=2), warn=pytest.fail)


def test_strange_and_repeated_ids_are_warned_of_but_lost_images_are_not(read):
    source = made()
    source.quarantine = [("broken.png", "truncated")]
    rows = [*true_rows(source), ("other.png", "lion"), ("broken.png", "ant"), ("000.png", "ant")]
    found, warnings, _ = read(rows, source)
    assert warnings == [
        "ids of pseudo.csv that are not in zoo: 1 of 43 (other.png)",
        "pseudo.csv repeats ids, and the first line of each counts: 1 of 43 (000.png)",
    ]
    assert found.label.tolist() == source.label.tolist()


def test_low_agreement_and_classes_that_never_come_are_warned_of(read):
    source = made()
    wrong = [(name, CLASSES[(c + 1) % 4] if c else "ant") for name, c in zip(source.ids, source.label, strict=True)]
    _, warnings, notes = read(wrong)
    assert "agrees with 2 of 8 labelled ones (25.0 %)" in notes[0]
    assert "foundation labels of pseudo.csv agree with 2 of 8 labelled images (25.0 %, chance is 25.0 %)" in warnings[0]
    assert warnings[1] == "classes that pseudo.csv never names among the training images: 1 of 4 (bee)"


@pytest.mark.parametrize(
    ("classes", "right", "warned"), [(2, 3, False), (2, 2, True), (3, 4, False), (3, 3, True), (4, 4, False), (4, 3, True)]
)
def test_few_classes_ask_for_twice_chance_at_most_three_quarters(classes, right, warned):
    """Of n labelled rows `right` agree: of 4 for two classes, of 6 for three, of 8 for four."""
    source = made(classes=CLASSES[:classes])
    split, label, warnings = splits.make(source, per_class=2), source.label.copy(), []
    label[split.labelled[right:]] = (label[split.labelled[right:]] + 1) % classes
    foundation._tell("p.csv", label, source, split, np.arange(32), warnings.append, lambda text: None)
    assert bool(warnings) == warned


def test_no_labelled_row_in_the_file_is_no_agreement(read):
    labelled = set(splits.make(made(), per_class=2).labelled.tolist())
    _, _, notes = read(true_rows(made(), lambda i: i not in labelled))
    assert notes == [
        "foundation labels: pseudo.csv labels 24 of 32 training images and none of the 8 labelled ones, so agreement is unknown"
    ]


def test_noise_replaces_its_share_and_nests(read):
    source = made(rows=408)
    rows = true_rows(source)
    labels = {noise: read(rows, source, noise=noise, seed=3)[0].label for noise in (0.0, 0.2, 0.4, 1.0)}
    wrong = {noise: set(np.flatnonzero(label != source.label).tolist()) for noise, label in labels.items()}
    assert {noise: sum(r < 400 for r in some) for noise, some in wrong.items()} == {0: 0, 0.2: 80, 0.4: 160, 1: 400}
    assert wrong[0.2] < wrong[0.4] < wrong[1.0]
    both = sorted(wrong[0.2])
    assert labels[0.2][both].tolist() == labels[0.4][both].tolist()
    # Uniform over the other classes: 408 draws of three, each within four standard deviations (9.5) of 136.
    step = (labels[1.0] - source.label) % 4
    assert all(abs((step == k).sum() - 136) < 38 for k in (1, 2, 3))
    assert read(rows, source, noise=0.2, seed=4)[0].label.tolist() != labels[0.2].tolist()


def test_noise_is_keyed_by_the_id_alone(read):
    """Whatever the file's order, and whether it has the test rows too, the same training rows get the same wrong labels."""
    source = made()
    whole, _, notes = read(true_rows(source), noise=0.25)
    part, _, _ = read(true_rows(source, lambda i: not source.test[i])[::-1], noise=0.25)
    assert whole.label[:32].tolist() == part.label[:32].tolist() and (part.label[32:] == -1).all()
    assert notes[0] == "foundation labels: 8 of the training images' were replaced by another class (noise 0.25)"
    assert (whole.weight == 1).all()


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan")])
def test_noise_out_of_range(read, noise):
    with pytest.raises(ConfigError, match="foundation_noise .* is out of range"):
        read(true_rows(made()), noise=noise)


def test_a_configuration_without_a_file_has_none_and_takes_no_noise():
    source = made()
    said = {"seed": 0, "warn": pytest.fail, "note": pytest.fail}
    split = splits.make(source, per_class=2)
    nothing = SimpleNamespace(foundation_labels=None, foundation_noise=0.0)
    assert foundation.configured(nothing, source, split, **said) is None
    with pytest.raises(ConfigError, match="give --foundation-labels FILE"):
        foundation.configured(SimpleNamespace(foundation_labels=None, foundation_noise=0.2), source, split, **said)


def test_a_configuration_with_a_file(tmp_path):
    source, notes = made(), []
    (tmp_path / "p.csv").write_text("id,label\n" + "".join(f"{name},{label}\n" for name, label in true_rows(source)))
    asked = SimpleNamespace(foundation_labels=str(tmp_path / "p.csv"), foundation_noise=0.5)
    split = splits.make(source, per_class=2)
    found = foundation.configured(asked, source, split, seed=7, warn=lambda text: None, note=notes.append)
    assert (found.label[:32] != source.label[:32]).sum() == 16 and len(notes) == 2


def test_a_pipelines_spec_counts_the_labels_of_its_split():
    source = made()
    label = np.array([0, 0, 2])
    pipeline = ResidentPipeline(source, splits.make(source, per_class=2), Views(), batch_size=2)
    assert pipeline.spec.labelled_counts == (2, 2, 2, 2) and pipeline.spec.foundation is None
    pipeline.use(dataclasses.replace(pipeline.split, labelled=np.array([0, 4, 2]), label=label, weight=np.ones(3, np.float32)))
    assert pipeline.spec.labelled_counts == (2, 0, 1, 0)


def test_specs_compare_without_their_foundation_labels():
    spec = DataSpec("zoo", CLASSES, (3, 4, 4), 40, 32)
    given = dataclasses.replace(spec, foundation=FoundationLabels(np.zeros(40, np.int64), np.ones(40, np.float32)))
    assert spec == given and hash(spec) == hash(given) and spec.labelled_counts == ()
