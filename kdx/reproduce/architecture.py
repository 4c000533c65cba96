"""The figures of a row that need no training, because they follow from the architectures."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from kdx.config.networks import NetworkSettings, RefinedSettings
from kdx.config.schema import Config
from kdx.measure.footprint import parameter_count
from kdx.measure.multiplications import multiplications
from kdx.methods import build
from kdx.methods.iterative_distillation import IterativeDistillation
from kdx.models import Shape, build_model
from kdx.reproduce.tables import Of

Figures = dict[str, Any]


def network_figures(config: Config, of: Of, generation: int | None) -> Figures:
    """Parameters and multiplications of a row's network before training, relative to the teacher's.

    None if only training decides the network. `moving_statistics` counts those of batch normalisation, `fc1_parameters`
    those of the first fully connected layer; `C` is IKD's name of R_c.
    """
    settings = _network(config, of, generation)
    if settings is None:
        return {}
    shape, classes = config.dataset.image_shape, config.dataset.classes
    own, teacher = (
        _counts(type(each), each.model_dump_json(), shape, classes) for each in (settings, config.teacher.network())
    )
    ratio = teacher["parameters"] / own["parameters"]
    return {**own, "R_c": ratio, "C": ratio, "teacher_multiplications": teacher["multiplications"]}


@cache
def _counts(kind: type[NetworkSettings], content: str, shape: Shape, classes: int) -> Figures:
    """The counts of a network with the settings `content`; cached, since the rows of a table share networks."""
    # Shapes are enough: no memory is filled and nothing is drawn.
    with torch.device("meta"):
        network = build_model(kind.model_validate_json(content), shape, classes, seed=0)
    layers = {name.rpartition(".")[2]: layer for name, layer in network.named_modules()}
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    return {
        "parameters": parameter_count(network),
        "moving_statistics": sum(2 * layer.num_features for layer in norms),
        "fc1_parameters": parameter_count(layers["fc1"]) if "fc1" in layers else None,
        "multiplications": multiplications(network, shape),
    }


def _network(config: Config, of: Of, generation: int | None) -> NetworkSettings | None:
    match of:
        case "student" | "network":
            return None if isinstance(config.student, RefinedSettings) else config.student
        case "teacher":
            return config.teacher.network()
        case "generation":
            _, chain = build(config.method)
            assert isinstance(chain, IterativeDistillation), "rows of a generation are those of chains"
            assert generation is not None, "such rows name one"
            structures = chain.structures(config.teacher.network())
            # Words of the command may have made the chain shorter.
            return structures[generation] if generation < len(structures) else None
        case "pruned" | "printed":
            return None


def with_derived(figures: Mapping[str, Any]) -> Figures:
    """The figures, with those that are computed from them.

    Keras counts moving statistics as parameters; `fc1_percent` is a share of Keras' count (KDDP table 2),
    `multiplications_ratio` the teacher's multiplications over the student's.
    """
    derived: Figures = {}
    if {"parameters", "moving_statistics"} <= figures.keys():
        derived["keras_parameters"] = figures["parameters"] + figures["moving_statistics"]
    if figures.get("fc1_parameters") is not None and derived:
        derived["fc1_percent"] = 100 * figures["fc1_parameters"] / derived["keras_parameters"]
    if figures.get("teacher_multiplications"):
        derived["multiplications_ratio"] = figures["teacher_multiplications"] / figures["multiplications"]
    return {**figures, **derived}
