"""What the rooms below tell of while a run goes on stands in its log."""

from __future__ import annotations

import logging

from fastssl.engine.report import Reporter

log = logging.getLogger("fastssl")


def test_warnings_of_a_run_stand_in_its_log(tmp_path, capsys):
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
