"""The student before training."""

from pathlib import Path

from torch import nn

from kdx.config import Config
from kdx.data.dataset import Data
from kdx.models import build_model
from kdx.models.settings import RefinedSettings
from kdx.weights import load_weights


def initial_student(config: Config, data: Data) -> nn.Module:
    """The student with the weights of `student.checkpoint`, or with random ones drawn from the run's seed.

    Raises UserError if the checkpoint does not fit.
    """
    settings = config.student
    assert not isinstance(settings, RefinedSettings), "Config allows it with a chain only"
    student = build_model(settings, data.image_shape, data.classes, config.seed)
    if settings.checkpoint is None:
        return student
    return load_weights(Path(settings.checkpoint), student, "student.checkpoint")
