"""L1 penalty on the activations of one hidden layer, which silences neurons (KDDP sec. 3.1)."""

from typing import Literal

from torch import Tensor, nn

from kdx.methods.neurons import hidden_layer
from kdx.methods.part import Context, Part
from kdx.objective import Schedule, Step, Term
from kdx.ranges import Weight


class Activity(Part):
    """L1 penalty on the outputs of a hidden fully connected layer behind its ReLU, weighted by `L1` (KDDP sec. 3.1).

    `layer` is the layer's name, or None for the hidden layer with the most weights. `l1_reduction` over the mini-batch
    is `sum`, as in Keras 2, or `mean`, as in tf.keras: the paper does not say; over neurons it is always a sum.
    """

    layer: str | None
    L1: Weight
    l1_reduction: Literal["sum", "mean"]

    @property
    def varying(self) -> frozenset[str]:
        """`L1`."""
        return frozenset({"L1"})

    def terms(self, context: Context) -> dict[str, Term]:
        """The penalty `activation_l1` and, with weight 0, `active_neurons`: how many are above zero for any example."""
        name = hidden_layer(context.student, self.layer).activation

        def activation_l1(step: Step) -> Tensor:
            # Outputs of a ReLU are their own absolute values.
            total = step.activations[name].sum()
            return total if self.l1_reduction == "sum" else total / len(step.labels)

        def active_neurons(step: Step) -> Tensor:
            return (step.activations[name].detach() > 0).any(dim=0).float().sum()

        return {"activation_l1": Term(activation_l1, "L1"), "active_neurons": Term(active_neurons, "no_weight")}

    def numbers(self) -> dict[str, Schedule]:
        """The constant weight `L1`, and 0 as the weight of what is only recorded."""
        return {"L1": lambda epoch: self.L1, "no_weight": lambda epoch: 0.0}

    def watched(self, student: nn.Module) -> tuple[str, ...]:
        """The name of the ReLU behind the layer."""
        return (hidden_layer(student, self.layer).activation,)
