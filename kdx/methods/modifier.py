"""A modifier: one technique of a method, with its settings and what it does to layers, loss and result."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

from torch import Tensor, nn

from kdx.config.base import Settings
from kdx.models.weights import weight_parameters
from kdx.training.objective import Langevin, Monitor, NoiseSpec, Schedule, Term


@dataclass(frozen=True)
class Context:
    """What a part makes its loss terms from: student (layers substituted), teacher, number of training examples."""

    student: nn.Module
    teacher: nn.Module | None
    examples: int

    @property
    def classes(self) -> int:
        """The number of classes: the outputs of the student's last weight matrix."""
        return list(weight_parameters(self.student).values())[-1].shape[0]


@dataclass(frozen=True)
class Unreached:
    """A number on a schedule that training ends too early to complete: the highest value that it gets to.

    It would get higher if training were longer, or the setting `until`, now at `epoch`, lower.
    """

    most: float
    until: str
    epoch: float


_IS_HYPERPARAMETER = object()
T = TypeVar("T")
Hyperparameter = Annotated[T, _IS_HYPERPARAMETER]
"""A field that a modifier's loss terms read as `inputs.hyperparameters[NAME]`, a tensor, constant over the run."""


def constant(value: float) -> Schedule:
    """The schedule that has this value at all times."""
    return lambda epoch: value


class Modifier(Settings):
    """One technique of a method, such as a loss term or a kind of layer, listed in the `parts` of the method's YAML.

    Its fields are keys of that YAML; those that its loss terms read are marked as `Hyperparameter`. Every hook does
    nothing by default.
    """

    weight: ClassVar[str | None] = None
    """The field that multiplies all that this modifier does: at 0 its other fields have no effect."""

    @property
    def needs_teacher(self) -> bool:
        """Whether this part reads the teacher's logits or weights."""
        return False

    @property
    def learns_labels(self) -> bool:
        """Whether a term is `LossInputs.cross_entropy`, which applies label smoothing."""
        return False

    @property
    def needs_single_teacher(self) -> str | None:
        """The setting, as the user types it, by which this part reads one teacher's weights; None if there is none."""
        return None

    @property
    def prunes_at_start(self) -> bool:
        """Whether weights may count as pruned before the first training step, so that their share has to be logged."""
        return False

    @property
    def batchable(self) -> frozenset[str]:
        """The settings in which models that are trained together may differ.

        They may change the numbers of a step, the layers' own numbers, the targets, the initial values or the finished
        network, but neither a layer's shape nor what the loss terms compute.
        """
        return frozenset(self._marked())

    def unused_settings(self) -> dict[str, str]:
        """The fields without effect beside the value of another one, each with that other setting as it is typed."""
        if self.weight is None or getattr(self, self.weight):
            return {}
        return dict.fromkeys({*type(self).model_fields} - {self.weight}, f"method.{self.weight}=0")

    def unreached(self, epochs: int) -> dict[str, Unreached]:
        """The fields that a schedule does not bring to their value within `epochs` epochs."""
        return {}

    def transform_teacher_logits(self, teacher_logits: Tensor, seed: int, shifts: int = 1) -> Tensor:
        """The logits that the student learns from, computed once before training from the stored ones (views, classes).

        `shifts` consecutive views belong to one image (or mirror image). The result may depend on the arguments only,
        so that it is the same when training is resumed.
        """
        return teacher_logits

    def replace_layers(self, student: nn.Module) -> nn.Module:
        """The student with this part's layers substituted."""
        return student

    def terms(self, context: Context) -> dict[str, Term]:
        """This part's loss terms by name."""
        return {}

    def hyperparameters(self) -> dict[str, Schedule]:
        """The numbers that its terms read, each as a function of the time in epochs."""
        return {name: constant(getattr(self, name)) for name in self._marked()}

    def lr_multipliers(self, student: nn.Module) -> dict[str, str]:
        """The parameters whose learning rate is multiplied, with the name of the number that multiplies it."""
        return {}

    def monitors(self, context: Context) -> dict[str, Monitor]:
        """Figures for the history, computed once per epoch."""
        return {}

    def feature_layers(self, student: nn.Module) -> tuple[str, ...]:
        """The names of the layers whose outputs its terms read."""
        return ()

    def noise_specs(self, context: Context) -> dict[str, NoiseSpec]:
        """The random numbers that its terms read, by name."""
        return {}

    def langevin(self, context: Context) -> dict[str, Langevin]:
        """The parameters that are sampled by SGLD instead of trained by the optimizer."""
        return {}

    def finalize(self, student: nn.Module) -> nn.Module:
        """The student with this part's layers replaced by plain ones."""
        return student

    def _marked(self) -> list[str]:
        return [name for name, field in type(self).model_fields.items() if _IS_HYPERPARAMETER in field.metadata]
