"""A method: the parts that substitute layers of the student, add loss terms and make the student plain again."""

from collections.abc import Mapping
from typing import Any

from kdx.config.registry import Registry
from kdx.config.validation import settings_from
from kdx.methods.method import Method, build_method
from kdx.methods.procedure import Procedure

PROCEDURES: Registry[Procedure] = Registry(
    "kdx.procedures",
    Procedure,
    {
        "once": "kdx.methods.procedure:SingleFit",
        "chain": "kdx.methods.iterative_distillation:IterativeDistillation",
        "iterative-pruning": "kdx.methods.weight_pruning:IterativePruning",
        "gradual-pruning": "kdx.methods.weight_pruning:GradualPruning",
        "shrink": "kdx.methods.kddp:NeuronPruning",
        "sampling": "kdx.methods.langevin:PosteriorSampling",
        "dark-knowledge": "kdx.methods.bayesian_dark_knowledge:BayesianDarkKnowledge",
    },
)
"""The names allowed as `method.procedure`."""


def build(settings: Mapping[str, Any]) -> tuple[Method, Procedure]:
    """Build both from the mapping of a method's YAML, in which `procedure` is by default `once`.

    Raises UserError, which names the key, for an unknown procedure or part, a setting that neither has, or a value out
    of range.
    """
    values = dict(settings)
    kind = PROCEDURES.find(values.pop("procedure", "once"), "method.procedure")
    own = {key: values.pop(key) for key in kind.model_fields if key in values}
    procedure = settings_from(kind, own, "method")
    return build_method(values, other_keys=list(kind.model_fields)), procedure
