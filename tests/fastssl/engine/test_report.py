"""What the rooms below tell of while a run goes on stands in its log."""

from __future__ import annotations

import logging

from fastssl.engine.report import Reporter, final_table

log = logging.getLogger("fastssl")


def test_warnings_of_a_run_stand_in_its_log(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(log, "handlers", [])  # runs that other tests made and never trained may still be listening
    reporter = Reporter(tmp_path, 10, quiet=True)
    log.warning("%s cannot be read; another image takes its place", "a.jpg")
    logging.getLogger("fastssl.kernels").warning("and what a room below says")
    log.info("not this")
    reporter.close()
    log.warning("nor this, the run being over")
    said = ["warning: a.jpg cannot be read; another image takes its place", "warning: and what a room below says"]
    assert (tmp_path / "log.txt").read_text().splitlines() == said
    assert capsys.readouterr().err.splitlines()[:2] == said, "quiet does not silence a warning"


def test_who_writes_no_file_listens_to_nothing():
    before = list(log.handlers)
    reporter = Reporter(None, 10, quiet=True)
    assert log.handlers == before
    reporter.close()


def test_a_long_tail_is_told_by_thirds():
    judged = {"accuracy": 0.5, "rows": 6, "ece": 0.1, "per_class": [1.0, 0.5, 0.0], "balanced_accuracy": 0.5, "geometric_mean": 0.118}
    result = {"accuracy": 0.5, "raw": judged, "labels": 9, "steps": 3, "seconds": 1.0, "images_per_second": 9.0, "skipped": 0}
    result |= {"why_no_accuracy": None}
    assert "geometric" not in final_table(result | {"raw": judged | {"thirds": None}}, ("a", "b", "c"))
    lines = final_table(result | {"raw": judged | {"thirds": {"many": 1.0, "medium": 0.5, "few": None}}}, ("a", "b", "c")).splitlines()
    told = dict(line.split("  ", 1) for line in lines if not line.startswith(" ") and "  " in line)
    assert told["many, medium, few labels"] == "100.00 %, 50.00 %, -" and told["geometric mean"].strip() == "11.80 %"


def test_texts_are_counted_as_texts_and_their_speed_in_tokens(tmp_path):
    judged = {"accuracy": 0.5, "rows": 6, "ece": 0.1, "per_class": [1.0, 0.0]}
    result = {"accuracy": 0.5, "raw": judged, "labels": 9, "steps": 3, "seconds": 1.0, "images_per_second": 9.0, "skipped": 0}
    told = final_table(result, ("a", "b"))
    assert "test images              6" in told and "1.0 s, 9 images/s" in told
    told = final_table(result | {"tokens_per_second": 512.4}, ("a", "b"))
    assert "test texts" in told and "1.0 s, 512 tokens/s" in told and "image" not in told
    reporter = Reporter(tmp_path, 10, quiet=True)
    reporter.progress(2, {"loss": 1.5}, 9.0, 61.0)
    reporter.progress(4, {"loss": 1.5}, 512.4, 61.0, "tokens/s")
    reporter.close()
    assert (tmp_path / "log.txt").read_text().splitlines() == [
        "2/10  loss 1.500  9 images/s  1:01 left",
        "4/10  loss 1.500  512 tokens/s  1:01 left",
    ]
