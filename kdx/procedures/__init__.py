"""Procedures, and the way from a method's YAML to the method and its procedure."""

from collections.abc import Mapping
from typing import Any

from kdx.explain import settings_from
from kdx.methods import Method, build_method
from kdx.procedures.procedure import Procedure
from kdx.registry import Registry

PROCEDURES: Registry[Procedure] = Registry(
    "kdx.procedures",
    Procedure,
    {
        "once": "kdx.procedures.procedure:Once",
        "chain": "kdx.procedures.chain:Chain",
        "iterative-pruning": "kdx.procedures.pruning:IterativePruning",
        "gradual-pruning": "kdx.procedures.pruning:GradualPruning",
        "shrink": "kdx.procedures.shrink:Shrink",
        "sampling": "kdx.procedures.sampling:Sampling",
        "dark-knowledge": "kdx.procedures.dark_knowledge:DarkKnowledgeFit",
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
