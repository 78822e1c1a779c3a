"""A step as one CUDA graph: recorded once, launched whole ever after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UPS = 3  # torch's own advice: allocators, cuBLAS workspaces and autotuners are done by then


class CudaRecorder:
    """Warms up and records on a stream of its own, as handles and workspaces belong to a stream."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, run: Callable[[], Any]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        torch.cuda.synchronize(self.device)

    def record(self, run: Callable[[], Any]) -> None:
        # Other threads may use the device meanwhile (a pipeline's own): only what this one does is held against the capture.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            run()

    def replay(self) -> None:
        self.graph.replay()


class Captured:
    """Runs a Step by a recording of it.

    Where the pipeline can be captured its draw is in the graph. Where it cannot (DALI runs threads and streams of its own) a call draws
    first, into buffers whose addresses never change, and the graph is the rest.

    Args:
        step: the Step, warmed up and recorded here; the caller puts its state back afterwards (`putback.put_back`).
        recorder: what records, CudaRecorder if None.

    Raises:
        RuntimeError: what was run cannot be captured, or a pipeline's batches move.
    """

    def __init__(self, step: Any, recorder: Any = None):
        self.step = step
        self.recorder = recorder or CudaRecorder(step.device)
        self.inside = step.pipeline.capturable
        self.recorder.warm_up(step.body)
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
        if not self.inside:
            self.step.pipeline.draw()
        self.recorder.replay()


def addresses(batch: Any) -> list[int]:
    """Where a batch's tensors lie."""
    tensors = [
        *batch.labelled,
        *batch.unlabelled,
        *batch.probe,
        *(getattr(batch, name) for name in ("label", "weight", "index", "hidden_label")),
    ]
    return [tensor.data_ptr() for tensor in (*tensors, batch.unlabelled_index)]
