"""Binary dropout (Srivastava et al. 2014), the students marked *D* in VS."""

from collections import OrderedDict
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import nn

from kdx.errors import UserError
from kdx.methods.modifier import Modifier
from kdx.models.layers import NoisyDropout, without_dropout
from kdx.models.surgery import replace_layers

Rate = Annotated[float, Field(ge=0, lt=1)]


class Dropout(Modifier):
    """Dropout behind every hidden ReLU at rate `dropout`, on the inputs at `input_dropout` (Srivastava et al. 2014)."""

    dropout: Rate
    input_dropout: Rate

    @property
    def batchable(self) -> frozenset[str]:
        """The two rates, if they are not zero: without dropout there is no layer."""
        return frozenset(name for name in ("dropout", "input_dropout") if getattr(self, name))

    def replace_layers(self, student: nn.Module) -> nn.Module:
        """Put dropout behind every ReLU and before the first layer; raises ValueError if there is no place for it."""
        if self.dropout and not replace_layers(student, self._behind_relu):
            raise ValueError("the student has no nn.ReLU to put dropout behind")
        if not self.input_dropout:
            return student
        if not isinstance(student, nn.Sequential):
            raise ValueError("input_dropout needs a network that is a plain sequence of layers")
        return nn.Sequential(
            OrderedDict(input_dropout=NoisyDropout(self.input_dropout), **dict(student.named_children()))
        )

    def _behind_relu(self, layer: nn.Module) -> nn.Module | None:
        return nn.Sequential(layer, NoisyDropout(self.dropout)) if isinstance(layer, nn.ReLU) else None

    def finalize(self, student: nn.Module) -> nn.Module:
        """The network without dropout."""
        return without_dropout(student)


class FullyConnectedDropout(Modifier):
    """Dropout at rate `fc_dropout` behind the ReLUs of fully connected layers only (Noisy Teachers, table 5)."""

    fc_dropout: Rate

    @property
    def batchable(self) -> frozenset[str]:
        """The rate, if it is not zero: without dropout there is no layer."""
        return frozenset({"fc_dropout"} if self.fc_dropout else ())

    def replace_layers(self, student: nn.Module) -> nn.Module:
        """Put a dropout layer behind every ReLU that follows a linear layer; raises UserError if there is none."""
        if not self.fc_dropout:
            return student
        layers = list(student.named_children())
        behind = [
            name
            for (_, before), (name, layer) in pairwise(layers)
            if isinstance(layer, nn.ReLU) and _is_fully_connected(before)
        ]
        if not behind:
            raise UserError(
                f"method.fc_dropout: {self.fc_dropout} is not allowed with this student, which has no ReLU behind a"
                " fully connected layer; allowed: 0"
            )
        for name in behind:
            setattr(student, name, nn.Sequential(student.get_submodule(name), NoisyDropout(self.fc_dropout)))
        return student

    def finalize(self, student: nn.Module) -> nn.Module:
        """The network without dropout."""
        return without_dropout(student)


def _is_fully_connected(layer: nn.Module) -> bool:
    # Also where another part has put a layer of its own in its place.
    weight = getattr(layer, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2
