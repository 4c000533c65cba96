"""The training step of several models at once: as one program on stacked tensors, or one model after another."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdx.device.backend import has_convolutions
from kdx.device.cuda_graphs import captured
from kdx.device.execution import Execution
from kdx.errors import one_line
from kdx.models.layers import NoisyLayer
from kdx.training.learner import Learner
from kdx.training.state import State, stacked, unstacked
from kdx.training.step import Batch, Noise, RunStep, Stacking, Step, make_step

log = logging.getLogger(__name__)


FusionMode = Literal["auto", "stacked", "loop"]
"""How several models are stepped: one program on stacked tensors, one after another, or the faster on this machine."""

Gather = Callable[[Tensor], Batch]

REPETITIONS = 3
# In a training of fewer steps measuring takes longer than it saves.
LEAST_STEPS = 100


def stacked_step(
    members: Sequence[Learner], execution: Execution, steps: int, way: FusionMode
) -> tuple[State, Noise, RunStep]:
    """Move the members' tensors into stacked ones; return state, noise and the step of all models.

    The members have the same structure and share the memory of the stacked tensors. `steps` is the length of the
    training. `auto` takes the faster way, by measuring; for a short training it takes `loop`, and for a compiled or
    captured step without convolutions, whose batched products are never slower, `stacked` without measuring, if it
    works.
    """
    state, noise = _stack(members)
    gather, stacking = _gathering(members)

    def made(way: str) -> RunStep:
        return (_loop if way == "loop" else _at_once)(members[0], execution, gather, stacking)

    never_slower = execution.name != "eager" and not has_convolutions(members[0].student)
    if way == "auto" and steps < LEAST_STEPS and not never_slower:
        way = "loop"
    if way != "auto":
        log.info("%d models in a step: %s", len(members), way)
        return state, noise, made(way)
    seconds = {} if never_slower else {"loop": _seconds(made("loop"), members, state, noise, execution)}
    try:
        seconds["stacked"] = _seconds(made("stacked"), members, state, noise, execution)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # A package's network may have a layer that vmap does not support.
        log.warning("%d models in a step: loop, for they cannot be stacked (%s)", len(members), one_line(error))
        return state, noise, made("loop")
    if never_slower:
        log.info("%d models in a step: stacked", len(members))
        return state, noise, made("stacked")
    fastest = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1000 * each / len(members):.3f} ms" for name, each in seconds.items())
    log.info("%d models in a step: %s is faster (measured, for each model: %s)", len(members), fastest, times)
    return state, noise, made(fastest)


def orders(members: Sequence[Learner], epoch: int) -> Tensor:
    """The views of an epoch in random order: (per_epoch,), or (models, per_epoch) if the members' orders differ."""
    if _one_order(members):
        return members[0].spec.order(epoch)
    by_seed = {member.spec.seed: member.spec for member in members}
    drawn = {seed: training.order(epoch) for seed, training in by_seed.items()}
    return torch.stack([drawn[member.spec.seed] for member in members])


def _stack(members: Sequence[Learner]) -> tuple[State, Noise]:
    state = State.stack([member.state for member in members])
    noise = stacked([member.noise.buffers for member in members])
    # Uninitialised memory, such as denormals, must not slow down the measurement before the first draw.
    for value in noise.values():
        value.zero_()
    noise |= _layer_numbers([member.student for member in members])
    for member, own_state, own_noise in zip(members, state.models, unstacked(noise, len(members)), strict=True):
        member.move(own_state, own_noise)
    return state, noise


def _layer_numbers(students: Sequence[nn.Module]) -> Noise:
    """The layers' own numbers that differ between the students, by buffer name."""
    found = {}
    for name, layer in students[0].named_modules():
        if not isinstance(layer, NoisyLayer):
            continue
        numbers = [_numbers(student.get_submodule(name)) for student in students]
        if any(one != numbers[0] for one in numbers):
            device = next(students[0].parameters()).device
            found[f"{name}.numbers"] = torch.tensor(numbers, dtype=torch.float32, device=device)
    return found


def _numbers(layer: nn.Module) -> tuple[float, ...]:
    assert isinstance(layer, NoisyLayer), "students that are trained together have the same layers"
    return layer.own_numbers()


def _one_order(members: Sequence[Learner]) -> bool:
    return len({member.spec.seed for member in members}) == 1


def _gathering(members: Sequence[Learner]) -> tuple[Gather, Stacking]:
    """The function that gathers the members' batches, and which parts of them have a model dimension."""
    examples = members[0].spec.examples
    targets = [member.spec.teacher_logits for member in members]
    one_order, one_target = _one_order(members), all(each is targets[0] for each in targets)
    logits = targets[0] if one_target else torch.stack([each for each in targets if each is not None])

    def gather(chosen: Tensor) -> Batch:
        images, labels = examples.take(chosen.flatten())
        if not one_order:
            images, labels = images.unflatten(0, chosen.shape), labels.unflatten(0, chosen.shape)
        if logits is None:
            return Batch(images, labels, None)
        if one_target:
            taught = logits[chosen]
        elif one_order:
            taught = logits[:, chosen]
        else:
            taught = logits[torch.arange(len(logits), device=chosen.device).unsqueeze(1), chosen]
        return Batch(images, labels, taught.float())

    return gather, Stacking(not one_order, logits is not None and not (one_order and one_target))


def _at_once(first: Learner, execution: Execution, gather: Gather, stacking: Stacking) -> RunStep:
    def make(eager: bool) -> RunStep:
        step = make_step(
            first.student,
            first.objective,
            eager=eager,
            autocast=execution.autocast,
            stacking=stacking,
            optimizer=first.optimizer,
        )

        def all_models(state: State, chosen: Tensor, noise: Noise, rows: Tensor) -> None:
            step(state, gather(chosen), noise, rows)

        return all_models

    return execution.executed(make)


def _loop(first: Learner, execution: Execution, gather: Gather, stacking: Stacking) -> RunStep:
    def make(eager: bool) -> Step:
        return make_step(
            first.student, first.objective, eager=eager, autocast=execution.autocast, optimizer=first.optimizer
        )

    step: Step = execution.executed(make)

    def model_by_model(state: State, chosen: Tensor, noise: Noise, rows: Tensor) -> None:
        batch = gather(chosen)
        for index, own_noise in enumerate(unstacked(noise, len(rows))):
            step(state.models[index], stacking.batch_of(batch, index), own_noise, rows[index])

    return model_by_model


def _seconds(step: RunStep, members: Sequence[Learner], state: State, noise: Noise, execution: Execution) -> float:
    """The minimum time of a step, executed as in training, on a copy of the state."""
    scratch, examples = State.stack(state.models), members[0].spec.examples
    device = examples.images.device
    epoch = min(member.epoch for member in members)
    rows = torch.from_numpy(np.stack([member.schedule(epoch)[0] for member in members])).float().to(device)
    chosen = orders(members, epoch)[..., : members[0].batch_size]
    best = float("inf")
    with captured(lambda: step(scratch, chosen, noise, rows), execution.recorder()) as run:
        # The first call compiles or warms up, so it is not timed.
        for _ in range(1 + REPETITIONS):
            started = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            best = min(best, time.perf_counter() - started)
    return best
