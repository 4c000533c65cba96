"""A part of a method: one idea, with its settings and what it does to layers, loss and result."""

from dataclasses import dataclass

from torch import Tensor, nn

from kdx.models.weights import weight_parameters
from kdx.objective import Draw, Langevin, Monitor, Schedule, Term
from kdx.settings import Settings


@dataclass(frozen=True)
class Context:
    """What a part may look at when it makes its loss terms; the student's layers are already substituted."""

    student: nn.Module
    teacher: nn.Module | None
    examples: int

    @property
    def classes(self) -> int:
        """How many logits the student gives: the outputs of its last weight matrix."""
        return list(weight_parameters(self.student).values())[-1].shape[0]


@dataclass(frozen=True)
class Unreached:
    """A number that rises to its value, in a training that ends before: the most that it comes to.

    It would come to more if the setting `until`, which is `epoch`, were lower or the training longer.
    """

    most: float
    until: str
    epoch: float


class Part(Settings):
    """One idea of a method. Its fields are the keys of the method's YAML; whatever it does not do stays as it is."""

    @property
    def needs_teacher(self) -> bool:
        """Whether this part looks at the teacher."""
        return False

    @property
    def learns_labels(self) -> bool:
        """Whether a term is a cross entropy with the labels, by `Step.cross_entropy`, which smooths them."""
        return False

    @property
    def one_teacher(self) -> str | None:
        """The setting, as the user types it, that makes this part look at one teacher's weights; None: no setting."""
        return None

    @property
    def prunes_at_start(self) -> bool:
        """Whether some of the weights may be pruned before any training, so that their share is told (SPEC 5)."""
        return False

    @property
    def varying(self) -> frozenset[str]:
        """The fields that may differ between models which are trained together.

        What they do is in the numbers, the layers' own numbers, the targets, the initial values or the finished
        network, but not in the layers' shape and not in what the terms compute.
        """
        return frozenset()

    def idle(self) -> dict[str, str]:
        """The fields that change nothing beside the value of another one, each with that setting as it is typed."""
        return {}

    def unreached(self, epochs: int) -> dict[str, Unreached]:
        """The fields whose value is not reached in a training of so many epochs."""
        return {}

    def targets(self, teacher_logits: Tensor, seed: int, shifts: int = 1) -> Tensor:
        """What the student learns from, made of the stored logits (views, classes) once, before the training.

        `shifts` views in a row are those of one image (or mirror image). Depends on its arguments alone, so it is the
        same in every epoch and after an interruption.
        """
        return teacher_logits

    def swap(self, student: nn.Module) -> nn.Module:
        """The student with substituted layers."""
        return student

    def terms(self, context: Context) -> dict[str, Term]:
        """The loss terms by name."""
        return {}

    def numbers(self) -> dict[str, Schedule]:
        """The numbers that the terms read, as functions of the time in epochs."""
        return {}

    def rates(self, student: nn.Module) -> dict[str, str]:
        """Parameters whose learning rate is multiplied by a number of that name."""
        return {}

    def monitors(self, context: Context) -> dict[str, Monitor]:
        """Figures for the history."""
        return {}

    def watched(self, student: nn.Module) -> tuple[str, ...]:
        """The layers whose outputs the terms read."""
        return ()

    def draws(self, context: Context) -> dict[str, Draw]:
        """The random numbers that the terms read, by name."""
        return {}

    def langevin(self, context: Context) -> dict[str, Langevin]:
        """Parameters that are sampled instead of learnt, and how."""
        return {}

    def finalize(self, student: nn.Module) -> nn.Module:
        """The student with this part's layers made plain again."""
        return student
