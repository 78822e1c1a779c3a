"""The step rows by tiny networks: what a race notes, that its checks stop it, rows by name, and the GPU script with stand-ins."""

from __future__ import annotations

import json
import types

import pytest
import torch

from bench import bench_run, bench_step, gpu_steps, method_cases, our_steps, step_cases, step_checks, step_rows
from bench._timing import Machine
from bench.gpu_checks import Skip
from fastssl.models import Network
from fastssl.models.heads import LinearHead
from fastssl.models.wrn import WideResNet

CPU = Machine("cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)
    encoder = WideResNet(10, 1)
    return Network(encoder, LinearHead(encoder.num_features, 10)).train()


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """The ceiling by one try; its matrices are as large as ever."""
    given = step_rows.peak
    monkeypatch.setattr(step_rows, "peak", lambda machine, dtype: given(machine, dtype, tries=1))


def test_a_race_runs_in_turns_and_notes_paired_ratios(monkeypatch):
    clock, order, recorder = [0.0], [], step_rows.Recorder()
    monkeypatch.setattr(step_rows.time, "perf_counter", lambda: clock[0])

    def entrant(name: str, seconds: float):
        def call() -> None:
            order.append(name)
            clock[0] += seconds

        return call

    others = {"a": entrant("a", 4.0), "b": entrant("b", 1.0)}
    step_rows.race(recorder, CPU, entrant("ours", 2.0), others, rounds=3, limit=1000, goals={"a": 1.5}, most={"a": 2})
    assert order == ["ours", "a", "b"] + ["a", "b", "ours"] + ["b", "a", "ours"] + ["b", "ours"]
    info = recorder.extra_info
    assert (info["ratio_to_a"], info["ratio_to_b"], info["ours_ms"], info["goal_a"], info["rounds"]) == (2.0, 0.5, 2000.0, 1.5, 3)
    step_rows.ceiling(info, 1.0, "bound")
    assert (info["percent_of_ceiling"], info["most_to_a"]) == (50.0, 4.0)
    lines = list(step_rows.table_lines("row", info))
    assert "50 % of it" in lines[1] and "2.00x" in lines[2] and "goal 1.50" in lines[2] and "0.50x" in lines[3]


def test_the_limit_ends_a_race_early_but_not_before_three_rounds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(step_rows.time, "perf_counter", lambda: clock[0])

    def slow() -> None:
        clock[0] += 5.0

    for limit, rounds in ((45.0, 4), (1.0, 3)):
        recorder = step_rows.Recorder()
        step_rows.race(recorder, CPU, slow, {"peer": slow}, rounds=20, limit=limit)
        assert recorder.extra_info["rounds"] == rounds


def test_checks_run_without_tf32_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for cuda, inside in ((True, False), (False, True)):
        with step_rows.ieee(types.SimpleNamespace(cuda=cuda)):
            assert torch.backends.cudnn.allow_tf32 is inside
        assert torch.backends.cudnn.allow_tf32 is True


@pytest.mark.parametrize("weak_pass", ["joint", "separate"])
def test_fixmatch_row(network, weak_pass):
    recorder = step_rows.Recorder()
    goals = {"published": 2.0}
    step_cases.fixmatch(recorder, CPU, network, (4, 12), 10, weak_pass=weak_pass, rounds=3, side=16, goals=goals)
    info = recorder.extra_info
    assert {"ratio_to_published", "ratio_to_published_bf16", "ratio_to_usb", "goal_published", "percent_of_ceiling"} <= info.keys()
    assert info["ours_fp32_update_off"] < 1e-3 < info["ours_update_off"], "fp32 is held to fp32, bf16 to what it rounds"
    assert info["batch"] == "4+12+12" and ("own" in info["mathematics"]) is (weak_pass == "separate")
    # The 3x3 convolutions of one pass over 28 images are more than a third of what was counted, forward and twice backward.
    assert info["gflop"] > 0.1


def test_a_wrong_step_is_not_timed(network, monkeypatch):
    monkeypatch.setattr(step_cases.Practice, "average", lambda self: [p.data.mul_(0.9) for p in self.network.parameters()])
    with pytest.raises(AssertionError, match="usb: the update of one step is off"):
        step_cases.fixmatch(step_rows.Recorder(), CPU, network, (4, 12), 10, weak_pass="joint", rounds=3, side=16)


def test_fp32_and_update_rows(network):
    fp32, update = step_rows.Recorder(), step_rows.Recorder()
    step_cases.fixmatch_fp32(fp32, CPU, network, (2, 4), 10, rounds=3, published=1.1)
    assert fp32.extra_info["goal_published"] == 1.1 and fp32.extra_info["ours_update_off"] < 1e-3
    step_cases.update(update, CPU, network, rounds=3, calls=2, goals={"published": 5.0})
    assert update.extra_info["steps_a_round"] == 2 and update.extra_info["weights_off"] < 1e-6


def test_finessl_row():
    network = our_steps.prompted_network("timm:vit_tiny_patch16_224", 5, CPU.device, prompts=3, img_size=16, patch_size=8)
    recorder = step_rows.Recorder()
    step_cases.finessl(recorder, CPU, network, 2, 16, rounds=3, peers=("published", "published_bf16"), most={"published": 3})
    assert {"ratio_to_published", "ratio_to_published_bf16", "ours_fp32_update_off"} <= recorder.extra_info.keys()


def test_whole_run_row(tmp_path):
    recorder = step_rows.Recorder()
    plan = bench_run.Plan((4, 4), workers=1, rounds=2, steps=2, skip=1, images=60)
    vit = {"model.name": "timm:vit_tiny_patch16_224", "model.img_size": 32, "model.patch_size": 16, "model.prompts": 2}
    goals = {"repaired": 2.2}
    bench_run.finessl(recorder, CPU, tmp_path / "images", plan, vit, half=torch.bfloat16, size=32, resize=36, pad=4, goals=goals)
    info = recorder.extra_info
    assert info["ours_steps_per_second"] == pytest.approx(1e3 / info["ours_ms"])
    assert {"ratio_to_shipped", "ratio_to_repaired", "goal_repaired"} <= info.keys() and info["mode"] == "eager"


def test_views_that_differ_are_seen():
    batch = our_steps.noise_batch(2, 64, 2, 8, 5, CPU.device)
    draw = lambda: batch  # noqa: E731
    bench_run.check_views(draw, draw)
    for wrong, told in ((lambda v: v + 2, "means"), (lambda v: v * 3, "deviations")):
        with pytest.raises(AssertionError, match=told):
            bench_run.check_views(draw, lambda wrong=wrong: batch._replace(unlabelled=tuple(map(wrong, batch.unlabelled))))
    with pytest.raises(AssertionError, match="label"):
        bench_run.check_views(draw, lambda: batch._replace(label=batch.label[:1]))


def test_rows_by_name():
    wanted = {"fixmatch_wrn282_joint_cpu", "fixmatch_wrn282_separate_cpu", "finessl_vitb16_cpu", "update_wrn282_cpu"}
    assert wanted <= bench_step.ROWS.keys()
    cuda = gpu_steps.rows_for("cuda")
    steps = [name for name in cuda if not name.startswith("method_")]
    assert len(steps) == 12 and list(cuda)[0] == "fixmatch_wrn282_separate_run_cuda" and steps[-1].startswith("update")
    assert list(cuda)[len(steps) :] == [f"method_{name}_cuda" for name in method_cases.CASES], "a row a method, after the others"
    assert len(gpu_steps.rows_for("cpu")) == 6 + len(method_cases.CASES) and all(
        name.endswith("_cpu") for name in gpu_steps.rows_for("cpu")
    )


def test_the_script_refuses_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_steps.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_the_script_goes_on_after_failures_and_lists_what_it_left_out(tmp_path, monkeypatch, capsys):
    def good(benchmark, machine) -> None:
        step_rows.race(benchmark, machine, lambda: None, {"published": lambda: None}, rounds=3, goals={"published": 2.0})

    def bad(benchmark, machine) -> None:
        raise RuntimeError("no | such kernel")

    def late(benchmark, machine) -> None:
        monkeypatch.setattr(gpu_steps, "RESERVE", 1e9)

    def skipped(bench) -> str:
        raise Skip("no such package")

    rows = {"good": good, "bad": bad, "other": good, "never": bad}
    monkeypatch.setattr(gpu_steps, "rows_for", lambda device: {**rows, "z_late": lambda b, m: (good(b, m), late(b, m)), "z_cut": good})
    monkeypatch.setattr(step_checks, "CHECKS", (skipped,))
    args = ["--device", "cpu", "--out", str(tmp_path), "--only", "good", "bad", "z_", "skipped", "--commit", "abc"]
    assert gpu_steps.main(args) == 1
    text = next(tmp_path.glob("steps-*.md")).read_text()
    assert "| skipped | skipped | no such package |" in text and "| commit | abc |" in text
    assert "| good |" in text and "| published |" in text and "| bad | RuntimeError: no / such kernel |" in text
    assert "* z_cut" in text and "other" not in text and "never" not in text
    records = [json.loads(line) for line in next(tmp_path.glob("steps-*.jsonl")).read_text().splitlines()]
    assert [r["row"] for r in records] == ["good", "bad", "z_late"] and records[1]["failed"]
    assert "failed: bad" in capsys.readouterr().out


def test_checks_pass_equal_runs_and_see_a_frozen_one(tmp_path, monkeypatch):
    monkeypatch.setattr(step_checks, "STEPS", 3)
    bench = step_checks.Bench(CPU.device, tmp_path / "images")
    bench.captured = "eager"  # compiled steps have tests of their own
    assert "finessl" in step_checks.alike(bench, "finessl") and step_checks.replays_differ(bench)
    with pytest.raises(Skip):
        step_checks.no_host_sync(bench)
    given, made = bench.run, []

    def frozen(method: str, mode: str, **options):
        made.append(given(method, mode, **options))
        batch = made[-1].pipeline.draw()
        if len(made) == 2:
            made[-1].pipeline.draw = lambda: batch
        return made[-1]

    monkeypatch.setattr(bench, "run", frozen)
    with pytest.raises(AssertionError, match="differ by"):
        step_checks.alike(bench, "finessl")
