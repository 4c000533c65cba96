"""The typed schema of `conf/`, the checks between its fields, and the ids that name runs and teachers."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

from kdx.data.settings import DatasetSettings
from kdx.errors import UserError
from kdx.explain import settings_from
from kdx.files import sha256_of
from kdx.models.settings import Count, DropoutRate, NetworkSettings, RefinedSettings, Student, network_of
from kdx.registry import DATASETS, MODELS, PARTS, PROCEDURES, Package
from kdx.settings import Settings

# Part of every id: raise it when a change of the program makes old runs another experiment.
FORMAT = 2
WITHOUT_EFFECT = ("device", "outputs", "force", "sweep")
PLACE_OF_DATA = ("root", "download")
"""The groups, and the settings of a data set, that cannot change a result."""

# As far as torch's generators go, which take whole numbers of 64 bits with a sign.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class TrainerSettings(Settings):
    """One fit: its length, its batches and its learning rate, constant for the fraction `hold`, then falling to 0.

    With `patience` it ends after so many epochs without a lower validation error, and the best epoch's weights are
    taken.
    """

    epochs: Count
    batch_size: Count
    lr: Annotated[float, Field(gt=0)]
    hold: Fraction
    patience: Count | None
    checkpoint_seconds: Annotated[float, Field(ge=0)]


class Recipe(Settings):
    """What trains the teacher's network, or the checkpoint that replaces the training."""

    checkpoint: str | None
    seed: Seed
    dropout: DropoutRate
    input_dropout: DropoutRate
    trainer: TrainerSettings


class Teacher(NetworkSettings, Recipe):
    """The network of a teacher, and its recipe beside it."""

    def network(self) -> NetworkSettings:
        """The network alone, without what trains it."""
        return network_of(self.model_dump(exclude=set(Recipe.model_fields)), NetworkSettings, "teacher")


def _dataset(content: Any, info: ValidationInfo) -> Any:
    if not isinstance(content, dict):
        return content
    key = str(info.field_name)
    if "name" not in content:
        raise UserError(f"{key}.name: no value is given")
    return settings_from(DATASETS.find(content["name"], f"{key}.name"), content, key)


def _teacher(content: Any, info: ValidationInfo) -> Any:
    return network_of(content, Teacher, str(info.field_name)) if isinstance(content, dict) else content


def _further_teacher(content: Any, info: ValidationInfo) -> Any:
    # Hydra composes the choice `none` into an empty group.
    return _teacher(content, info) if content else None


def _student(content: Any, info: ValidationInfo) -> Any:
    return network_of(content, Student, str(info.field_name)) if isinstance(content, dict) else content


class DeviceSettings(Settings):
    """Where and how the arithmetic runs; no part of the experiment's identity."""

    kind: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count | None
    precision: Literal["fp32", "tf32", "bf16"]
    gemm: Literal["auto", "default", "onednn"]
    compile: Literal["auto"] | bool
    # Runs from before the key was there are read too.
    graph: Literal["auto"] | bool = "auto"
    latency_seconds: Annotated[float, Field(ge=0, le=3600)]


class SweepSettings(Settings):
    """What holds for all jobs of a sweep together; no part of the experiment's identity."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")] | None
    fail_fast: bool


def _named(method: dict[str, Any]) -> dict[str, Any]:
    name, parts = method.get("name"), method.get("parts")
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise ValueError(f"method.name must be a text that can name a folder; it is {name!r}")
    if not isinstance(method.get("procedure", "once"), str):
        raise ValueError(f"method.procedure must be a name; it is {method['procedure']!r}")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"method.parts must be a list of names; it is {parts!r}")
    return method


class Config(Settings):
    """The whole configuration of a run; the fields of `method` belong to its parts, which check them themselves."""

    dataset: Annotated[SerializeAsAny[DatasetSettings], BeforeValidator(_dataset)]
    teacher: Annotated[SerializeAsAny[Teacher], BeforeValidator(_teacher)]
    student: Annotated[SerializeAsAny[Student], BeforeValidator(_student)]
    trainer: TrainerSettings
    method: Annotated[dict[str, Any], AfterValidator(_named)]
    device: DeviceSettings
    teacher2: Annotated[SerializeAsAny[Teacher] | None, BeforeValidator(_further_teacher)]
    teacher3: Annotated[SerializeAsAny[Teacher] | None, BeforeValidator(_further_teacher)]
    seed: Seed
    force: bool
    outputs: Annotated[str, StringConstraints(min_length=1)]
    sweep: SweepSettings

    @property
    def teachers(self) -> dict[str, Teacher]:
        """The teachers by key, the first one first; `teacher2` and `teacher3` only where they are chosen."""
        further = {"teacher2": self.teacher2, "teacher3": self.teacher3}
        return {"teacher": self.teacher} | {key: teacher for key, teacher in further.items() if teacher is not None}

    def for_each_teacher(self) -> list["Config"]:
        """This configuration once for each teacher, with that one as its only one."""
        alone = {"teacher2": None, "teacher3": None}
        return [self.model_copy(update={**alone, "teacher": teacher}) for teacher in self.teachers.values()]

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        """Every check that needs more than one group; the message names both keys."""
        if self.device.kind in ("cpu", "mps") and self.device.precision == "tf32":
            raise ValueError(
                f"device.precision: 'tf32' is not allowed with device.kind={self.device.kind}, only with cuda;"
                " allowed: fp32, bf16"
            )
        if self.device.kind in ("cpu", "mps") and self.device.graph is True:
            raise ValueError(
                f"device.graph: true is not allowed with device.kind={self.device.kind}, only with cuda; allowed: auto,"
                " false"
            )
        trainers = {f"{key}.trainer": teacher.trainer for key, teacher in self.teachers.items()}
        trainers["trainer"] = self.trainer
        for key, trainer in trainers.items():
            if trainer.patience is not None and not self.dataset.validation:
                raise ValueError(
                    f"{key}.patience: {trainer.patience} is not allowed with dataset.validation=0, which leaves no"
                    " validation error to wait for; allowed: null"
                )
        networks: dict[str, NetworkSettings] = {**self.teachers, "student": self.student}
        for role, network in networks.items():
            (height, width), least = self.dataset.image_shape[1:], network.smallest_side
            if min(height, width) < least:
                raise ValueError(
                    f"{role}.{network.sized_by}: {getattr(network, network.sized_by)} is not allowed with"
                    f" dataset={self.dataset.name}; it needs images of at least {least}x{least} pixels, these have"
                    f" {height}x{width}"
                )
        self._check_chain()
        self._teachers_differ()
        return self

    def _check_chain(self) -> None:
        for key, teacher in self.teachers.items():
            if isinstance(teacher, RefinedSettings):
                raise ValueError(
                    f"{key}.family: 'refined' is not allowed, since it is made of a teacher; allowed: another family"
                )
        name, chained = self.method["name"], self.method.get("procedure") == "chain"
        if chained == isinstance(self.student, RefinedSettings):
            return
        if chained:
            raise ValueError(
                f"student: '{self.student.name}' is not allowed with method={name}, whose students are the teacher's"
                " network made smaller; allowed: refined"
            )
        raise ValueError(
            f"student: '{self.student.name}' is not allowed with method={name}, only with a chain of runs; allowed:"
            " any other student, or method=ikd"
        )

    def _teachers_differ(self) -> None:
        for (key, teacher), (other, same) in combinations(self.teachers.items(), 2):
            if teacher == same:
                raise ValueError(
                    f"{other}: '{same.name}' is not allowed, since it is the very same as {key}; allowed: another"
                    f" network or recipe, such as {other}.seed={same.seed + 1}"
                )


def packages_record(config: Config, *groups: str) -> dict[str, str]:
    """`packages` as in metrics.json, if any: names and versions of those whose code these groups (or all) use.

    kdx says with FORMAT when its code makes another experiment of the same settings; of a package only its version can.
    """
    code = {"dataset": [DATASETS.package(config.dataset.name)], "method": list(_method_packages(config.method))}
    networks: dict[str, NetworkSettings] = {**config.teachers, "student": config.student}
    code |= {key: [MODELS.package(network.family)] for key, network in networks.items()}
    used = {str(package) for key in groups or code for package in code[key] if package}
    return {"packages": ", ".join(sorted(used))} if used else {}


def _method_packages(method: Mapping[str, Any]) -> Iterator[Package | None]:
    """Also of a method within the method, such as that which prunes a chain."""
    yield PROCEDURES.package(method.get("procedure", "once"))
    for name in method["parts"]:
        yield PARTS.package(name)
    for value in method.values():
        if isinstance(value, Mapping) and "parts" in value:
            yield from _method_packages(value)


def run_id(config: Config) -> str:
    """Twelve hexadecimal digits that name the experiment: equal for equal experiments, wherever and however run."""
    return _digest({**_identity(config), "format": FORMAT})


def teacher_id(config: Config) -> str:
    """The same for the first teacher, which depends on its own settings and the data set's only."""
    identity = _identity(config)
    own = {"teacher": identity["teacher"], "dataset": identity["dataset"]}
    return _digest({**own, **packages_record(config, *own), "format": FORMAT})


def sweep_id(configs: Iterable[Config]) -> str:
    """The same for a sweep: equal where the runs are, however they are written, ordered or launched."""
    return _digest({"runs": sorted({run_id(config) for config in configs})})


def changes_result(key: str) -> bool:
    """Whether a setting, or a group, of this dotted key can change a run's result, and so its id."""
    group, _, rest = key.partition(".")
    return not (group in WITHOUT_EFFECT or (group == "dataset" and rest in PLACE_OF_DATA) or _is_pace(rest))


def words_id(words: Iterable[str]) -> str:
    """The same for settings that several runs have in common, as they are typed, in whatever order."""
    return _digest({"words": sorted(words)})


def _identity(config: Config) -> dict[str, Any]:
    """The configuration without what cannot change a result, and with files of weights replaced by their content."""
    exclude: dict[str, Any] = dict.fromkeys(WITHOUT_EFFECT, True)
    exclude["dataset"] = dict.fromkeys(PLACE_OF_DATA, True)
    content = config.model_dump(mode="json", exclude=exclude)
    # A run of one teacher is what it was before there could be more.
    for key in ("teacher2", "teacher3"):
        if content[key] is None:
            del content[key]
    for key, teacher in config.teachers.items():
        if teacher.checkpoint is not None:
            content[key]["checkpoint"] = _checkpoint_sha256(key, Path(teacher.checkpoint))
    # Runs from before students had the key keep their ids.
    if config.student.checkpoint is None:
        del content["student"]["checkpoint"]
    else:
        content["student"]["checkpoint"] = _checkpoint_sha256("student", Path(config.student.checkpoint))
    return _canonical({**content, **packages_record(config)})


def _checkpoint_sha256(key: str, checkpoint: Path) -> str:
    if not checkpoint.is_file():
        raise UserError(f"{key}.checkpoint: '{checkpoint}' is not a file; allowed: a .safetensors file or null")
    return sha256_of(checkpoint)


def _canonical(content: Any) -> Any:
    """One spelling for one value: 2.0 becomes 2; how often a checkpoint is written is left out."""
    match content:
        case dict():
            return {key: _canonical(value) for key, value in content.items() if not _is_pace(key)}
        case list():
            return [_canonical(value) for value in content]
        case float() if content.is_integer():
            return int(content)
        case _:
            return content


def _is_pace(key: str) -> bool:
    """Whether the key, without its group or groups, says how often a checkpoint is written."""
    return key.rpartition(".")[2] == "checkpoint_seconds"


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
