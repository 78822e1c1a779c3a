"""The averaged network's pass as a teacher: modes for its length alone, statistics of its own, and a decay that warms up."""

import copy

import pytest
import torch

from fastssl.methods.bricks.teaching import check_average, following, modes_of, taught
from fastssl.pipelines.errors import ConfigError


@pytest.fixture
def pair(toy):
    student = toy.network("linear", encoder=lambda: toy.Normed(0.5)).train()
    teacher = copy.deepcopy(student).requires_grad_(False)
    return student, teacher.train(False)


def modes(network):
    return [module.training for module in network.modules()]


def test_modes_are_the_students_for_the_length_of_the_pass(pair):
    student, teacher = pair
    student.encoder.layers[2].eval()
    with modes_of(student, teacher):
        assert modes(teacher) == modes(student) and not all(modes(teacher))
    assert not any(modes(teacher))
    with pytest.raises(RuntimeError, match="within"), modes_of(student, teacher):
        raise RuntimeError("within")
    assert not any(modes(teacher))


def test_a_pass_is_as_of_a_network_in_training_and_has_no_graph(toy, pair):
    student, teacher = pair
    images = torch.randn(6, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    norm, theirs = student.encoder.layers[2], teacher.encoder.layers[2]
    first, second = taught(teacher, student, [images[:2], images[2:]], dropout=False)
    assert not first.logits.requires_grad and [len(out.logits) for out in (first, second)] == [2, 4]
    hidden = student.encoder.layers[1](images.flatten(1)).detach()
    assert torch.allclose(theirs.running_mean, 0.1 * hidden.mean(0)) and theirs.num_batches_tracked == 1
    assert norm.num_batches_tracked == 0, "the student's statistics are its own"
    again = taught(teacher, student, [images], dropout=False)[0]
    assert torch.equal(again.logits, torch.cat([first.logits, second.logits])), "by the batch, not by running statistics"
    assert not torch.equal(taught(teacher, student, [images])[0].logits, taught(teacher, student, [images])[0].logits), "dropout"


def test_traces_whole(pair):
    student, teacher = pair
    torch.compiler.reset()
    images = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    call = lambda: taught(teacher, student, [images], dropout=False)[0].logits  # noqa: E731
    assert torch.allclose(torch.compile(call, backend="aot_eager", fullgraph=True)(), call())
    assert teacher.encoder.layers[2].num_batches_tracked == 2 and not any(modes(teacher))


@pytest.mark.parametrize(
    ("step", "plain", "early"), [(0, 1 / 2, 1 / 2), (8, 0.9, 0.8), (9, 10 / 11, 0.8), (10, 11 / 12, 11 / 12), (5000, 0.99, 0.99)]
)
def test_decay(step, plain, early):
    at = torch.tensor(step)
    assert float(following(0.99)(at)) == pytest.approx(plain, rel=1e-6)
    assert float(following(0.99, early=0.8, until=10.0)(at)) == pytest.approx(early, rel=1e-6)


def test_no_average_no_teacher():
    check_average("ict", 0.9)
    with pytest.raises(ConfigError, match="method ict .* give --ema 0.999"):
        check_average("ict", 0.0)
