"""SentAugment as `fastssl train` runs it: digits retrieved from a folder in which most images are none, and a stop inside either stage."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.cli import main
from fastssl.pipelines import sources
from tests.fastssl.engine.test_run import flat, records, state_of

FLAGS = ["--model", "wrn-10-1", "--set", "data.size=8", "--set", "model.batchnorm_momentum=0.1", "--ema", "0.9", "--lr", "0.1", "--quiet"]
TRUE, OTHERS, COPIES = 150, 450, 30


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A folder of 150 digits, 30 of them twice, and 450 images of noise, of bars and of torn digits."""
    folder, rng = tmp_path_factory.mktemp("elsewhere"), np.random.default_rng(0)
    digits = sources.load("digits", size=8)
    rows = rng.permutation(np.flatnonzero(~digits.test))[:TRUE]
    y, x = np.mgrid[:8, :8]
    for number in range(TRUE + OTHERS + COPIES):
        if number < TRUE or number >= TRUE + OTHERS:
            image, name = digits.images[rows[number % (TRUE + OTHERS)], 0], "digit"
        else:
            torn = np.rot90(digits.images[rng.choice(rows), 0]).reshape(4, 2, 8)[rng.permutation(4)].reshape(8, 8)
            bars = ((x * rng.integers(1, 4) + y * rng.integers(1, 4)) // 4 % 2 * rng.integers(128, 256)).astype(np.uint8)
            image, name = (rng.integers(0, 256, (8, 8), dtype=np.uint8), torn, bars)[number % 3], "other"
        Image.fromarray(np.repeat(image[..., None], 3, 2)).save(folder / f"{name}-{number:04d}.png")
    return folder


def run(folder, pool, *more, steps=120):
    args = ["--method", "sentaugment", *FLAGS, "--labels-per-class", "4", "--batch-size", "20", "--ratio", "3", "--steps", str(steps)]
    given = ["--extra-unlabelled", str(pool), "--set", "method.retrieved=15", "--set", "method.teacher_share=0.5"]
    assert main(["train", *args, *given, *more, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_are_retrieved_and_train_the_student(tmp_path, pool, seed):
    """Fewer than a third of the pool are digits; of what was kept 0.98 or more over seeds 0, 1 and 2, accuracies 0.86 or more."""
    out = run(tmp_path / "run", pool, "--seed", str(seed))
    memory = state_of(out)["method"]
    taken = memory["taught.place"].numpy()[-TRUE - OTHERS - COPIES :] >= 0
    names = sorted(path.name for path in pool.iterdir())
    chosen = [name for name, kept in zip(names, taken, strict=True) if kept]
    assert 20 < len(chosen) <= 75 and np.mean(["digit" in name for name in chosen]) > 0.9
    numbers = [int(name[6:10]) for name in chosen]
    assert not {n - TRUE - OTHERS for n in numbers if n >= TRUE + OTHERS} & set(numbers), "a copy is taken once"
    q = memory["taught.q"][: len(chosen)]
    torch.testing.assert_close(q.sum(1), torch.ones(len(q)))
    log = (out / "log.txt").read_text()
    assert (
        " of 630 images of the bank retrieved, " in log and f"sentaugment: {len(chosen)} of " in log and "stage 2, train: 60 steps" in log
    )
    result = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    assert result["accuracy"] > 0.7


SHORT = ["--set", "train.eval_every=6", "--batch-size", "4", "--ratio", "2"]


@pytest.mark.parametrize("more", [(), ("--set", "method.query=each", "--set", "method.targets=hard")], ids=["soft", "hard"])
def test_a_run_goes_on_bit_for_bit_inside_the_stages_and_between_them(tmp_path, pool, more):
    whole = run(tmp_path / "whole", pool, *SHORT, *more, steps=6)
    reference = flat(state_of(whole))
    for stop in (2, 3, 5):
        broken = run(tmp_path / f"stopped{stop}", pool, *SHORT, *more, "--set", f"train.stop_at={stop}", steps=6)
        halfway = flat(state_of(broken))
        assert halfway["/run/stage_index"] == (stop > 3) == bool(halfway["/method/taught.q"].any())
        assert main(["train", "--resume", str(broken), "--quiet"]) == 0
        log = (broken / "log.txt").read_text()
        assert log.count("of the bank retrieved") == log.count("retrieved images kept") == 1, "each once, on whichever side of the stop"
        resumed = flat(state_of(broken))
        assert resumed.keys() == reference.keys()
        for key, value in reference.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed[key]), (stop, key)
        assert records(whole) == records(broken)


def test_without_a_bank_one_sentence_names_the_flag(tmp_path, capsys):
    assert main(["train", "--method", "sentaugment", *FLAGS, "--out", str(tmp_path / "run")]) == 2
    assert "give --extra-unlabelled, or --set method.bank=own" in capsys.readouterr().err and not (tmp_path / "run").exists()
