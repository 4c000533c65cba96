"""The only training loop: of one model, or of several in step with each other."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn

from kdx import display
from kdx.captured import Chunks
from kdx.checkpoint import Progress
from kdx.device import Engine
from kdx.errors import Diverged, Interrupted
from kdx.execution import Execution
from kdx.member import Evaluate, Member, Trainee, Training
from kdx.objective import Objective
from kdx.stacked import Way, orders, stacked_step
from kdx.state import State
from kdx.step import Noise, RunStep, make_step
from kdx.transfer import onto

Advance = Callable[[Tensor, Tensor, int], int]
"""Steps of an epoch from a number on, by its order (..., examples) and its rows (steps, ..., numbers); how many."""

CHECKPOINT_SHARE = 0.02
"""At most this part of the time goes into checkpoints: one that was slow to write puts the next one off."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """How a training ended: its history, how many models were trained together, and why it was given up if it was."""

    progress: Progress
    models: int
    failure: Diverged | None


def train(student: nn.Module, objective: Objective, training: Training, engine: Engine, evaluate: Evaluate) -> Progress:
    """Minimise the objective over the student's parameters, in place, and give the history and the time it took.

    Goes on from the checkpoint where there is one. Raises Interrupted after writing a checkpoint when the process is
    asked to stop, and Diverged when a loss term, a gradient or a weight is no longer finite: on a CPU at that step,
    elsewhere at the end of the epoch, or at a checkpoint, which is not written then.
    """
    (trained,) = train_together([Trainee(student, objective, training, evaluate)], engine)
    if trained.failure is not None:
        raise trained.failure
    return trained.progress


def train_together(trainees: Sequence[Trainee], engine: Engine, way: Way = "auto") -> list[Trained]:
    """`train` for several students of one structure, whose objectives differ in their numbers only, in step.

    Each has its own random streams and checkpoint, so its result is that of a training alone but for the rounding. One
    that diverges is given up and the others go on. Those that go on from different steps are trained apart. `way` is
    how several models make a step: see `stacked_step`.
    """
    with _stop_requests() as stop:
        members = [Member(trainee) for trainee in trainees]
        for member in members:
            if member.resume():
                log.info("%s: continued at step %d", member.training.title, member.progress.steps)
        models: dict[Member, int] = {}
        for _, group in groupby(sorted(members, key=_standing), _standing):
            loop = _Loop(list(group), engine, stop, way)
            loop.run()
            models |= {member: len(loop.members) for member in loop.members}
    return [Trained(member.progress, models[member], member.failure) for member in members]


def _standing(member: Member) -> tuple[bool, int]:
    return member.done, member.progress.steps


class _Loop:
    """Members that are equally far, trained to their end."""

    def __init__(self, members: list[Member], engine: Engine, stop: threading.Event, way: Way) -> None:
        self.members, self.stop = members, stop
        self.active = [member for member in members if not member.done]
        self.mark = time.monotonic()
        self.checkpoint_seconds = members[0].training.trainer.checkpoint_seconds
        self.due = self.mark + self.checkpoint_seconds
        self.engine, self.held = engine, ExitStack()
        self.way: Way = way
        first, count = members[0], len(members)
        self.title = first.training.title + (f", {count} models" if count > 1 else "")
        self.epochs, self.steps_per_epoch = first.training.trainer.epochs, first.steps_per_epoch
        self.batch_size, self.device = first.batch_size, first.training.examples.images.device
        # The number of an epoch and its order and rows, drawn ahead.
        self._next: tuple[int, tuple[Tensor, Tensor] | None] = (-1, None)

    @cached_property
    def execution(self) -> Execution:
        """How steps are executed: decided when one is needed, since a training that was finished before needs none."""
        steps = self.epochs * self.steps_per_epoch
        return Execution(self.engine, self.members[0].student, steps * len(self.members))

    @cached_property
    def advance(self) -> Advance:
        """Steps of all members: one, or a captured chunk of them."""
        if len(self.members) > 1:
            steps = self.epochs * self.steps_per_epoch
            state, noise, step = stacked_step(self.members, self.execution, steps, self.way)
        else:
            state, noise, step = _alone(self.members[0], self.execution)
        sources = [member.noise for member in self.members]

        def one(chosen: Tensor, row: Tensor) -> None:
            # Of those too that ended: they are computed on with the others, but nobody reads them.
            for source in sources:
                source.draw()
            step(state, chosen, noise, row)

        recorder = self.execution.recorder()
        if recorder is not None:
            self.held.callback(recorder.close)
            changed = [*state.tensors().values(), state.broken]
            return Chunks(one, changed, sources, self.batch_size, recorder)

        size = self.batch_size

        def advance(order: Tensor, rows: Tensor, index: int) -> int:
            one(order[..., index * size : (index + 1) * size], rows[index])
            return 1

        return advance

    @property
    def epoch(self) -> int:
        return max(member.epoch for member in self.members)

    def run(self) -> None:
        """Train the members, and give each the weights that it ends with."""
        with display.stage(self.title, self.epochs) as stage, self.held:
            stage.advance(self.epoch)
            while self.active:
                self.run_epoch()
                self.close_epoch()
                stage.advance(self.epoch, self.headline())
                self.heed()
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
            # Elsewhere the look would wait for the device; it stops moving the weights all the same.
            if self.device.type == "cpu":
                self.give_up(Member.broken_term)
            if self.active and index < self.steps_per_epoch:
                self.heed()
            if not self.active:
                return
        if self.device.type != "cpu" and epoch + 1 < self.epochs:
            # While the device is still busy with this epoch, which nobody has waited for yet.
            self._next = epoch + 1, self._drawn(epoch + 1)

    def give_up(self, found: Callable[[Member], Diverged | None]) -> None:
        """Go on without the members in which something is no longer finite."""
        for member in self.active:
            member.failure = found(member)
            if member.failure is not None and len(self.members) > 1:
                log.warning("%s; the others go on", member.failure)
        self.active = [member for member in self.active if member.failure is None]

    def close_epoch(self) -> None:
        # Reading the sums waits for the device, so the lap ends when the work does.
        means = {member: member.means() for member in self.active}
        self._lap(training=True)
        self.give_up(Member.broken)
        seen = {member: member.look() for member in self.active}
        for member in self.active:
            member.close_epoch(means[member], seen[member])
        self._lap(training=False)
        ended = [member for member in self.active if member.done]
        # Those that ended are computed on with the others, but nobody reads them.
        self.active = [member for member in self.active if not member.done]
        # So that what follows the training repeats nothing of it.
        self.save(ended)

    def heed(self) -> None:
        """Write checkpoints when it is time, or when the process is asked to stop; then stop."""
        stop = self.stop.is_set()
        if not stop and time.monotonic() < self.due:
            return
        self._lap(training=True)
        # One that diverged keeps the checkpoint it has, which is finite.
        self.give_up(Member.broken)
        self.save(self.active)
        if stop and any(member.failure is None for member in self.members):
            raise Interrupted(f"{self.title}: stopped in epoch {self.epoch + 1}; the same command goes on")

    def save(self, members: list[Member]) -> None:
        """Write checkpoints, and let more time pass before the next the longer it took."""
        if not members:
            return
        began = time.monotonic()
        for member in members:
            member.save()
        # No epoch is charged for it.
        self._lap(training=False)
        now = time.monotonic()
        log.info(
            "%s: step %d, %d checkpoints in %.3f s", self.title, members[0].progress.steps, len(members), now - began
        )
        slow = (now - began) / CHECKPOINT_SHARE
        # Who asks for one after every step gets it.
        self.due = now + (max(self.checkpoint_seconds, slow) if self.checkpoint_seconds else 0)

    def headline(self) -> dict[str, float]:
        """The figures to show: their means over the members that did not fail."""
        shown = [member.headline() for member in self.members if member.failure is None]
        return {name: sum(each[name] for each in shown) / len(shown) for name in (shown[0] if shown else ())}

    def _inputs(self, epoch: int) -> tuple[Tensor, Tensor]:
        """An epoch's order and rows, which may have been drawn before."""
        ahead, inputs = self._next
        self._next = -1, None
        return inputs if ahead == epoch and inputs is not None else self._drawn(epoch)

    def _drawn(self, epoch: int) -> tuple[Tensor, Tensor]:
        return orders(self.members, epoch), onto(self._rows(epoch), self.device)

    def _rows(self, epoch: int) -> Tensor:
        """The numbers of every step of an epoch: (steps, numbers), or of several models (steps, models, numbers)."""
        rows = torch.from_numpy(np.stack([member.rows(epoch) for member in self.members], axis=1)).float()
        return (rows[:, 0] if len(self.members) == 1 else rows).contiguous()

    def _lap(self, *, training: bool) -> None:
        now = time.monotonic()
        for member in self.active:
            # What members take together is shared out equally.
            seconds = (now - self.mark) / len(self.active)
            member.progress.seconds += seconds
            if training:
                member.progress.epoch_seconds += seconds
        self.mark = now


def _alone(member: Member, execution: Execution) -> tuple[State, Noise, RunStep]:
    student, training = member.student, member.training

    def make(eager: bool) -> RunStep:
        step = make_step(
            student, member.objective, eager=eager, autocast=execution.autocast, optimizer=member.optimizer
        )

        # The batch is put together here, so that a compiler makes one pass of reading and preprocessing it.
        def gathering(state: State, chosen: Tensor, noise: Noise, row: Tensor) -> None:
            step(state, training.batch(chosen), noise, row)

        return gathering

    return member.state, member.noise.buffers, execution.executed(make)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, so that a step is never cut in half; a second one stops at once."""
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
