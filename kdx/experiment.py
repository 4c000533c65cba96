"""The story of a run, from top to bottom."""

import logging
from pathlib import Path

from kdx.config import Config
from kdx.data import load_data
from kdx.device import prepare_device
from kdx.fit import Lesson, Plan
from kdx.logits import teacher_logits
from kdx.measure import measure
from kdx.measure.accuracy import mean_logits
from kdx.models import build_model
from kdx.procedures import build
from kdx.results import write_results
from kdx.runs import RunFolder, run_folder
from kdx.teacher import check_teachers, get_teacher
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
    check_teachers(config, method)
    engine = prepare_device(config.device)

    data = load_data(config.dataset).to(engine.device)
    teacher, *further = [get_teacher(each, data, engine) for each in config.for_each_teacher()]
    logits = None
    if method.needs_teacher:
        logits = mean_logits([teacher_logits(each, data, Path(config.outputs)) for each in (teacher, *further)])

    student = build_model(config.student, data.image_shape, data.classes, config.seed)
    plan = Plan(f"{method.name} {config.student.name}", config.trainer, config.seed, folder)
    outcome = procedure.run(student, method, Lesson(data, teacher, logits), plan, engine)

    # What is reported is the file, not the network in memory.
    weights = folder.path / "student.safetensors"
    save_weights(weights, outcome.network)
    student = load_weights(weights, emptied(outcome.network))
    measured = measure(student, teacher, data, engine.device, engine.latency_seconds, further)
    names = {"run_id": folder.path.name, "dataset": data.name, "method": method.name}
    names |= {"teacher": "+".join(each.name for each in config.teachers.values()), "student": config.student.name}
    write_results(plan, names, measured, outcome, engine)
