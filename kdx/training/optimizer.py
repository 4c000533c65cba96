"""The parameter updates: Adam, SGD and Langevin dynamics, and the running average of the weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from kdx.config.schema import TrainerSettings
from kdx.training.objective import Langevin
from kdx.training.state import State, unstacked

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants (Kingma and Ba 2015), also the defaults of the papers' frameworks, except Keras' epsilon of 1e-7."""

Tensors = Mapping[str, Tensor]
Update = Callable[[State, Tensors, Tensors, Tensor], None]
"""update(state, gradients, numbers, broken) -> None: updates the state in place, and nothing where `broken` is 1.

For several models gradients, numbers and `broken` have a leading dimension for the model.
"""


@dataclass(frozen=True)
class Optimizer:
    """Which optimizer is used, and for which parameters; its hyper-parameters are among the numbers of each step.

    `decays` names the parameters with weight decay, `averages` says whether the state has a running average.
    """

    kind: Literal["adam", "sgd"] = "adam"
    decays: tuple[str, ...] = ()
    averages: bool = False

    @property
    def numbers(self) -> list[str]:
        """The names of the hyper-parameters that it reads, in their order in a row."""
        own = {"adam": ["lr", "steps", "bias1", "bias2"], "sgd": ["lr", "momentum"]}[self.kind]
        return own + ["weight_decay"] * bool(self.decays) + ["average"] * self.averages


ADAM = Optimizer()


def learning_rate(trainer: TrainerSettings, time: float, step: float) -> float:
    """The learning rate at `time`, in epochs, of a training whose steps last `step` epochs.

    `hold`: constant for the fraction `hold` of the epochs, then linearly towards zero. `one-cycle`: linearly from near
    zero to the full rate at the fraction `peak`, then linearly towards zero (Smith and Topin 2019, without the inverse
    cycle of the momentum). Neither the first nor the last step has rate zero.
    """
    epochs, rising, falling = trainer.epochs, 0.0, trainer.epochs * (1 - trainer.hold)
    if trainer.schedule == "one-cycle":
        rising, falling = epochs * trainer.peak, epochs * (1 - trainer.peak)
    up = (time + step) / rising if rising else 1.0
    down = (epochs - time) / falling if falling else 1.0
    return trainer.lr * min(1.0, up, down)


def step_numbers(trainer: TrainerSettings, first: int, count: int) -> dict[str, list[float]]:
    """The hyper-parameters besides the rate of `count` steps from step `first` (from 1) on, by name."""
    numbers = _adam_numbers(first, count) | {
        "momentum": [trainer.momentum] * count,
        "weight_decay": [trainer.weight_decay] * count,
    }
    if trainer.average is not None:
        decay = trainer.average
        # These weights give Adam's bias-corrected average at every step: the first step's network has all the weight.
        numbers["average"] = [(1 - decay) / (1 - decay**step) for step in range(first, first + count)]
    return numbers


# Cached, since an epoch's numbers are the same for all models that are trained together.
@lru_cache(maxsize=2)
def _adam_numbers(first: int, count: int) -> dict[str, list[float]]:
    """Adam's bias corrections, and the step numbers, of `count` steps from step `first` (from 1) on."""
    steps = range(first, first + count)
    return {
        "steps": list(steps),
        "bias1": [1 - BETA1**step for step in steps],
        "bias2": [1 - BETA2**step for step in steps],
    }


def make_update(optimizer: Optimizer, rates: Mapping[str, str], *, eager: bool, several: bool) -> Update:
    """The update of the parameters that have gradients; `rates` are `Objective.lr_multipliers`.

    `eager` uses torch's fused Adam kernel; otherwise everything is written out, for the compiler.
    """
    adam = (_fused_adams if several else _fused_adam) if eager else _adam

    def update(state: State, gradients: Tensors, numbers: Tensors, broken: Tensor) -> None:
        if optimizer.kind == "sgd":
            _sgd(state, gradients, numbers, rates, broken, optimizer.decays)
            return
        _decay(state, numbers, rates, broken, optimizer.decays)
        adam(state, gradients, numbers, rates, broken)

    return update


def _sgd(
    state: State,
    gradients: Tensors,
    numbers: Tensors,
    rates: Mapping[str, str],
    broken: Tensor,
    decays: tuple[str, ...],
) -> None:
    """SGD with Nesterov momentum (Sutskever et al. 2013), as in torch.optim.SGD.

    Weight decay is L2: part of the gradient, and so of the momentum.
    """
    momentum = _unless(broken, numbers["momentum"], 1)
    for name, gradient in gradients.items():
        parameter, velocity = state.parameters[name], state.first[name]
        if name in decays:
            gradient = gradient + beside(numbers["weight_decay"], parameter) * parameter
        gradient = gradient.masked_fill(beside(broken.bool(), gradient), 0)
        lr, kept = _unless(broken, _rate(name, numbers, rates), 0), beside(momentum, velocity)
        velocity.mul_(kept).add_(gradient)
        parameter.sub_(beside(lr, velocity) * (gradient + kept * velocity))


def _decay(state: State, numbers: Tensors, rates: Mapping[str, str], broken: Tensor, decays: tuple[str, ...]) -> None:
    """Adam's weight decay, decoupled from its moments: w - lr * weight_decay * w (Loshchilov and Hutter 2019)."""
    for name in decays:
        kept = _unless(broken, 1 - _rate(name, numbers, rates) * numbers["weight_decay"], 1)
        state.parameters[name].mul_(beside(kept, state.parameters[name]))


def _adam(state: State, gradients: Tensors, numbers: Tensors, rates: Mapping[str, str], broken: Tensor) -> None:
    for name, gradient in gradients.items():
        first, second = state.first[name], state.second[name]
        gradient = gradient.masked_fill(beside(broken.bool(), gradient), 0)
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        lr = _unless(broken, _rate(name, numbers, rates), 0)
        scale = (second / beside(numbers["bias2"], second)).sqrt_().add_(EPSILON)
        state.parameters[name].sub_(beside(lr / numbers["bias1"], first) * first / scale)


def _fused_adam(state: State, gradients: Tensors, numbers: Tensors, rates: Mapping[str, str], broken: Tensor) -> None:
    groups: dict[str, list[str]] = {}
    for name in gradients:
        groups.setdefault(rates.get(name, ""), []).append(name)
    for members in groups.values():
        torch._fused_adam_(  # type: ignore[attr-defined]
            [state.parameters[name] for name in members],
            [_laid_out_as(state.parameters[name], gradients[name]) for name in members],
            [state.first[name] for name in members],
            [state.second[name] for name in members],
            [],
            [numbers["steps"]] * len(members),
            lr=_rate(members[0], numbers, rates),
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
            found_inf=broken,
        )


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the parameter's memory layout, which the fused kernel assumes."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def _fused_adams(state: State, gradients: Tensors, numbers: Tensors, rates: Mapping[str, str], broken: Tensor) -> None:
    # The kernel has one rate for all its tensors; the gradients of all models get the right layout at once.
    models = len(state.sums)
    own = unstacked({name: gradient.contiguous() for name, gradient in gradients.items()}, models)
    for model, (own_gradients, own_numbers) in enumerate(zip(own, unstacked(numbers, models), strict=True)):
        _fused_adam(state.models[model], own_gradients, own_numbers, rates, broken[model])


def sample(
    state: State, gradients: Tensors, numbers: Tensors, noise: Tensors, sampled: Mapping[str, Langevin], broken: Tensor
) -> None:
    """Langevin step: theta - eta/2 * examples * gradient + sqrt(eta) * N(0, 1) (Welling and Teh 2011, eq. 4)."""
    for name, how in sampled.items():
        eta = beside(numbers[how.eta], gradients[name])
        move = eta / 2 * how.examples * gradients[name] - eta.sqrt() * noise[how.noise]
        state.parameters[name].sub_(move.masked_fill(beside(broken.bool(), move), 0))


def average(state: State, numbers: Tensors, broken: Tensor) -> None:
    """Update the running average: exponential, with bias correction (Kingma and Ba 2015, sec. 7.2).

    The statistics of batch norm are averaged like the weights. Computing those of the averaged network would take a
    pass over the training set at each evaluation (Izmailov et al. 2018, sec. 3); as the learning rate falls to zero the
    averaged networks converge, and both become the same.
    """
    still = broken.bool()
    for name, value in state.network().items():
        mean = state.average[name]
        value = torch.where(beside(still, value), mean, value)
        if mean.is_floating_point():
            mean.lerp_(value, beside(numbers["average"], mean))
        else:
            mean.copy_(value)


def beside(number: Tensor, tensor: Tensor) -> Tensor:
    """A number, or one per model (models,), reshaped to be multiplied with the tensor."""
    return number.reshape(-1, *(1,) * (tensor.dim() - 1)) if number.dim() else number


def _rate(name: str, numbers: Tensors, rates: Mapping[str, str]) -> Tensor:
    lr = numbers["lr"]
    return lr * numbers[rates[name]] if name in rates else lr


def _unless(broken: Tensor, number: Tensor, otherwise: float) -> Tensor:
    """The number, or `otherwise` if the step is broken."""
    return number.masked_fill(broken.bool(), otherwise)
