"""What `python -m bench.compare` calls moved, what noise, and what it says of files that are none."""

from __future__ import annotations

import json

import pytest

from bench import compare


def report(*rows: tuple[str, float, float], node: str = "here", **infos: dict) -> dict:
    """A report of rows (name, median in seconds, interquartile range), `infos` their extra_info by name."""
    made = [{"name": name, "stats": {"median": median, "iqr": iqr}, "extra_info": infos.get(name, {})} for name, median, iqr in rows]
    return {"machine_info": {"node": node, "cpu": {"brand_raw": "x", "count": 2}}, "benchmarks": made}


@pytest.fixture
def write(tmp_path):
    def call(name: str, content) -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return call


def ratio(middle: float, low: float, high: float) -> dict[str, float]:
    return {"ratio_to_published": middle, "ratio_to_published_low": low, "ratio_to_published_high": high, "ratio_text": "no number"}


def test_moved_and_noise(write, capsys):
    a = write("a.json", report(("fast", 1.0, 0.1), ("noisy", 1.0, 0.6), ("near", 1.0, 0.001), ("slow", 1.0, 0.1), ("gone", 1.0, 0.1)))
    b = write("b.json", report(("fast", 0.5, 0.1), ("noisy", 0.6, 0.6), ("near", 0.97, 0.001), ("slow", 1.5, 0.1), ("new", 1.0, 0.1)))
    assert compare.main([a, b]) == 0
    out = capsys.readouterr().out
    verdicts = {line.split()[0]: line.split()[-1] for line in out.splitlines() if " median s " in line}
    assert verdicts == {"fast": "faster", "noisy": "noise", "near": "noise", "slow": "slower"}
    gains = {line.split()[0]: line.split()[-2] for line in out.splitlines() if " median s " in line}
    assert gains["fast"] == "2.00" and gains["slow"] == "0.67"
    assert "only in A: gone" in out and "only in B: new" in out and "1 faster, 1 slower" in out
    assert "different machines" not in out
    assert compare.main([a, b, "--strict"]) == 1
    assert compare.main([a, a, "--strict"]) == 0
    capsys.readouterr()
    assert compare.main([a, b, "--least", "0.01"]) == 0
    assert "2 faster, 1 slower" in capsys.readouterr().out


def test_ratios_are_compared_with_their_own_spread(write, capsys):
    rows = ("step", 1.0, 0.5)
    a = write("a.json", report(rows, step=ratio(2.0, 1.9, 2.1)))
    b = write("b.json", report(rows, node="there", step=ratio(3.0, 2.9, 3.1)))
    c = write("c.json", report(rows, step=ratio(3.0, 1.0, 4.0)))
    assert compare.main([a, b]) == 0
    out = capsys.readouterr().out
    assert "different machines" in out
    assert any("ratio_to_published" in line and line.endswith("1.50  faster") for line in out.splitlines())
    assert "ratio_text" not in out
    compare.main([a, c])
    assert "0 faster, 0 slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ([], "no list of benchmarks"),
        ({"benchmarks": [{"name": "x"}]}, "no list of benchmarks"),
        (report(), "holds no rows"),
        (report(("other", 1.0, 0.1)), "no row in common"),
    ],
)
def test_bad_files_are_one_sentence(write, capsys, content, told):
    good = write("good.json", report(("row", 1.0, 0.1)))
    assert compare.main([good, write("bad.json", content)]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_a_missing_file_is_one_sentence(tmp_path, capsys):
    assert compare.main([str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("stats", [{}, None, {"median": 0, "iqr": 1}, {"median": "1", "iqr": 1}])
def test_rows_without_a_time_are_refused(write, capsys, stats):
    bad = report(("row", 1.0, 0.1))
    bad["benchmarks"][0]["stats"] = stats
    assert compare.main([write("a.json", bad), write("b.json", report(("row", 1.0, 0.1)))]) == 2
    assert "row row has no median and spread" in capsys.readouterr().err


def test_empty_facts_are_no_error(write):
    bare = report(("row", 1.0, 0.1))
    bare["machine_info"] = bare["benchmarks"][0]["extra_info"] = None
    assert compare.main([write("a.json", bare), write("b.json", bare)]) == 0


def test_a_round_may_hold_several_steps(write, capsys):
    one = report(("row", 1.0, 0.001), row={"steps_a_round": 10})
    two = report(("row", 2.0, 0.002), row={"steps_a_round": 20})
    assert compare.main([write("a.json", one), write("b.json", two), "--strict"]) == 0
    assert "1.00  noise" in capsys.readouterr().out
