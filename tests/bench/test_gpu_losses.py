"""The GPU benchmark's timing, rows, report and command line, run on the CPU; what only CUDA has is stood in for."""

from __future__ import annotations

import json
import weakref

import pytest
import torch

from bench import gpu_losses, gpu_report, loss_peers, loss_rows
from bench._timing import Job, Machine, copy_gb_per_s, cpu_wall_clock_us, cycle, interleaved, matmul_tflop_per_s, ratio, spread

NAMES = ("eager", "ours_autograd", "ours_at_once")
TINY = loss_rows.Case(40, 10, torch.float32, True, NAMES)


@pytest.fixture
def machine() -> Machine:
    return Machine("cpu")


def test_jobs_run_in_turns_and_each_round_starts_with_the_next() -> None:
    ran: list[str] = []
    jobs = {name: Job(lambda name=name: ran.append(name), 2, lambda name=name: ran.append(f"before {name}")) for name in "abc"}
    clock = iter(range(100))

    def timer(run) -> float:
        run()
        return next(clock)

    times = interleaved(jobs, timer, rounds=3, warmup=1)
    turns = [name for name in ran if len(name) == 1]
    assert ran[::2] == [f"before {name}" for name in turns]
    assert "".join(turns) == "cab" + "abc" + "bca" + "cab"
    assert times == {"a": [1.5, 4.0, 5.0], "b": [2.0, 3.0, 5.5], "c": [2.5, 3.5, 4.5]}, "two calls a run, the warm-up left out"


def test_spread_and_ratio() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 2.0, 5)
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0


def test_cycle_holds_as_many_results_as_there_are_sets() -> None:
    made: list[weakref.ref] = []
    most = 0

    def call(x: torch.Tensor) -> torch.Tensor:
        nonlocal most
        result = x + 1
        made.append(weakref.ref(result))
        most = max(most, sum(ref() is not None for ref in made))
        return result

    cycle(call, [(torch.zeros(2),), (torch.ones(2),), (torch.ones(3),)], 12)()
    assert len(made) == 12 and most == 4, "three sets, and the newest while the oldest goes"
    assert not any(ref() is not None for ref in made)


@pytest.mark.parametrize(
    ("shape", "sets", "calls"), [((448, 10), 64, 64), ((4096, 1000), 8, 64), ((4096, 21841), 2, 6), ((8192, 65536), 2, 2)]
)
def test_sets_exceed_the_cache_where_64_can(machine: Machine, shape: tuple[int, int], sets: int, calls: int) -> None:
    machine.cuda, machine.l2 = True, 60 * 2**20
    n, c = shape
    assert machine.sets_and_calls(2 * n * c * 4, int(loss_peers.least_bytes(n, c, 4, 3))) == (sets, calls)


def test_ceilings_and_the_wall_clock(machine: Machine) -> None:
    assert machine.timer is cpu_wall_clock_us and machine.alive()
    assert cpu_wall_clock_us(lambda: sum(range(10_000))) > 1
    assert copy_gb_per_s(machine, 2**16, rounds=3).median > 0
    assert matmul_tflop_per_s(machine, 16, rounds=3).median > 0


def test_cases_are_those_of_the_benchmark() -> None:
    listed = loss_rows.cases()
    wanted = {(448, 10), (448, 100), (4096, 1000), (4096, 21841), (32768, 1000), (8192, 65536)}
    for gradient in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            shapes = {
                (c.rows, c.classes)
                for c in listed
                if c.dtype == dtype and c.gradient == gradient and len(c.names) == len(loss_peers.MAKERS)
            }
            assert shapes == wanted
    assert len({c.title for c in listed}) == len(listed)


def test_row_on_the_cpu(machine: Machine) -> None:
    records = {r["name"]: r for r in loss_rows.measure(machine, TINY, 3, ("un-captured",))}
    assert set(records) == {*NAMES, "copy"} and all(r["status"] == "ok" and r["us"] > 0 for r in records.values())
    ours = records["ours_at_once"]
    assert set(ours["ratio_to"]) == {"eager", "copy"} and "ratio_to" not in records["eager"]
    least = 3 * 40 * 10 * 4 + 20 * 40
    assert ours["gb_per_s"] == pytest.approx(least / ours["us"] / 1e3)
    twice = records["ours_autograd"]
    assert twice["moved_gb_per_s"] == pytest.approx((4 * 1600 + 800) / twice["us"] / 1e3)
    assert ours["unread_gb_per_s"] == pytest.approx(((2 + ours["kept"]) * 1600 + 800) / ours["us"] / 1e3)
    alone = [r["name"] for r in loss_rows.measure(machine, TINY._replace(gradient=False), 3, ("un-captured",))]
    assert alone == ["eager", "ours_autograd", "copy"], "no loss alone from the form that gives both"


def test_peer_that_is_wrong_or_missing_is_not_timed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> loss_peers.Peer:
        return loss_peers.Peer("wrong", None, lambda s, t: tuple(2 * x for x in loss_peers.our_loss_and_gradient(s, t)))

    def missing() -> loss_peers.Peer:
        raise ImportError("no such package")

    monkeypatch.setattr(loss_peers, "MAKERS", {**loss_peers.MAKERS, "wrong": wrong, "missing": missing})
    records = list(loss_rows.measure(machine, TINY._replace(names=("wrong", "missing", "eager")), 3, ("un-captured",)))
    found = {r["name"]: (r["status"], r.get("us") is not None) for r in records}
    assert found == {"wrong": ("failed", False), "missing": ("skipped", False), "eager": ("ok", True), "copy": ("ok", True)}
    assert "off by" in records[0]["why"] and records[1]["why"] == "no such package"


def test_peer_that_spoils_its_input_gets_it_anew(machine: Machine) -> None:
    def both(student, teacher):
        assert bool((student != 9).all()), "spoiled by the call before"
        result = loss_peers.our_loss_and_gradient(student, teacher)
        student.fill_(9)
        return result

    peer = loss_peers.Peer("spoiler", None, both, spoils=True)
    sets = [loss_peers.inputs(4, 3, torch.float32, machine.device, seed) for seed in range(2)]
    before = [t.clone() for pair in sets for t in pair]
    entrant = loss_rows.entrant_of(peer, sets, 4, True)
    for _ in range(2):
        entrant.restore()
        entrant.run()
    assert all(torch.equal(a, b) for a, b in zip(before, (t for pair in sets for t in pair), strict=True))


def test_captured_mode_goes_on_past_what_cannot_be_captured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def __init__(self, run):
            self.replay = run

    def captured(run, pool) -> Graph:
        if run is broken:
            raise RuntimeError("called a synchronizing CUDA operation")
        return Graph(run)

    def broken() -> None: ...

    monkeypatch.setattr(loss_rows, "captured", captured)
    monkeypatch.setattr(loss_rows, "graph_nodes", lambda graph: 6)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    fine = lambda: sum(range(1000))  # noqa: E731
    entrants = {
        "eager": loss_rows.Entrant(fine, fine, fine, True, False),
        "liger": loss_rows.Entrant(fine, fine, fine, False, False),
        "torn": loss_rows.Entrant(broken, broken, fine, True, False),
        "ours_at_once": loss_rows.Entrant(fine, fine, fine, True, True),
    }
    records = {r["name"]: r for r in loss_rows.compete(machine, entrants, 2, 5, ("captured",))}
    assert {name: r["status"] for name, r in records.items()} == {"eager": "ok", "liger": "skipped", "torn": "failed", "ours_at_once": "ok"}
    assert records["ours_at_once"]["launches"] == 3 and set(records["ours_at_once"]["ratio_to"]) == {"eager"}
    assert "synchronizing" in records["torn"]["why"]


def test_finessl_row_and_host_time_on_the_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {name: block for name, block in loss_rows.finessl_block.BLOCKS.items() if name != "compile"}
    monkeypatch.setattr(loss_rows.finessl_block, "BLOCKS", blocks)
    records = {r["name"]: r for r in loss_rows.measure_finessl(machine, torch.float32, 3, ("un-captured",), (8, 12, 400))}
    assert set(records) == set(blocks) and all(r["status"] == "ok" for r in records.values())
    assert set(records["ours_at_once"]["ratio_to"]) == {"official", "sync_free"}
    host = list(loss_rows.measure_host(machine, NAMES, calls=3))
    assert [r["name"] for r in host] == list(NAMES) and all(r["us"] > 0 for r in host)


@pytest.fixture
def tiny_run(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """main() on the CPU over one tiny row; returns (exit code, records, Markdown)."""
    monkeypatch.setattr(gpu_losses, "cases", lambda: [TINY])

    def call(*flags: str) -> tuple[int, list[dict], str]:
        code = gpu_losses.main(["--device", "cpu", "--rounds", "3", "--out", str(tmp_path), "--commit", "abc123", *flags])
        (rows,), (table,) = tmp_path.glob("*.jsonl"), tmp_path.glob("*.md")
        return code, [json.loads(text) for text in rows.read_text().splitlines()], table.read_text()

    return call


def test_command_writes_rows_and_table(tiny_run, capsys: pytest.CaptureFixture) -> None:
    code, records, table = tiny_run("--only", "40x10", "inputs_unmodified")
    assert code == 0
    assert [r["name"] for r in records] == ["copy", "matmul", *NAMES, "copy"]
    for part in (
        "| commit | abc123 |",
        "| inputs_unmodified | ok |",
        "| 40 x 10 | float32 | ours_at_once |",
        "x eager",
        "% of copy",
        "% moved",
    ):
        assert part in table
    assert "## Failed" not in table
    assert "40x10 float32 loss and gradient" in capsys.readouterr().out


def test_command_survives_a_failing_row_and_says_so(tiny_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(gpu_losses, "cases", lambda: [TINY._replace(rows=41), TINY])
    right = gpu_losses.measure

    def measure(machine, case, *args):
        if case.rows == 41:
            raise RuntimeError("out of | memory")
        yield from right(machine, case, *args)

    monkeypatch.setattr(gpu_losses, "measure", measure)
    code, records, table = tiny_run("--no-check", "--only", "x10 ")
    assert code == 1
    assert [r["status"] for r in records] == ["ok", "ok", "failed", *["ok"] * 4]
    assert "## Failed" in table and "RuntimeError: out of / memory" in table
    assert "failed: 41x10 float32 loss and gradient all" in capsys.readouterr().out


def test_command_lists_what_the_budget_left_out(tiny_run) -> None:
    code, records, table = tiny_run("--no-check", "--seconds", "1", "--only", "40x10")
    assert code == 0 and [r["name"] for r in records] == ["copy", "matmul"]
    assert "* 40x10 float32 loss and gradient" in table.split("## Not run")[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")
def test_command_needs_cuda_by_default(capsys: pytest.CaptureFixture) -> None:
    assert gpu_losses.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_stem() -> None:
    assert gpu_report.stem({"device": "NVIDIA H100 80GB HBM3", "date": "2026-11-21"}) == "losses-nvidia-h100-80gb-hbm3-2026-11-21"
