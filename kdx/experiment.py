"""One run from start to end: data, teachers, training, measurement, results."""

import logging
from pathlib import Path

from torch import nn

from kdx.chain import run_chain
from kdx.checks import check_teachers
from kdx.config.schema import Config
from kdx.data import load_data
from kdx.data.dataset import Data
from kdx.device.backend import Backend, choose_device, prepare_device
from kdx.logits import teacher_logits
from kdx.measure import measure
from kdx.methods import build
from kdx.methods.fit import FitSpec, TrainingInputs
from kdx.methods.iterative_distillation import IterativeDistillation
from kdx.methods.method import Method
from kdx.methods.procedure import FitResult
from kdx.models import initial_network
from kdx.models.ensemble import mean_logits
from kdx.runs.folder import RunFolder, run_folder, teacher_folder
from kdx.runs.identity import packages_record
from kdx.runs.writer import write_results
from kdx.storage.tensors import load_weights, save_weights, template_of
from kdx.teacher import get_teachers

log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """Run the experiment that `config` describes and return its folder; a finished one is left as it is.

    An interrupted run is resumed, `force` repeats a finished one, and a run that another process is working on is
    waited for. Raises UserError for the user's mistakes, Interrupted when stopped from outside, Diverged when the loss
    is no longer finite.
    """
    # Checked even if the run is finished, so that a device which is not there is always an error.
    choose_device(config.device)
    folder = run_folder(config)
    with folder.lock():
        if folder.clear_unless_finished(repeat=config.force):
            log.warning("%s: finished before, skipped (force=true repeats it)", folder.path)
            for line in folder.reservations(config.device.latency_seconds):
                log.warning("%s: %s", folder.path, line)
            return folder.path
        with folder.logged():
            _run(config, folder)
    return folder.path


def _run(config: Config, folder: RunFolder) -> None:
    folder.write_config(config)
    method, procedure = build(config.method)
    check_teachers(config, method)
    if isinstance(procedure, IterativeDistillation):
        # A chain calls `run` for each of its candidates, and collects their results.
        run_chain(config, procedure, folder, run)
        return
    backend = prepare_device(config.device)

    data = load_data(config.dataset).to(backend.device)
    # Before the teachers, so that a student that does not fit is reported before they are trained.
    student = initial_student(config, data)
    procedure.check_network(student, method)
    inputs = load_inputs(config, method, data, backend, trained=not procedure.makes_teacher)
    spec = fit_spec(config, folder)
    outcome = procedure.run(student, method, inputs, spec, backend)
    report(config, spec, outcome, inputs, backend)


def load_inputs(config: Config, method: Method, data: Data, backend: Backend, *, trained: bool) -> TrainingInputs:
    """The data, the teachers (trained first if `trained`), and their mean logits if the method needs them."""
    teacher, *further = get_teachers(config, data, backend, trained=trained)
    logits = None
    if method.needs_teacher:
        logits = mean_logits([teacher_logits(each, data, Path(config.outputs)) for each in (teacher, *further)])
    return TrainingInputs(data, teacher, logits, tuple(further))


def train_teachers(config: Config) -> Path:
    """Train the teachers that `config` describes, unless they are trained; return the first one's folder."""
    backend = prepare_device(config.device)
    data = load_data(config.dataset).to(backend.device)
    get_teachers(config, data, backend, trained=True)
    return teacher_folder(config).path


def initial_student(config: Config, data: Data) -> nn.Module:
    """The student with the weights of `student.checkpoint`, or drawn from the run's seed.

    Raises UserError where the checkpoint does not fit.
    """
    student = config.student
    return initial_network(student, student.checkpoint, data.image_shape, data.classes, config.seed, "student")


def fit_spec(config: Config, folder: RunFolder) -> FitSpec:
    """How the student is trained, and in which folder."""
    title, pretrained = f"{config.method['name']} {config.student.name}", config.student.checkpoint is not None
    return FitSpec(title, config.trainer, config.seed, folder, pretrained=pretrained)


def report(config: Config, spec: FitSpec, outcome: FitResult, inputs: TrainingInputs, backend: Backend) -> None:
    """Save and measure the resulting network, and write the results."""
    # Measured from the saved file, not from the network in memory.
    weights = spec.folder.path / "student.safetensors"
    save_weights(weights, outcome.network)
    student = load_weights(weights, template_of(outcome.network))
    data, teacher = inputs.data, inputs.teacher if outcome.teacher is None else outcome.teacher
    measured = measure(student, teacher, data, backend.device, backend.latency_seconds, inputs.further_teachers)
    names = {"run_id": spec.folder.path.name, "dataset": data.name, "method": config.method["name"]}
    names |= {"teacher": "+".join(each.name for each in config.teachers.values()), "student": config.student.name}
    names |= packages_record(config)
    write_results(spec.folder, names, spec.seed, measured, outcome.progress, outcome.figures, backend.record())
