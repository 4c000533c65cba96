"""The training loop, of one model or of several in step with each other; there is no other."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import groupby
from types import FrameType

import numpy as np
import torch
from torch import Tensor

from kdx import console
from kdx.data.dataset import copy_async
from kdx.device.backend import Backend
from kdx.device.execution import Execution
from kdx.errors import Diverged, Interrupted
from kdx.training.checkpoint import Progress
from kdx.training.chunks import GraphedSteps
from kdx.training.learner import Learner, TrainSpec
from kdx.training.stacked import FusionMode, orders, stacked_step
from kdx.training.state import State
from kdx.training.step import Noise, RunStep, make_step

log = logging.getLogger(__name__)


Advance = Callable[[Tensor, Tensor, int], int]
"""Executes steps from an index on, given the epoch's order (..., examples) and rows (steps, ..., numbers); how many."""

CHECKPOINT_SHARE = 0.02
"""The largest share of the time that goes into checkpoints: after a slow one the next comes later."""


def train(spec: TrainSpec, backend: Backend) -> Progress:
    """Minimise the objective over the student's parameters, in place; return the progress, with history and time.

    Resumes from the checkpoint, if there is one. Raises Interrupted, after writing a checkpoint, when the process is
    asked to stop, and Diverged when a loss term, a gradient or a weight is no longer finite: on a CPU at that step, on
    other devices at the end of the epoch or at a checkpoint, which is then not written.
    """
    (learner,) = train_fused([spec], backend)
    if learner.failure is not None:
        raise learner.failure
    return learner.progress


def train_fused(specs: Sequence[TrainSpec], backend: Backend, way: FusionMode = "auto") -> list[Learner]:
    """`train` for several students of one structure, whose objectives differ only in their hyper-parameters, in step.

    Each has its own random streams and checkpoint, so its result is that of a training alone, up to rounding. If one
    diverges the others go on. Those that resume from different steps are trained separately. `way` is how several
    models are stepped: see `stacked_step`.
    """
    with _stop_requests() as stop:
        members = [Learner(spec) for spec in specs]
        for member in members:
            if member.resume():
                log.info("%s: continued at step %d", member.spec.title, member.progress.steps)
        for _, group in groupby(sorted(members, key=_standing), _standing):
            loop = _Loop(list(group), backend, stop, way)
            loop.run()
            for member in loop.members:
                member.fused_models = len(loop.members)
    return members


def _standing(member: Learner) -> tuple[bool, int]:
    return member.done, member.progress.steps


class _Loop:
    """The training loop of members that have done the same number of steps."""

    def __init__(self, members: list[Learner], backend: Backend, stop: threading.Event, way: FusionMode) -> None:
        self.members, self.stop = members, stop
        self.active = [member for member in members if not member.done]
        self.mark = time.monotonic()
        self.checkpoint_seconds = members[0].spec.trainer.checkpoint_seconds
        self.due = self.mark + self.checkpoint_seconds
        self.backend, self.held = backend, ExitStack()
        self.way: FusionMode = way
        first, count = members[0], len(members)
        self.title = first.spec.title + (f", {count} models" if count > 1 else "")
        self.epochs, self.steps_per_epoch = first.spec.trainer.epochs, first.steps_per_epoch
        self.batch_size, self.device = first.batch_size, first.spec.examples.images.device
        # The next epoch's number with its order and rows, drawn in advance.
        self._next: tuple[int, tuple[Tensor, Tensor] | None] = (-1, None)

    @cached_property
    def execution(self) -> Execution:
        """How steps are executed; decided at the first step, since a training that is already finished needs none."""
        steps = self.epochs * self.steps_per_epoch
        return Execution(self.backend, self.members[0].student, steps * len(self.members))

    @cached_property
    def advance(self) -> Advance:
        """The function that executes one step of all members, or a captured chunk of steps."""
        if len(self.members) > 1:
            steps = self.epochs * self.steps_per_epoch
            state, noise, step = stacked_step(self.members, self.execution, steps, self.way)
        else:
            state, noise, step = _alone(self.members[0], self.execution)
        sources = [member.noise for member in self.members]

        def one(chosen: Tensor, row: Tensor) -> None:
            # Also for members that have ended: stacked with the others they are still computed, and ignored.
            for source in sources:
                source.draw()
            step(state, chosen, noise, row)

        recorder = self.execution.recorder()
        if recorder is not None:
            self.held.callback(recorder.close)
            changed = [*state.tensors().values(), state.broken]
            return GraphedSteps(one, changed, sources, self.batch_size, recorder)

        size = self.batch_size

        def advance(order: Tensor, rows: Tensor, index: int) -> int:
            one(order[..., index * size : (index + 1) * size], rows[index])
            return 1

        return advance

    @property
    def epoch(self) -> int:
        return max(member.epoch for member in self.members)

    def run(self) -> None:
        """Train the members to their end, and give each its final weights."""
        with console.progress_bar(self.title, self.epochs) as stage, self.held:
            stage.advance(self.epoch)
            while self.active:
                self.run_epoch()
                self.close_epoch()
                stage.advance(self.epoch, self.progress_metrics())
                self.checkpoint_if_due()
        for member in self.members:
            member.take_result()

    def run_epoch(self) -> None:
        epoch = self.epoch
        order, rows = self._inputs(epoch)
        index = self.active[0].progress.steps - epoch * self.steps_per_epoch
        while index < self.steps_per_epoch:
            taken = self.advance(order, rows, index)
            index += taken
            for member in self.active:
                member.progress.steps += taken
                member.progress.note(self.execution.facts)
            # On other devices the check would wait for the device; a broken member's weights are frozen in any case.
            if self.device.type == "cpu":
                self.drop_diverged(Learner.first_nonfinite)
            if self.active and index < self.steps_per_epoch:
                self.checkpoint_if_due()
            if not self.active:
                return
        if self.device.type != "cpu" and epoch + 1 < self.epochs:
            # Drawn while the device is still busy with this epoch.
            self._next = epoch + 1, self._drawn(epoch + 1)

    def drop_diverged(self, found: Callable[[Learner], Diverged | None]) -> None:
        """Continue without the members in which something is no longer finite."""
        for member in self.active:
            member.failure = found(member)
            if member.failure is not None and len(self.members) > 1:
                log.warning("%s; the others go on", member.failure)
        self.active = [member for member in self.active if member.failure is None]

    def close_epoch(self) -> None:
        # Reading the sums waits for the device, so that the time of the epoch includes all its work.
        means = {member: member.mean_losses() for member in self.active}
        self._lap(training=True)
        self.drop_diverged(Learner.diverged)
        seen = {member: member.evaluate_epoch() for member in self.active}
        for member in self.active:
            member.close_epoch(means[member], seen[member])
        self._lap(training=False)
        ended = [member for member in self.active if member.done]
        # Members that have ended are still computed with the others, and ignored.
        self.active = [member for member in self.active if not member.done]
        # So that a failure after the training does not repeat it.
        self.save(ended)

    def checkpoint_if_due(self) -> None:
        """Write checkpoints when one is due or the process is asked to stop, and stop in the latter case."""
        stop = self.stop.is_set()
        if not stop and time.monotonic() < self.due:
            return
        self._lap(training=True)
        # A diverged member keeps its last checkpoint, which is finite.
        self.drop_diverged(Learner.diverged)
        self.save(self.active)
        if stop and any(member.failure is None for member in self.members):
            raise Interrupted(f"{self.title}: stopped in epoch {self.epoch + 1}; the same command goes on")

    def save(self, members: list[Learner]) -> None:
        """Write the members' checkpoints; the longer that takes, the later is the next."""
        if not members:
            return
        began = time.monotonic()
        for member in members:
            member.save()
        # The time of a checkpoint counts for no epoch.
        self._lap(training=False)
        now = time.monotonic()
        log.info(
            "%s: step %d, %d checkpoints in %.3f s", self.title, members[0].progress.steps, len(members), now - began
        )
        slow = (now - began) / CHECKPOINT_SHARE
        # With checkpoint_seconds=0 every step has a checkpoint, however slow.
        self.due = now + (max(self.checkpoint_seconds, slow) if self.checkpoint_seconds else 0)

    def progress_metrics(self) -> dict[str, float]:
        """The figures to show: means over the members that have not failed."""
        shown = [member.progress_metrics() for member in self.members if member.failure is None]
        return {name: sum(each[name] for each in shown) / len(shown) for name in (shown[0] if shown else ())}

    def _inputs(self, epoch: int) -> tuple[Tensor, Tensor]:
        """An epoch's order and rows, which may have been drawn in advance."""
        ahead, inputs = self._next
        self._next = -1, None
        return inputs if ahead == epoch and inputs is not None else self._drawn(epoch)

    def _drawn(self, epoch: int) -> tuple[Tensor, Tensor]:
        return orders(self.members, epoch), copy_async(self._rows(epoch), self.device)

    def _rows(self, epoch: int) -> Tensor:
        """The hyper-parameters of every step of an epoch: (steps, numbers), or (steps, models, numbers)."""
        rows = torch.from_numpy(np.stack([member.schedule(epoch) for member in self.members], axis=1)).float()
        return (rows[:, 0] if len(self.members) == 1 else rows).contiguous()

    def _lap(self, *, training: bool) -> None:
        now = time.monotonic()
        for member in self.active:
            # Each member is charged an equal share of the common time.
            seconds = (now - self.mark) / len(self.active)
            member.progress.seconds += seconds
            if training:
                member.progress.epoch_seconds += seconds
        self.mark = now


def _alone(member: Learner, execution: Execution) -> tuple[State, Noise, RunStep]:
    student, spec = member.student, member.spec

    def make(eager: bool) -> RunStep:
        step = make_step(
            student, member.objective, eager=eager, autocast=execution.autocast, optimizer=member.optimizer
        )

        # The batch is gathered inside the step, so that the compiler fuses gathering and preprocessing.
        def gathering(state: State, chosen: Tensor, noise: Noise, row: Tensor) -> None:
            step(state, spec.batch(chosen), noise, row)

        return gathering

    return member.state, member.noise.buffers, execution.executed(make)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, so that no step is cut in half; a second signal stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
