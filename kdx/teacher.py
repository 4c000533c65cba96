"""The teachers: each is trained once for all runs that need the same one, or loaded from a checkpoint."""

import logging
from pathlib import Path

from torch import nn

from kdx.config.schema import Config
from kdx.data.dataset import Data
from kdx.device.backend import Backend
from kdx.errors import UserError
from kdx.measure import measure
from kdx.methods.distillation import CrossEntropy
from kdx.methods.dropout import Dropout
from kdx.methods.fit import FitSpec, TrainingInputs
from kdx.methods.method import Method
from kdx.methods.procedure import SingleFit
from kdx.models import build_model, initial_network
from kdx.runs.folder import teacher_folder
from kdx.runs.identity import packages_record
from kdx.runs.writer import write_results
from kdx.storage.tensors import load_weights, save_weights, template_of

log = logging.getLogger(__name__)


def get_teachers(config: Config, data: Data, backend: Backend, *, trained: bool) -> list[nn.Module]:
    """All teachers of `config`, the first one first; with their initial weights if `trained` is false."""
    get = get_teacher if trained else initial_teacher
    return [get(each, data, backend) for each in config.for_each_teacher()]


def get_teacher(config: Config, data: Data, backend: Backend) -> nn.Module:
    """The first teacher that `config` describes, as a plain network on the device.

    It is loaded from `teacher.checkpoint` or from its folder under `outputs/teachers/`, or trained and saved there, by
    one process at a time. Raises UserError if the checkpoint does not fit.
    """
    blank = initial_teacher(config, data, backend)
    if config.teacher.checkpoint is not None:
        return blank
    folder = teacher_folder(config)
    weights = folder.path / "teacher.safetensors"
    with folder.lock():
        if folder.clear_unless_finished():
            for line in folder.reservations():
                log.warning("teacher %s: %s; delete the folder to train it again", folder.path, line)
            try:
                return load_weights(weights, blank)
            except UserError as error:
                log.warning("%s; the teacher is trained again", error)
        with folder.logged():
            return _train(config, data, backend, weights)


def initial_teacher(config: Config, data: Data, backend: Backend) -> nn.Module:
    """The teacher before training, on the device: with the weights of `teacher.checkpoint`, or drawn from its seed.

    Raises UserError if the checkpoint does not fit.
    """
    settings = config.teacher
    shape = data.image_shape
    return backend.to_device(
        initial_network(settings, settings.checkpoint, shape, data.classes, settings.seed, "teacher")
    )


def _train(config: Config, data: Data, backend: Backend, weights: Path) -> nn.Module:
    settings, folder = config.teacher, teacher_folder(config)
    network = build_model(settings, data.image_shape, data.classes, settings.seed)
    method = Method(
        "dropout", (CrossEntropy(), Dropout(dropout=settings.dropout, input_dropout=settings.input_dropout))
    )
    spec = FitSpec(f"teacher {settings.name}", settings.trainer, settings.seed, folder)
    folder.write_config(config)
    outcome = SingleFit().run(network, method, TrainingInputs(data), spec, backend)
    save_weights(weights, outcome.network)
    teacher = load_weights(weights, template_of(outcome.network))
    names = {"run_id": folder.path.name, "dataset": data.name, "method": method.name, "teacher": None}
    names |= {"student": settings.name, **packages_record(config, "dataset", "teacher")}
    measured = measure(teacher, None, data, backend.device, backend.latency_seconds)
    write_results(folder, names, settings.seed, measured, outcome.progress, outcome.figures, backend.record())
    return teacher
