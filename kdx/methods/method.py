"""A method: its modifiers, which substitute layers, add loss terms and make the student plain again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdx.config.registry import Registry
from kdx.config.validation import settings_from
from kdx.errors import unknown
from kdx.methods.modifier import Context, Modifier, Unreached
from kdx.models.layers import noise_outside, without_dropout
from kdx.training.objective import Objective

MODIFIERS: Registry[Modifier] = Registry(
    "kdx.methods",
    Modifier,
    {
        "labels": "kdx.methods.distillation:CrossEntropy",
        "hint": "kdx.methods.distillation:Distillation",
        "mixture": "kdx.methods.distillation:Mixture",
        "dropout": "kdx.methods.dropout:Dropout",
        "variational": "kdx.methods.variational:Variational",
        "bsr": "kdx.methods.block_sparsity:BlockSparsity",
        "l2": "kdx.methods.weight_decay:L2",
        "masked": "kdx.methods.masking:Masking",
        "langevin": "kdx.methods.langevin:LangevinDynamics",
        "dark-knowledge": "kdx.methods.bayesian_dark_knowledge:DarkKnowledge",
        "bayesian-compression": "kdx.methods.bayesian_compression:BayesianCompression",
        "soft_labels": "kdx.methods.distillation:SoftLabels",
        "activity": "kdx.methods.kddp:Activity",
        "regression": "kdx.methods.logit_regression:Regression",
        "fc_dropout": "kdx.methods.dropout:FullyConnectedDropout",
    },
)
"""The names allowed in `method.parts`."""


@dataclass(frozen=True)
class Method:
    """A compression method: the layers that it substitutes, its loss terms, and the way back to a plain network."""

    name: str
    modifiers: tuple[Modifier, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether any part reads the teacher's logits or weights."""
        return any(part.needs_teacher for part in self.modifiers)

    @property
    def needs_single_teacher(self) -> str | None:
        """The first setting, as the user types it, with which a part reads one teacher's weights; None without one."""
        return next((part.needs_single_teacher for part in self.modifiers if part.needs_single_teacher), None)

    @property
    def prunes_at_start(self) -> bool:
        """Whether any part may count weights as pruned before the first training step."""
        return any(part.prunes_at_start for part in self.modifiers)

    def unused_settings(self) -> dict[str, str]:
        """The settings without effect, by dotted key, each with the setting that is the reason."""
        found = {f"method.{key}": reason for part in self.modifiers for key, reason in part.unused_settings().items()}
        if not any(part.learns_labels for part in self.modifiers):
            found["trainer.label_smoothing"] = f"method={self.name}, which does not learn from the labels"
        return found

    def unreached(self, epochs: int) -> dict[str, Unreached]:
        """The settings that a schedule does not bring to their value within `epochs` epochs, by key."""
        return _united(part.unreached(epochs) for part in self.modifiers)

    def transform_teacher_logits(self, teacher_logits: Tensor, seed: int, shifts: int = 1) -> Tensor:
        """The logits that the student learns from: the stored ones (views, classes), changed by each part in turn.

        `shifts` consecutive views belong to one image.
        """
        for part in self.modifiers:
            teacher_logits = part.transform_teacher_logits(teacher_logits, seed, shifts)
        return teacher_logits

    def prepare(self, student: nn.Module) -> nn.Module:
        """The student with its layers substituted: first the architecture's own dropout, then part by part."""
        noise_outside(student)
        for part in self.modifiers:
            student = part.replace_layers(student)
        return student

    def objective(self, student: nn.Module, teacher: nn.Module | None, examples: int) -> Objective:
        """The prepared student's loss; the KL of its weights is divided by `examples`, the size of the training set."""
        context = Context(student, teacher, examples)
        return Objective(
            terms=_united(part.terms(context) for part in self.modifiers),
            hyperparameters=_united(part.hyperparameters() for part in self.modifiers),
            lr_multipliers=_united(part.lr_multipliers(student) for part in self.modifiers),
            monitors=_united(part.monitors(context) for part in self.modifiers),
            feature_layers=tuple(
                dict.fromkeys(name for part in self.modifiers for name in part.feature_layers(student))
            ),
            noise_specs=_united(part.noise_specs(context) for part in self.modifiers),
            langevin=_united(part.langevin(context) for part in self.modifiers),
        )

    def finalize(self, student: nn.Module) -> nn.Module:
        """The plain student: the substitutions are undone in reverse order, and weights are pruned or thresholded."""
        for part in reversed(self.modifiers):
            student = part.finalize(student)
        return without_dropout(student)


def build_method(settings: Mapping[str, Any], other_keys: Sequence[str] = ()) -> Method:
    """Build the method from its YAML mapping: `name`, `parts` and the settings of these parts.

    Raises UserError, which names the key, for an unknown part, a setting that no part has, or a value out of range;
    `other_keys` are listed as allowed keys beside those of the parts.
    """
    values = {key: value for key, value in settings.items() if key not in ("name", "parts")}
    parts = []
    for name in settings["parts"]:
        part = MODIFIERS.find(name, "method.parts")
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
