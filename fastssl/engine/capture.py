"""A step as one CUDA graph: recorded once, launched whole ever after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .putback import put_back

WARM_UPS = 3  # torch's own advice: allocators, cuBLAS workspaces and autotuners are done by then


class CudaRecorder:
    """Warms up and records on a stream of its own, as handles and workspaces belong to a stream."""

    def __init__(self, device: torch.device, like: CudaRecorder | None = None):
        self.device = device
        self.stream = torch.cuda.Stream(device) if like is None else like.stream
        self.graph = torch.cuda.CUDAGraph()
        self.pool = None if like is None else like.graph.pool()

    def another(self) -> CudaRecorder:
        """A recorder of another form of the same step: as one step runs at a time, their graphs share one pool of memory."""
        return CudaRecorder(self.device, self)

    def warm_up(self, run: Callable[[], Any]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        torch.cuda.synchronize(self.device)

    def record(self, run: Callable[[], Any]) -> None:
        # Other threads may use the device meanwhile (a pipeline's own): only what this one does is held against the capture.
        with torch.cuda.graph(self.graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            run()

    def replay(self) -> None:
        self.graph.replay()


class Captured:
    """Runs a Step by a recording of it.

    Where the pipeline can be captured its draw is in the graph. Where it cannot (DALI runs threads and streams of its own) a call draws
    first, into buffers whose addresses never change, and the graph is the rest. Where its draws have a few forms (texts of several
    lengths) there is a recording of each; a form that comes up later, with another split, is recorded then.

    Args:
        step: the Step, warmed up and recorded here; the caller puts its state back afterwards (`putback.put_back`).
        recorder: what records, CudaRecorder if None.
        renew: called before a form other than the first is recorded: it compiles the step's functions anew, as another stage may have
            compiled them for itself meanwhile, and a compiler keeps a few shapes of each and then refuses.

    Raises:
        RuntimeError: what was run cannot be captured, or a pipeline's batches move.
    """

    def __init__(self, step: Any, recorder: Any = None, renew: Callable[[], Any] | None = None):
        self.step, self.renew = step, renew
        self.functions: list[Any] = []  # a graph launches kernels that may live as long as what they were compiled for
        self.recorder = recorder or CudaRecorder(step.device)
        self.inside = step.pipeline.capturable
        self.recordings: dict[Any, Any] = {}
        if self.inside and hasattr(step.pipeline, "forms"):
            for form in step.pipeline.forms:
                self._record(form)
            return
        self._warm_up(self.recorder)
        if self.inside:
            self.batch = None
            self.recorder.record(step.body)
            return
        self.batch = step.pipeline.draw()
        if addresses(step.pipeline.draw()) != addresses(self.batch):
            raise RuntimeError("the pipeline hands out batches at other addresses each time")
        if step.config.accumulate > 1:
            raise RuntimeError("gradients are accumulated over batches that the pipeline cannot draw within a graph")
        self.recorder.record(lambda: step.learn(lambda: self.batch))

    def __call__(self) -> None:
        pipeline = self.step.pipeline
        if self.recordings:
            form = pipeline.form
            if form not in self.recordings:
                with put_back(self.step):
                    self._record(form)
            pipeline.passed()
            self.recordings[form].replay()
            return
        if not self.inside:
            pipeline.draw()
        self.recorder.replay()

    def _warm_up(self, recorder: Any) -> None:
        self.functions += [vars(self.step.method).get(name) for name in self.step.method.compiled]
        recorder.warm_up(self.step.body)

    def _record(self, form: Any) -> None:
        if self.recordings and self.renew is not None:
            self.renew()
        recorder = self.recorder.another() if self.recordings else self.recorder
        with self.step.pipeline.held(form):
            self._warm_up(recorder)
            recorder.record(self.step.body)
        self.recordings[form] = recorder


def addresses(batch: Any) -> list[int]:
    """Where a batch's tensors lie."""
    tensors = [
        *batch.labelled,
        *batch.unlabelled,
        *batch.probe,
        *(getattr(batch, name) for name in ("label", "weight", "index", "hidden_label")),
    ]
    return [tensor.data_ptr() for tensor in (*tensors, batch.unlabelled_index)]
