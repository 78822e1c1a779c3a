"""`fastssl train --dry-run`: the resolved configuration, the counts, and an estimate from a few measured steps."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

MEMORY = {"cuda": "allocated on the device at most", "resident": "resident at most"}


def describe(parts: Any, as_json: bool, *, quiet: bool = False) -> int:
    """Prints to stdout, as YAML with comments that --config takes, or as one JSON object. Nothing is written."""
    import yaml

    from ..engine.announce import remembered
    from ..engine.assemble import trained_parameters
    from ..engine.estimate import TIMED, WARM, estimate
    from ..engine.memory import told
    from ..engine.report import clock, tell

    split, train = parts.split, parts.config.train
    trained = trained_parameters(parts.method)
    if not quiet:
        tell(f"measuring {TIMED} steps after {WARM} others")
    measured = estimate(parts)
    whole = None if measured.foreseen_bytes is None else max(measured.foreseen_bytes, measured.memory_bytes)
    measured = dataclasses.replace(measured, foreseen_bytes=whole)
    warnings = [*parts.warnings, *remembered(parts)]
    extra = int((split.unlabelled >= parts.source.own).sum())
    if as_json:
        counts = {"labelled": len(split.labelled), "unlabelled": len(split.unlabelled), "extra": extra, "test": len(split.test)}
        body = {"config": parts.config.nested(), **counts, "classes": len(parts.source.classes), "trained_weights": trained}
        body |= {"device": str(parts.device), "notes": parts.notes, "warnings": warnings, "estimate": dataclasses.asdict(measured)}
        print(json.dumps(body))
        return 0
    print(yaml.safe_dump(parts.config.nested(), sort_keys=False), end="")
    more = f" ({extra} of them extra)" if extra else ""
    print(f"# {len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled{more}, {len(split.test)} test {parts.source.samples}")
    print(f"# {trained:,} trained weights on {parts.device}")
    for note in [*parts.notes, *(f"warning: {text}" for text in warnings)]:
        print(f"# {note}")
    if not measured.stages:
        print("# nothing trains: there is no step to measure")
        return 0
    first = f", as the first of {measured.stages} stages" if measured.stages > 1 else ""
    print(
        f"# estimate: {clock(measured.seconds)} for {train.stop_at or train.steps:,} steps, evaluation and saving left out "
        f"(median of {measured.steps_measured} measured steps: {measured.seconds_per_step:.4g} s{first})"
    )
    foreseen = "" if whole is None else f", with evaluation and all stages about {told(whole)}"
    print(f"# estimate: {told(measured.memory_bytes)} {MEMORY[measured.memory]} in these steps{foreseen}")
    return 0
