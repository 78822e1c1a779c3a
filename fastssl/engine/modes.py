"""How a step runs: eagerly, compiled, or compiled and captured as one CUDA graph. Chosen, tried out, and fallen back from.

| mode | what runs |
|---|---|
| eager | the step's body, line by line |
| compile | the same body; the method's `compiled` functions (`loss`, `remember`) compiled whole (fullgraph, static shapes) |
| graph | the compiled body recorded once as one CUDA graph, and launched |
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
import types
from collections.abc import Callable
from typing import Any

import torch

from ..pipelines.errors import ConfigError, ResourceError, SetupError
from .capture import Captured
from .putback import put_back

_COPIES = itertools.count()
SHAPES = 64  # forms of a compiled function, see compile_method
MODES = ("eager", "compile", "graph")
log = logging.getLogger("fastssl")


def wanted(asked: str, device: torch.device) -> list[str]:
    """The modes to try, in turn: one where it is asked for by name, else the device's best and what comes after it.

    Raises:
        SetupError: graph without a CUDA device.
    """
    if asked == "graph" and device.type != "cuda":
        raise SetupError(f"--step-mode graph captures CUDA graphs, and this run is on {device.type}; use --step-mode compile or eager")
    if asked != "auto":
        return [asked]
    return ["graph", "compile", "eager"] if device.type == "cuda" else ["eager"]


def prepare(step: Any, asked: str, warn: Callable[[str], None], *, backend: str = "inductor", recorder: Any = None) -> str:
    """Makes a Step run in the mode that is asked for, or for `auto` in the first that works; its state is as it was.

    Args:
        step: the Step.
        asked: auto, eager, compile or graph.
        warn: takes one sentence for each mode that is fallen back from.
        backend: of torch.compile.
        recorder: of the capture, see `Captured`.

    Returns:
        a sentence for the log: the mode that runs, and how long it took to make it.

    Raises:
        SetupError: the device lacks the mode.
        ConfigError: method or network cannot run in the mode that was asked for by name.
        ResourceError: out of memory.
    """
    modes = wanted(asked, step.device)
    for mode in modes:
        begin = time.perf_counter()
        try:
            _enter(step, mode, backend, recorder)
        except torch.OutOfMemoryError:
            raise
        except (ResourceError, SetupError, ConfigError):
            raise
        except Exception as error:
            _leave(step)
            reason = reason_of(error)
            if mode == modes[-1]:
                if mode == "eager":
                    raise
                raise ConfigError(
                    f"--step-mode {mode}: {step.method.__class__.__name__} cannot run so: {reason}; use auto or eager"
                ) from error
            warn(f"step mode {mode} does not work here, going on with {modes[modes.index(mode) + 1]}: {reason}")
            continue
        step.mode = mode
        seconds = time.perf_counter() - begin
        return {
            "eager": "eager steps",
            "compile": f"compiled steps ({seconds:.1f} s to compile)",
            "graph": f"steps captured as one CUDA graph ({seconds:.1f} s to compile and capture)",
        }[mode]
    raise AssertionError("unreachable: the last mode returns or raises")


def _enter(step: Any, mode: str, backend: str, recorder: Any) -> None:
    _leave(step)
    if mode == "eager":
        return
    compile_method(step.method, backend)
    with put_back(step):
        if mode == "compile":
            # A compiler's refusal shows here, before anything counts.
            pipeline = step.pipeline
            for form in getattr(pipeline, "forms", (None,)):
                with contextlib.nullcontext() if form is None else pipeline.held(form):
                    step.body()
        else:
            captured = Captured(step, recorder, lambda: compile_method(step.method, backend))
    if mode == "graph":
        step.run = captured


def _leave(step: Any) -> None:
    step.run = step.body
    step.mode = "eager"
    for name in step.method.compiled:
        step.method.__dict__.pop(name, None)


def compile_method(method: Any, backend: str) -> None:
    """A method's `compiled` functions (`loss` and `remember`), each compiled whole; the backward pass comes of the compiled loss.

    The compiler is allowed SHAPES forms of a function, if it is not allowed more: texts of several lengths, in stages that draw other
    splits, come in many, and with fullgraph it would end the run at its own limit of eight.
    """
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    # Random numbers as eager code draws them, so that dropout does not depend on the mode.
    options = {"fallback_random": True} if backend == "inductor" else None
    for name in method.compiled:
        function = own_code(getattr(type(method), name)).__get__(method)
        method.__dict__[name] = torch.compile(function, backend=backend, fullgraph=True, dynamic=False, options=options)


def own_code(function: Any) -> Any:
    """The same function with a code object of its own.

    The compiler keeps what it made with the code object, eight entries at most: methods share the base's `loss`, and a grid of runs in one
    process would soon be refused.
    """
    code = function.__code__.replace(co_name=f"{function.__code__.co_name}_{next(_COPIES)}")
    copy = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def reason_of(error: BaseException) -> str:
    """The first line of what went wrong that says something; the whole is logged at debug level."""
    log.debug("step mode failed", exc_info=error)
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    said = next((line for line in lines if line), "no reason given")
    return f"{type(error).__name__}: {said}"[:300]
