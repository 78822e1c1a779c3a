"""A run's stages: a Step for each kind of them, what those at rest have left, and what each stage reached."""

from __future__ import annotations

from typing import Any

from ..methods.base import Stage
from ..models import Report
from ..schedules import Clock
from . import look, updates
from .capture import Captured
from .idle import Idle
from .step import Step


class Rounds:
    """The Steps of a Run's stages.

    Attributes:
        reached: of each stage that began {stage (from 1), name, steps (of the run, at its end), accuracy (None before it was judged at its
            end), and the values that `prepare` named}.
    """

    def __init__(self, run: Any):
        self.run = run
        self.made: dict[tuple, Step] = {}
        self.resting: dict[str, dict[str, Any]] = {}  # repr of a stage's kind -> update and step of one that a later stage may go on with
        self.going: set[tuple] = set()  # kinds that go on
        self.reached: list[dict[str, Any]] = []

    def set_up(self, stage: Stage | None) -> Step | Idle:
        """The Step of a stage; one that comes back takes the one it had, and what was compiled or captured with it.

        A method without any stage trains nothing: its run has no step.
        """
        run, train = self.run, self.run.config.train
        if stage is None:
            return Idle(train.seed, run.parts.device)
        run.pipeline.show(stage.views or run.method.asks(run.method.config))
        kind = stage.kind
        if kind in self.made:
            self.made[kind].restart(stage)
        else:
            clock = Clock(stage.schedule or stage.steps, train.seed, run.parts.device)
            update = updates.made(run.method, stage, train, scaled=train.amp == "fp16")
            self.made[kind] = Step(run.method, run.pipeline, update, clock, train)
            if stage.goes_on:
                self._wake(kind)
        if stage.goes_on:
            self.going.add(kind)
        return self.made[kind]

    def recorder(self) -> Any:
        """What records a further stage: on the stream and in the memory of the first, as one step runs at a time. None for the first."""
        before = [step.run.recorder for step in self.made.values() if isinstance(step.run, Captured)]
        return before[0].another() if before else None

    def _wake(self, kind: tuple) -> None:
        """Brings the Step of a kind to where a checkpoint found it at rest."""
        state = self.resting.pop(repr(kind), None)
        if state is not None:
            self.made[kind].update.load_state_dict(state["update"])
            self.made[kind].load_state_dict(state["step"])

    def next(self) -> bool:
        """Ends the stage under way and enters the next. False where there is none, or what was prepared leaves nothing to train: the run
        ends here.

        A stage is judged at its end, unless the next one goes on with what it does.
        """
        run = self.run
        run.report()
        after = run.method.stage(run.stage_index + 1, run.total)
        if (after is None or not after.goes_on) and not self._judged():
            run.evaluate()
        self.end(run.curve[-1][2] if self._judged() else None)
        if after is not None:
            streak = run.step.streak.clone()  # a stage of the same Step begins by clearing it
            look.begin(run, run.stage_index + 1)
            after = run.method.stage(run.stage_index + 1, run.total)  # which may go by what was prepared
        if after is None:
            run.ended = True
            run.save()
            return False
        run.stage_index, run.stage_start = run.stage_index + 1, run.done
        run.set_up(after)
        run.step.streak.copy_(streak)  # a run that diverged in one stage has not recovered by entering the next
        run.reporter.say(f"stage {run.stage_index + 1}, {after.name}: {after.steps:,} steps")
        return True

    def _judged(self) -> bool:
        """Whether the run was judged at its present step."""
        return bool(self.run.curve) and self.run.curve[-1][0] == self.run.done

    def begin(self, number: int, stage: Stage | None, said: Report) -> None:
        """Notes that a stage (from 0) was prepared, and what that changed."""
        self.run.reporter.metrics("round", self.run.done, {"stage": number + 1, **said.values})
        if stage is not None:
            self.reached.append({"stage": number + 1, "name": stage.name, "steps": None, "accuracy": None, **said.values})

    def end(self, accuracy: float | None) -> None:
        """Notes what the stage under way has reached; None where it was not judged."""
        if self.reached:
            self.reached[-1].update(steps=self.run.done, accuracy=accuracy)

    def table(self) -> list[dict[str, Any]]:
        """What a run of several stages reached; [] of a run of one."""
        return self.reached if len(self.reached) > 1 else []

    def state_dict(self) -> dict[str, Any]:
        """What the stages at rest would go on with, and what was reached."""
        run, needed = self.run, set(self.going)
        number = run.stage_index + 1
        while (stage := run.method.stage(number, run.total)) is not None:
            if stage.goes_on:
                needed.add(stage.kind)
            number += 1
        at_rest = {repr(kind): step for kind, step in self.made.items() if kind in needed and step is not run.step}
        states = {kind: {"update": step.update.state_dict(), "step": step.state_dict()} for kind, step in at_rest.items()}
        return {"resting": {**self.resting, **states}, "reached": self.reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resting, self.reached = dict(state["resting"]), list(state["reached"])
        for kind in self.made:  # the first stage's, which a run begins with
            self._wake(kind)
