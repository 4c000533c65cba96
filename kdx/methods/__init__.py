"""A method: parts that substitute layers, add loss terms and make the student plain again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdx.errors import unknown
from kdx.explain import settings_from
from kdx.methods.dropout import noise_outside, without_dropout
from kdx.methods.part import Context, Part, Unreached
from kdx.objective import Objective
from kdx.registry import Registry

PARTS: Registry[Part] = Registry(
    "kdx.methods",
    Part,
    {
        "labels": "kdx.methods.labels:Labels",
        "hint": "kdx.methods.hint:Hint",
        "mixture": "kdx.methods.mixture:Mixture",
        "dropout": "kdx.methods.dropout:Dropout",
        "variational": "kdx.methods.variational:Variational",
        "bsr": "kdx.methods.bsr:BlockSparsity",
        "l2": "kdx.methods.l2:L2",
        "masked": "kdx.methods.masked:Masked",
        "langevin": "kdx.methods.langevin:LangevinDynamics",
        "dark-knowledge": "kdx.methods.dark_knowledge:DarkKnowledge",
        "bayesian-compression": "kdx.methods.bayesian_compression:BayesianCompression",
        "soft_labels": "kdx.methods.soft_labels:SoftLabels",
        "activity": "kdx.methods.activity:Activity",
        "regression": "kdx.methods.regression:Regression",
        "fc_dropout": "kdx.methods.dropout:FullyConnectedDropout",
    },
)
"""Each of `method.parts`."""


@dataclass(frozen=True)
class Method:
    """What is done to a student: layers, loss terms, and the way back to a plain network."""

    name: str
    parts: tuple[Part, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether any part looks at the teacher."""
        return any(part.needs_teacher for part in self.parts)

    @property
    def one_teacher(self) -> str | None:
        """The first setting that makes a part look at the weights of one teacher, or None."""
        return next((part.one_teacher for part in self.parts if part.one_teacher), None)

    @property
    def prunes_at_start(self) -> bool:
        """Whether any part may prune weights before any training (SPEC 5)."""
        return any(part.prunes_at_start for part in self.parts)

    def idle(self) -> dict[str, str]:
        """The keys that change nothing, as they are typed, each with what is the reason."""
        found = {f"method.{key}": reason for part in self.parts for key, reason in part.idle().items()}
        if not any(part.learns_labels for part in self.parts):
            found["trainer.label_smoothing"] = f"method={self.name}, which does not learn from the labels"
        return found

    def unreached(self, epochs: int) -> dict[str, Unreached]:
        """The settings whose value is not reached in a training of so many epochs."""
        return _united(part.unreached(epochs) for part in self.parts)

    def targets(self, teacher_logits: Tensor, seed: int, shifts: int = 1) -> Tensor:
        """What the student learns from: the stored logits (views, classes), as every part leaves them.

        `shifts` views in a row are those of one image.
        """
        for part in self.parts:
            teacher_logits = part.targets(teacher_logits, seed, shifts)
        return teacher_logits

    def prepare(self, student: nn.Module) -> nn.Module:
        """Substitute layers: first the dropout that is part of the architecture, then part by part."""
        noise_outside(student)
        for part in self.parts:
            student = part.swap(student)
        return student

    def objective(self, student: nn.Module, teacher: nn.Module | None, examples: int) -> Objective:
        """The loss of the prepared student, trained on so many examples (by which the KL is divided)."""
        context = Context(student, teacher, examples)
        return Objective(
            terms=_united(part.terms(context) for part in self.parts),
            numbers=_united(part.numbers() for part in self.parts),
            rates=_united(part.rates(student) for part in self.parts),
            monitors=_united(part.monitors(context) for part in self.parts),
            watched=tuple(dict.fromkeys(name for part in self.parts for name in part.watched(student))),
            draws=_united(part.draws(context) for part in self.parts),
            langevin=_united(part.langevin(context) for part in self.parts),
        )

    def finalize(self, student: nn.Module) -> nn.Module:
        """Undo the substitutions in reverse order: prune or threshold, and give back plain layers."""
        for part in reversed(self.parts):
            student = part.finalize(student)
        return without_dropout(student)


def build_method(settings: Mapping[str, Any], other_keys: Sequence[str] = ()) -> Method:
    """Build the method from the mapping of its YAML: `name`, `parts` and the settings of these parts.

    Raises UserError that names the key for an unknown part, a setting that no part has, or a value out of range;
    `other_keys` are those that the user may set beside the parts'.
    """
    values = {key: value for key, value in settings.items() if key not in ("name", "parts")}
    parts = []
    for name in settings["parts"]:
        part = PARTS.find(name, "method.parts")
        own = {key: values.pop(key) for key in part.model_fields if key in values}
        parts.append(settings_from(part, own, "method"))
    if values:
        known = [*(key for part in parts for key in type(part).model_fields), *other_keys]
        raise unknown("method", next(iter(values)), known)
    return Method(settings["name"], tuple(parts))


def _united(mappings) -> dict[str, Any]:
    united: dict[str, Any] = {}
    for mapping in mappings:
        doubled = united.keys() & mapping.keys()
        assert not doubled, f"two parts of one method both define {doubled}"
        united |= mapping
    return united
