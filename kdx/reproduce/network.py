"""The figures of a row that need no training: they follow from the networks."""

from torch import nn

from kdx.config import IMAGE_SHAPES, Config
from kdx.measure.footprint import parameter_count, parameter_ratio, weight_matrices
from kdx.measure.multiplications import multiplications
from kdx.models import build_model
from kdx.models.settings import RefinedSettings

Figures = dict[str, float | int | None]
CLASSES = 10


def network_figures(config: Config) -> Figures:
    """Parameters and multiplications of the student, alone and beside the teacher's; none for a chain's student.

    `keras_parameters` counts the moving statistics of batch normalisation too, four numbers per channel in all.
    `fc1_parameters` are those of the student's first fully connected layer, `fc1_percent` their share as Keras counts.
    """
    if isinstance(config.student, RefinedSettings):
        return {}
    shape = IMAGE_SHAPES[config.dataset.name]
    student = build_model(config.student, shape, CLASSES, config.seed)
    teacher = build_model(config.teacher.network(), shape, CLASSES, config.seed)
    own, its = multiplications(student, shape), multiplications(teacher, shape)
    keras, fc1 = keras_parameters(student), _fc1_parameters(student)
    return {
        "parameters": parameter_count(student),
        "keras_parameters": keras,
        "fc1_parameters": fc1,
        "fc1_percent": None if fc1 is None else 100 * fc1 / keras,
        "weights": sum(weight.numel() for weight in weight_matrices(student).values()),
        "R_c": parameter_ratio(teacher, student),
        "multiplications": own,
        "teacher_multiplications": its,
        "multiplications_ratio": its / own,
    }


def keras_parameters(network: nn.Module) -> int:
    """Trained parameters and moving statistics."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    return parameter_count(network) + sum(2 * layer.num_features for layer in norms)


def _fc1_parameters(network: nn.Module) -> int | None:
    layers = {name.rpartition(".")[2]: layer for name, layer in network.named_modules()}
    fc1 = layers.get("fc1")
    return parameter_count(fc1) if isinstance(fc1, nn.Linear) else None
