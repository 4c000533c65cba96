"""The typed schema of `conf/`, and the checks across its groups."""

from itertools import combinations
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

from kdx.config.base import Count, DropoutRate, Settings
from kdx.config.datasets import DATASETS, DatasetSettings
from kdx.config.networks import NetworkSettings, RefinedSettings, Student, network_of
from kdx.config.validation import settings_from
from kdx.errors import UserError

# The largest seed of torch's generators, which take signed 64-bit integers.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class TrainerSettings(Settings):
    """One fit: epochs, batch size, learning rate schedule and optimizer.

    With `patience` training stops after that many epochs without a lower validation error, and the best epoch's weights
    are kept; with `average` the running average of the weights is evaluated and kept instead of the weights.
    """

    epochs: Count
    batch_size: Count
    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["hold", "one-cycle"] = "hold"
    hold: Fraction
    peak: Fraction = 0.3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: Count | None
    checkpoint_seconds: Annotated[float, Field(ge=0)]

    def unused_settings(self) -> dict[str, str]:
        """The fields without effect beside the value of another one, each with that other setting as it is typed."""
        of_schedule = {"one-cycle": {"hold": "schedule=one-cycle"}, "hold": {"peak": "schedule=hold"}}
        return of_schedule[self.schedule] | ({"momentum": "optimizer=adam"} if self.optimizer == "adam" else {})


class Recipe(Settings):
    """How the teacher's network is trained, or the checkpoint that replaces training."""

    checkpoint: str | None
    seed: Seed
    dropout: DropoutRate
    input_dropout: DropoutRate
    trainer: TrainerSettings


class Teacher(NetworkSettings, Recipe):
    """The network of a teacher, and how it is trained."""

    def network(self) -> NetworkSettings:
        """The network's settings without those of its training."""
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
    """Where and how the arithmetic runs; of these, only `precision` is part of a run's id."""

    kind: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count | None
    precision: Literal["fp32", "tf32", "bf16"]
    gemm: Literal["auto", "default", "onednn"]
    compile: Literal["auto"] | bool
    graph: Literal["auto"] | bool = "auto"
    latency_seconds: Annotated[float, Field(ge=0, le=3600)]


class SweepSettings(Settings):
    """Settings of a sweep as a whole; no part of a run's id."""

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
    """The whole configuration of a run; the fields of `method` belong to its parts, which validate them."""

    dataset: Annotated[SerializeAsAny[DatasetSettings], BeforeValidator(_dataset)]
    teacher: Annotated[SerializeAsAny[Teacher], BeforeValidator(_teacher)]
    student: Annotated[SerializeAsAny[Student], BeforeValidator(_student)]
    trainer: TrainerSettings
    method: Annotated[dict[str, Any], AfterValidator(_named)]
    device: DeviceSettings
    teacher2: Annotated[SerializeAsAny[Teacher] | None, BeforeValidator(_further_teacher)] = None
    teacher3: Annotated[SerializeAsAny[Teacher] | None, BeforeValidator(_further_teacher)] = None
    seed: Seed
    force: bool
    outputs: Annotated[str, StringConstraints(min_length=1)]
    sweep: SweepSettings

    @property
    def teachers(self) -> dict[str, Teacher]:
        """The teachers by key, the first one first; `teacher2` and `teacher3` only if they are chosen."""
        further = {"teacher2": self.teacher2, "teacher3": self.teacher3}
        return {"teacher": self.teacher} | {key: teacher for key, teacher in further.items() if teacher is not None}

    @property
    def trainers(self) -> dict[str, TrainerSettings]:
        """The trainers of teachers and student by key, the student's last."""
        return {f"{key}.trainer": teacher.trainer for key, teacher in self.teachers.items()} | {"trainer": self.trainer}

    def unused_settings(self) -> dict[str, str]:
        """The trainers' keys without effect, each with the reason."""
        of_each = {key: trainer.unused_settings() for key, trainer in self.trainers.items()}
        return {f"{key}.{name}": f"{key}.{why}" for key, idle in of_each.items() for name, why in idle.items()}

    def for_each_teacher(self) -> list["Config"]:
        """This configuration once per teacher, with that teacher as its only one."""
        alone = {"teacher2": None, "teacher3": None}
        return [self.model_copy(update={**alone, "teacher": teacher}) for teacher in self.teachers.values()]

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        """All checks that involve more than one group; the message names both keys."""
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
        for key, trainer in self.trainers.items():
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


class FusedSettings(Settings):
    """`hydra.launcher.*`: how many models are trained together at most, and how they are executed.

    `max_models` null means as many as fit in memory. `way` `stacked` makes one program of all models, `loop` steps one
    after another, and `auto` measures which is faster.
    """

    max_models: Annotated[int, Field(ge=1)] | None
    way: Literal["auto", "stacked", "loop"]
