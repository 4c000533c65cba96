"""The typed schema of `conf/`, the checks between its fields, and the ids that name runs and teachers."""

import hashlib
import json
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, TypeAdapter, model_validator

from kdx.data.settings import DatasetSettings
from kdx.errors import UserError
from kdx.files import sha256_of
from kdx.models.settings import (
    ConvnetSettings,
    Count,
    DensenetSettings,
    DropoutRate,
    KddpSettings,
    KerasResnetSettings,
    Network,
    NetworkSettings,
    PlainSettings,
    RefinedSettings,
    ResnetSettings,
    Student,
)
from kdx.settings import Settings

# Part of every id: raise it when a change of the program makes old runs another experiment.
FORMAT = 2

# (C, H, W) of each data set's images.
IMAGE_SHAPES = {"mnist": (1, 28, 28), "digits": (1, 28, 28), "cifar10": (3, 32, 32), "svhn": (3, 32, 32)}

Seed = Annotated[int, Field(ge=0)]
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

    def network(self) -> Network:
        """The network alone, without what trains it."""
        content = self.model_dump(exclude=set(Recipe.model_fields))
        return TypeAdapter[Network](Annotated[Network, Field(discriminator="family")]).validate_python(content)


# The teacher's group is one level deep: a network of any family, and the recipe beside it.
class _Plain(PlainSettings, Recipe): ...


class _Convnet(ConvnetSettings, Recipe): ...


class _Resnet(ResnetSettings, Recipe): ...


class _Densenet(DensenetSettings, Recipe): ...


class _KerasResnet(KerasResnetSettings, Recipe): ...


class _Kddp(KddpSettings, Recipe): ...


Teacher = Annotated[_Plain | _Convnet | _Resnet | _Densenet | _KerasResnet | _Kddp, Field(discriminator="family")]
# Hydra composes the choice `none` into an empty group.
FurtherTeacher = Annotated[Teacher | None, BeforeValidator(lambda content: content or None)]


class DeviceSettings(Settings):
    """Where and how the arithmetic runs; no part of the experiment's identity."""

    kind: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count | None
    precision: Literal["fp32", "tf32", "bf16"]
    gemm: Literal["auto", "default", "onednn"]
    compile: Literal["auto"] | bool
    latency_seconds: Annotated[float, Field(ge=0)]


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

    dataset: Annotated[DatasetSettings, Field(discriminator="name")]
    teacher: Teacher
    student: Student
    trainer: TrainerSettings
    method: Annotated[dict[str, Any], AfterValidator(_named)]
    device: DeviceSettings
    teacher2: FurtherTeacher
    teacher3: FurtherTeacher
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
            side, least = IMAGE_SHAPES[self.dataset.name][1], network.smallest_side
            if side < least:
                raise ValueError(
                    f"{role}.{network.sized_by}: {getattr(network, network.sized_by)} is not allowed with"
                    f" dataset={self.dataset.name}; it needs images of at least {least}x{least} pixels, these have"
                    f" {side}x{side}"
                )
        self._check_chain()
        self._teachers_differ()
        return self

    def _check_chain(self) -> None:
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


def run_id(config: Config) -> str:
    """Twelve hexadecimal digits that name the experiment: equal for equal experiments, wherever and however run."""
    return _digest({**_identity(config), "format": FORMAT})


def teacher_id(config: Config) -> str:
    """The same for the first teacher, which depends on its own settings and the data set's only."""
    identity = _identity(config)
    return _digest({"teacher": identity["teacher"], "dataset": identity["dataset"], "format": FORMAT})


def sweep_id(configs: Iterable[Config]) -> str:
    """The same for a sweep: equal where the runs are, however they are written, ordered or launched."""
    return _digest({"runs": sorted({run_id(config) for config in configs})})


def _identity(config: Config) -> dict[str, Any]:
    """The configuration without what cannot change a result, and with files of weights replaced by their content."""
    content = config.model_dump(
        mode="json",
        exclude={
            **dict.fromkeys(("device", "outputs", "force", "sweep"), True),
            "dataset": {"root": True, "download": True},
        },
    )
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
    return _canonical(content)


def _checkpoint_sha256(key: str, checkpoint: Path) -> str:
    if not checkpoint.is_file():
        raise UserError(f"{key}.checkpoint: '{checkpoint}' is not a file; allowed: a .safetensors file or null")
    return sha256_of(checkpoint)


def _canonical(content: Any) -> Any:
    """One spelling for one value: 2.0 becomes 2; how often a checkpoint is written is left out."""
    match content:
        case dict():
            return {key: _canonical(value) for key, value in content.items() if key != "checkpoint_seconds"}
        case list():
            return [_canonical(value) for value in content]
        case float() if content.is_integer():
            return int(content)
        case _:
            return content


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
