"""A run's state: written to a checkpoint, and taken up again in place."""

from __future__ import annotations

from typing import Any

import torch

from ..pipelines.errors import CheckpointError
from . import checkpoint, given, look, networks, own_labels

PROGRESS = ("done", "ended", "images", "seconds", "stage_index", "stage_start", "skipped", "reported", "last")  # a run's own numbers


def save(run: Any) -> None:
    """Writes everything that the rest of a Run depends on.

    Raises:
        ResourceError: no space left.
    """
    config, spec = run.config, run.pipeline.spec
    state = {
        "method": run.method.state_dict(),
        "update": run.update.state_dict(),
        "step": run.step.state_dict(),
        "pipeline": run.pipeline.state_dict(),
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state(run.parts.device) if run.parts.device.type == "cuda" else None,
        "run": {name: getattr(run, name) for name in PROGRESS},
        "rounds": run.rounds.state_dict(),
        "curve": [list(point) for point in run.curve],
    }
    about = {
        "method": config.method_name,
        "model": config.model.name,
        "judges": list(run.method.judges()),
        "others": networks.named(run.method),
        "classes": list(spec.classes),
        "kind": spec.kind,
        "shape": list(spec.shape),
        "tokenizer": getattr(run.pipeline, "fingerprint", None),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "split_hash": run.parts.split.hash,
        "foundation": given.digest(run.method.spec.foundation),
        "extra": given.digest_of_extra(run.parts.source),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    checkpoint.save(run.folder / "checkpoints", run.done, state, about, keep=config.train.keep)


def restore(run: Any) -> None:
    """Takes up the newest checkpoint of the run's directory that can be read.

    Raises:
        CheckpointError: none can be read, or it is of another method, network or split.
    """
    state, manifest, complaints = checkpoint.newest(run.folder / "checkpoints")
    for text in complaints:
        run.reporter.warn(f"{text}; going on from step {manifest['step']}")
    own = {"method": run.config.method_name, "model": run.config.model.name, "split_hash": run.parts.split.hash}
    for name, value in own.items():
        if manifest[name] != value:
            raise CheckpointError(f"{run.folder} holds a checkpoint of {name} {manifest[name]}, not {value}; resume what it was made by")
    if manifest.get("foundation") != given.digest(run.method.spec.foundation):
        file = run.config.data.foundation_labels or run.folder / own_labels.FILE
        raise CheckpointError(f"{file} is not what it was when {run.folder} was saved; bring the old file back, or train anew")
    if manifest.get("tokenizer") != getattr(run.pipeline, "fingerprint", None):
        raise CheckpointError(
            f"the tokenizer of {run.config.model.name} is not what it was when {run.folder} was saved; bring the old one back, or train "
            "anew"
        )
    if manifest.get("extra") != given.digest_of_extra(run.parts.source):
        place = run.config.data.extra_unlabelled
        raise CheckpointError(
            f"{run.parts.source.samples} of {place} are not what they were when {run.folder} was saved; bring the old ones back, or "
            "train anew"
        )
    if manifest["threads"] != torch.get_num_threads():
        run.reporter.warn(
            f"saved with {manifest['threads']} threads and resumed with {torch.get_num_threads()}: the rest will not be "
            "bit for bit what it would have been"
        )
    progress = state["run"]
    missing = [name for name in PROGRESS if name not in progress] + ["rounds"] * ("rounds" not in state)
    if missing:
        raise CheckpointError(f"{run.folder} was saved by an older version, without {', '.join(missing)}; train anew with another --out")
    run.method.load_state_dict(state["method"])
    look.take_split(run)
    run.rounds.load_state_dict(state["rounds"])
    if progress["stage_index"] != run.stage_index:
        run.set_up(run.method.stage(progress["stage_index"], run.total))
    run.update.load_state_dict(state["update"])
    run.step.load_state_dict(state["step"])
    run.pipeline.load_state_dict(state["pipeline"])
    torch.set_rng_state(state["rng"])
    if state.get("device_rng") is not None and run.parts.device.type == "cuda":
        torch.cuda.set_rng_state(state["device_rng"], run.parts.device)
    for name in PROGRESS:
        setattr(run, name, progress[name])
    run.curve = [tuple(point) for point in state["curve"]]
    # At the end of a stage the next one is prepared again, which is noted again.
    between = run.stage is not None and run.done - run.stage_start >= run.stage.steps and not run.ended
    judged = bool(run.curve) and run.curve[-1][0] == run.done
    run.reporter.keep_until(run.done, again=("round",) + ("eval",) * (not judged) if between else ())
    run.reporter.say(f"resumed at step {run.done} of {run.total}")
