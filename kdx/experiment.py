"""The story of a run, from top to bottom."""

import logging
from pathlib import Path

from kdx.chain import run_chain
from kdx.config import Config
from kdx.data import load_data
from kdx.device import prepare_device
from kdx.fit import Lesson, Plan
from kdx.logits import teacher_logits
from kdx.measure import measure
from kdx.models import build_model
from kdx.models.settings import RefinedSettings
from kdx.procedures import build
from kdx.procedures.chain import Chain
from kdx.results import write_results
from kdx.runs import RunFolder, run_folder
from kdx.teacher import get_teacher, initial_teacher
from kdx.weights import emptied, load_weights, save_weights

log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """Run the experiment that `config` describes and give its folder; a finished one is left as it is.

    An interrupted run is continued, `force` repeats a finished one, and a run that another process is working on is
    waited for. Raises UserError for the user's mistakes, Interrupted when stopped from outside, Diverged when the
    loss is no longer finite.
    """
    folder = run_folder(config)
    with folder.lock():
        if folder.finished and not config.force:
            log.warning("%s: finished before, skipped (force=true repeats it)", folder.path)
            return folder.path
        if folder.finished:
            folder.clear()
        with folder.logged():
            _run(config, folder)
    return folder.path


def _run(config: Config, folder: RunFolder) -> None:
    folder.write_config(config)
    method, procedure = build(config.method)
    if isinstance(procedure, Chain):
        # Several runs, each of them told below, and their results as one.
        run_chain(config, procedure, folder, run)
        return
    engine = prepare_device(config.device)

    data = load_data(config.dataset).to(engine.device)
    assert not isinstance(config.student, RefinedSettings), "Config allows it with a chain only"
    # Before the teacher, so that a file that does not fit is told before a long training.
    student = build_model(config.student, data.image_shape, data.classes, config.seed)
    checkpoint = config.student.checkpoint
    if checkpoint is not None:
        load_weights(Path(checkpoint), student, "student.checkpoint")
    procedure.check_network(student, method)
    teacher = (initial_teacher if procedure.makes_teacher else get_teacher)(config, data, engine)
    logits = teacher_logits(teacher, data, Path(config.outputs)) if method.needs_teacher else None

    title = f"{method.name} {config.student.name}"
    plan = Plan(title, config.trainer, config.seed, folder, pretrained=checkpoint is not None)
    outcome = procedure.run(student, method, Lesson(data, teacher, logits), plan, engine)

    # What is reported is the file, not the network in memory.
    weights = folder.path / "student.safetensors"
    save_weights(weights, outcome.network)
    student = load_weights(weights, emptied(outcome.network))
    teacher = teacher if outcome.teacher is None else outcome.teacher
    measured = measure(student, teacher, data, engine.device, engine.latency_seconds)
    names = {"run_id": folder.path.name, "dataset": data.name, "method": method.name}
    names |= {"teacher": config.teacher.name, "student": config.student.name}
    write_results(plan, names, measured, outcome, engine)
