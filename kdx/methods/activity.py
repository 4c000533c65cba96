"""L1 on the activations of one hidden layer, which silences neurons (KDDP 3.1; SPEC 3)."""

from typing import Literal

from torch import Tensor, nn

from kdx.methods.neurons import hidden_layer
from kdx.methods.part import Context, Part
from kdx.objective import Schedule, Step, Term
from kdx.ranges import Weight


class Activity(Part):
    """L1 on what a hidden fully connected layer gives behind its ReLU, weighted by `L1`.

    `layer` is the layer's name, or None for the hidden one with the most weights. The reduction over the batch is
    `sum`, as in Keras 2, or `mean`, as in tf.keras; over neurons it is a sum.
    """

    layer: str | None
    L1: Weight
    l1_reduction: Literal["sum", "mean"]

    @property
    def varying(self) -> frozenset[str]:
        """The weight."""
        return frozenset({"L1"})

    def terms(self, context: Context) -> dict[str, Term]:
        """`activation_l1`, and as a figure of weight zero `active_neurons`: those that anything in a batch excites."""
        name = hidden_layer(context.student, self.layer).activation

        def activation_l1(step: Step) -> Tensor:
            # Behind a ReLU every number is its own absolute value.
            total = step.activations[name].sum()
            return total if self.l1_reduction == "sum" else total / len(step.labels)

        def active_neurons(step: Step) -> Tensor:
            return (step.activations[name].detach() > 0).any(dim=0).float().sum()

        return {"activation_l1": Term(activation_l1, "L1"), "active_neurons": Term(active_neurons, "no_weight")}

    def numbers(self) -> dict[str, Schedule]:
        """`L1`, constant over the run, and the weight of what is only looked at."""
        return {"L1": lambda epoch: self.L1, "no_weight": lambda epoch: 0.0}

    def watched(self, student: nn.Module) -> tuple[str, ...]:
        """The ReLU behind the layer."""
        return (hidden_layer(student, self.layer).activation,)
