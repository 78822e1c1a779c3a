"""Prints each row's ratios under pytest-benchmark's own table, with hardware and versions."""

import os
import platform


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in (session.benchmarks if session else []) if b.extra_info]
    if not rows:
        return
    import torch

    from bench.step_rows import table_lines

    terminalreporter.section("ratios")
    terminalreporter.line(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    width = max(len(b.name) for b in rows)
    for b in rows:
        if "ours_ms" in b.extra_info:
            for line in table_lines(b.name, b.extra_info):
                terminalreporter.line(line)
            continue
        facts = ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in b.extra_info.items())
        terminalreporter.line(f"{b.name:<{width}}  median {b.stats.median * 1e3:9.3f} ms  {facts}")
