"""The figures of a row that need no training: they follow from the networks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kdx.config import Config
from kdx.measure.footprint import parameter_count, parameter_ratio
from kdx.measure.multiplications import multiplications
from kdx.models import build_model
from kdx.models.settings import RefinedSettings

Figures = dict[str, Any]


def network_figures(config: Config) -> Figures:
    """Parameters and multiplications of the student before training, beside the teacher's; none for a chain's student.

    `moving_statistics` are those of batch normalisation, `fc1_parameters` those of the first fully connected layer.
    """
    if isinstance(config.student, RefinedSettings):
        return {}
    shape, classes = config.dataset.image_shape, config.dataset.classes
    # Shapes are enough: no memory is filled and nothing is drawn.
    with torch.device("meta"):
        student = build_model(config.student, shape, classes, config.seed)
        teacher = build_model(config.teacher.network(), shape, classes, config.seed)
    layers = {name.rpartition(".")[2]: layer for name, layer in student.named_modules()}
    norms = [layer for layer in student.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    return {
        "parameters": parameter_count(student),
        "moving_statistics": sum(2 * layer.num_features for layer in norms),
        "fc1_parameters": parameter_count(layers["fc1"]) if "fc1" in layers else None,
        "R_c": parameter_ratio(teacher, student),
        "multiplications": multiplications(student, shape),
        "teacher_multiplications": multiplications(teacher, shape),
    }


def with_derived(figures: Mapping[str, Any]) -> Figures:
    """The figures, and those that follow from them.

    Keras counts moving statistics as parameters; `fc1_percent` is a share of these, `multiplications_ratio` how many
    times as many the teacher needs.
    """
    derived: Figures = {}
    if {"parameters", "moving_statistics"} <= figures.keys():
        derived["keras_parameters"] = figures["parameters"] + figures["moving_statistics"]
    if figures.get("fc1_parameters") is not None and derived:
        derived["fc1_percent"] = 100 * figures["fc1_parameters"] / derived["keras_parameters"]
    if figures.get("teacher_multiplications"):
        derived["multiplications_ratio"] = figures["teacher_multiplications"] / figures["multiplications"]
    return {**figures, **derived}
