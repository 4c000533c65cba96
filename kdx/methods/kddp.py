"""KDDP: train with a penalty on activations, remove the silent neurons, fine-tune the others (KDDP sec. 3.1)."""

import logging
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from kdx.config.base import Count
from kdx.config.ranges import Weight
from kdx.data.dataset import Split
from kdx.device.backend import Backend
from kdx.errors import UserError
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.method import Method
from kdx.methods.modifier import Context, Hyperparameter, Modifier, constant
from kdx.methods.procedure import FitResult, Procedure, join_histories
from kdx.models.layers import eval_mode
from kdx.models.neurons import Hidden, hidden_layer, without_neurons
from kdx.training.checkpoint import Progress
from kdx.training.objective import LossInputs, Schedule, Term

log = logging.getLogger(__name__)


def mean_activations(network: nn.Sequential, hidden: Hidden, examples: Split) -> Tensor:
    """The mean output of every neuron behind its ReLU, float64 (neurons,), in eval mode (KDDP sec. 3.1).

    The mean is over all samples, neither mirrored nor shifted.
    """
    names = [name for name, _ in network.named_children()]
    head = network[: names.index(hidden.activation) + 1]
    with eval_mode(head):
        # On the CPU, because Apple's GPUs have no float64.
        sums = torch.stack([head(images).cpu().double().sum(dim=0) for images, _ in examples.batches()])
    return sums.sum(dim=0) / len(examples)


class Activity(Modifier):
    """L1 penalty on the outputs of a hidden fully connected layer behind its ReLU, weighted by `L1` (KDDP sec. 3.1).

    `layer` is the layer's name, or None for the hidden layer with the most weights. `l1_reduction` over the mini-batch
    is `sum`, as in Keras 2, or `mean`, as in tf.keras: the paper does not say; over neurons it is always a sum.
    """

    layer: str | None
    L1: Hyperparameter[Weight]
    l1_reduction: Literal["sum", "mean"]

    def terms(self, context: Context) -> dict[str, Term]:
        """The penalty `activation_l1` and, with weight 0, `active_neurons`: how many are above zero for any example."""
        name = hidden_layer(context.student, self.layer).activation

        def activation_l1(step: LossInputs) -> Tensor:
            # Outputs of a ReLU are their own absolute values.
            total = step.activations[name].sum()
            return total if self.l1_reduction == "sum" else total / len(step.labels)

        def active_neurons(step: LossInputs) -> Tensor:
            return (step.activations[name].detach() > 0).any(dim=0).float().sum()

        return {"activation_l1": Term(activation_l1, "L1"), "active_neurons": Term(active_neurons, "no_weight")}

    def hyperparameters(self) -> dict[str, Schedule]:
        """The constant weight `L1`, and 0 as the weight of what is only recorded."""
        return super().hyperparameters() | {"no_weight": constant(0.0)}

    def feature_layers(self, student: nn.Module) -> tuple[str, ...]:
        """The name of the ReLU behind the layer."""
        return (hidden_layer(student, self.layer).activation,)


class NeuronPruning(Procedure):
    """`rounds` rounds of two fits: one with the penalty, one of the surviving neurons without it.

    A neuron survives if its mean activation over the training set is at least `threshold` (KDDP sec. 3.1). The second
    fit starts from the surviving weights: kdx's reading of the paper's "retrain".
    """

    threshold: PositiveFloat
    rounds: Count

    def check_network(self, network: nn.Module, method: Method) -> None:
        """Raise UserError if the method has no penalty on activations or the network no layer for it."""
        hidden_layer(network, _activity(method).layer)

    def run(
        self, network: nn.Module, method: Method, inputs: TrainingInputs, spec: FitSpec, backend: Backend
    ) -> FitResult:
        """Train and shrink in turn; the figures are the layer's final width and the number of removed neurons.

        Raises UserError if no neuron would be left.
        """
        assert isinstance(network, nn.Sequential), "every network of kdx is a plain sequence of layers"
        # By name, because after a round another layer may have more weights than this one.
        hidden = hidden_layer(network, _activity(method).layer)
        penalised = replace(method, modifiers=tuple(_on(part, hidden) for part in method.modifiers))
        unpenalised = replace(
            method, modifiers=tuple(part for part in method.modifiers if not isinstance(part, Activity))
        )
        stages: list[Progress] = []
        before = _width(network, hidden)

        def stage(name: str, how: Method, student: nn.Sequential) -> nn.Sequential:
            # A trained network has lost the architecture's own dropout, which the next fit needs.
            untrained = deepcopy(student)
            trained, progress = fit(student, how, inputs, spec.at(name), backend)
            stages.append(progress)
            untrained.load_state_dict(trained.state_dict())
            return untrained.to(backend.device)

        for number in range(1, self.rounds + 1):
            network = stage(f"penalised-{number}", penalised, network)
            kept = self._survivors(mean_activations(network, hidden, inputs.data.train), hidden).to(backend.device)
            network = stage(f"fine-tuned-{number}", unpenalised, without_neurons(network, hidden, kept))
        after = _width(network, hidden)
        finished = unpenalised.finalize(network)
        return FitResult(
            finished, join_histories(stages), {f"{hidden.layer}_size": after, "removed_neurons": before - after}
        )

    def _survivors(self, means: Tensor, hidden: Hidden) -> Tensor:
        kept = means >= self.threshold
        count, total = int(kept.sum()), len(kept)
        if not count:
            raise UserError(
                f"method.L1: too high, all {total} neurons of {hidden.layer} have a mean activation below"
                f" method.threshold={self.threshold:g}; allowed: a lower method.L1 or method.threshold"
            )
        log.info("%d of %d neurons of %s are kept", count, total, hidden.layer)
        if count == total:
            log.warning("no neuron of %s fell silent; a higher method.L1 or more epochs remove some", hidden.layer)
        return kept


def _activity(method: Method) -> Activity:
    for part in method.modifiers:
        if isinstance(part, Activity):
            return part
    raise UserError(
        f"method.parts: method={method.name} has nothing that silences neurons for method.procedure=shrink; allowed: a"
        " list with activity"
    )


def _on(part: Modifier, hidden: Hidden) -> Modifier:
    return part.model_copy(update={"layer": hidden.layer}) if isinstance(part, Activity) else part


def _width(network: nn.Module, hidden: Hidden) -> int:
    return len(network.get_parameter(f"{hidden.layer}.weight"))
