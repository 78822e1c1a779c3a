"""Self-training and Noisy Student as `fastssl train` runs them: what each round says and reaches, stops inside any stage, early ends."""

import json

import pytest
import torch

from fastssl.cli import main
from tests.fastssl.engine.test_run import flat, records, state_of

FLAGS = ["--model", "wrn-10-1", "--set", "data.size=8", "--set", "model.batchnorm_momentum=0.1", "--ema", "0.9", "--lr", "0.1", "--quiet"]
LONG = ["--labels-per-class", "4", "--batch-size", "20", "--ratio", "3"]
SHORT = ["--labels-per-class", "2", "--batch-size", "4", "--ratio", "2", "--steps", "6", "--set", "train.eval_every=6"]


def run(folder, method, *more, options=()):
    given = [word for key, value in dict(options).items() for word in ("--set", f"method.{key}={value}")]
    assert main(["train", "--method", method, *FLAGS, *given, *more, "--out", str(folder)]) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1], (folder / "log.txt").read_text()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_second_round_does_better_than_the_labels_alone(tmp_path, seed):
    """Over seeds 0, 1 and 2 the teacher reached 0.867, 0.891 and 0.842, the second student 0.927, 0.913 and 0.909."""
    options = {"rounds": 2}
    result, log = run(tmp_path / "run", "self_training", *LONG, "--steps", "360", "--seed", str(seed), options=options)
    teacher, first, second = result["rounds"]
    assert [one["steps"] for one in result["rounds"]] == [120, 240, 360] and second["accuracy"] == result["accuracy"]
    assert second["accuracy"] > teacher["accuracy"] and second["accuracy"] > 0.85
    assert min(first["selected"], second["selected"]) > 800 and 0 < second["moved"] < first["moved"] == first["selected"]
    assert f"self_training, round 2 of 2: {second['selected']:,} of " in log and " changed their label, " in log


MOVES = {
    "self_training": {"rounds": 2, "threshold": 0.105},
    "self_training, k_best, kept, warm": {"rounds": 2, "criterion": "k_best", "k_best": 3, "keep": True, "start": "warm"},
    "self_training, zoph, contrast": {"rounds": 2, "threshold": 0.105, "loss": "zoph", "joint": "contrast"},
    "noisy_student": {"rounds": 2, "threshold": 0.105},
    "noisy_student, hard, a teacher of its own": {"rounds": 2, "threshold": 0.105, "targets": "hard", "teacher_model": "wrn-10-1"},
}


@pytest.mark.parametrize("case", MOVES)
def test_a_run_goes_on_bit_for_bit_inside_each_stage_and_between_them(tmp_path, case):
    method = case.split(",")[0]
    run(tmp_path / "whole", method, *SHORT, options=MOVES[case])
    reference = flat(state_of(tmp_path / "whole"))
    assert reference["/run/stage_index"] == 2, "both rounds took place"
    for stop in (1, 2, 3, 5):
        folder = tmp_path / f"stopped{stop}"
        run(folder, method, *SHORT, "--set", f"train.stop_at={stop}", options=MOVES[case])
        assert flat(state_of(folder))["/run/stage_index"] == (stop - 1) // 2
        assert main(["train", "--resume", str(folder), "--quiet"]) == 0
        resumed = flat(state_of(folder))
        assert resumed.keys() == reference.keys()
        assert all(torch.equal(value, resumed[key]) for key, value in reference.items() if isinstance(value, torch.Tensor)), stop
        assert records(tmp_path / "whole") == records(folder)
        assert (folder / "log.txt").read_text().count(f"{method}, round 2 of 2: ") == (tmp_path / "whole" / "log.txt").read_text().count(
            f"{method}, round 2 of 2: "
        )


def test_a_teacher_that_is_sure_of_nothing_ends_the_run_finished_with_one_warning(tmp_path):
    result, log = run(tmp_path / "run", "self_training", *SHORT, options={"rounds": 2, "threshold": 1.0})
    assert result["steps"] == 2 and result["accuracy"] is not None
    assert log.count("warning: ") == log.count("nothing is selected, so that training ends here") == 1
    assert json.loads((tmp_path / "run" / "STATUS.json").read_text())["state"] == "finished"
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0, "nothing is left to do"


def test_a_student_smaller_than_its_teacher_is_refused_before_anything_is_written(tmp_path, capsys):
    given = ["--set", "method.teacher_model=wrn-16-2", "--out", str(tmp_path / "run")]
    assert main(["train", "--method", "noisy_student", *FLAGS, *SHORT, *given]) == 2
    assert "parameters and its teacher wrn-16-2 has" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [["--amp", "bf16"], ["--set", "train.accumulate=2"], ["--ema", "0"]], ids=lambda more: more[-1])
@pytest.mark.parametrize("method", ["self_training", "noisy_student"])
def test_in_other_arithmetic_in_pieces_and_without_an_average(tmp_path, method, more):
    options = {"rounds": 1, "threshold": 0.105} | ({"loss": "zoph", "joint": "rotation"} if method == "self_training" else {})
    result, _ = run(tmp_path / "run", method, *SHORT, *more, options=options)
    assert result["steps"] == 6 and result["skipped"] == 0 and result["rounds"][1]["moved"] > 0
