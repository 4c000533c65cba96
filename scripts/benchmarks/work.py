"""What is measured: the jobs, the variants, and the orders that a worker process is given."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kdx.config.compose import compose_config
from kdx.config.networks import PlainSettings
from kdx.config.schema import Config, TrainerSettings

USUAL = "usual"
REDUCED = "usual-reduced"
VARIANTS = {
    USUAL: "usual way",
    REDUCED: "usual, no block",
    "eager": "kdx eager",
    "compiled": "kdx compiled",
    "compiled-bf16": "compiled, bf16",
}
JOBS = {"t1": "T1 with dropout", "kd": "KD of Le-L", "st-vbd": "ST-VBD of Le-L with BSR"}


def variants_of(job: str, variants: list[str]) -> list[str]:
    """Those of the variants that the job has: without block sparsity there is no block to do without."""
    return [variant for variant in variants if variant != REDUCED or job == "st-vbd"]


@dataclass(frozen=True)
class Order:
    """One variant of one job, as a worker process is told it (`outputs` is where the logit store goes)."""

    job: str
    variant: str
    dataset: str
    threads: int
    batch_size: int
    steps: int | None
    loader_workers: int
    outputs: str

    @property
    def usual(self) -> bool:
        """Whether it is the usual way, in either form."""
        return self.variant in (USUAL, REDUCED)

    @property
    def compiles(self) -> bool:
        """Whether the step is compiled."""
        return self.variant.startswith("compiled")

    def config(self) -> Config:
        """kdx's configuration; the whole training set is trained on, and no checkpoint is written in between."""
        precision = "bf16" if self.variant.endswith("bf16") else "fp32"
        return compose_config(
            [
                f"method={'kd' if self.job == 't1' else self.job}",
                f"dataset={self.dataset}",
                "dataset.validation=0",
                f"outputs='{self.outputs}'",
                "device=cpu",
                f"device.threads={self.threads}",
                f"device.precision={precision}",
                f"device.compile={str(self.compiles).lower()}",
                *(
                    f"{group}.{key}={value}"
                    for group in ("trainer", "teacher.trainer")
                    for key, value in (("batch_size", self.batch_size), ("checkpoint_seconds", 1e9))
                ),
            ]
        )


@dataclass(frozen=True)
class Work:
    """What is trained: the student (T1 itself for `t1`), by which method, with which trainer, under which teacher."""

    student: PlainSettings
    teacher: PlainSettings
    method: dict[str, Any]
    trainer: TrainerSettings

    @staticmethod
    def of(job: str, config: Config) -> "Work":
        """The work of one job under kdx's default settings."""
        teacher, student = config.teacher, config.student
        assert isinstance(teacher, PlainSettings), "the jobs are perceptrons"
        assert isinstance(student, PlainSettings), "the jobs are perceptrons"
        if job != "t1":
            return Work(student, teacher, config.method, config.trainer)
        # As kdx/teacher.py trains it.
        method = {"name": "dropout", "parts": ["labels", "dropout"]}
        method |= {"dropout": teacher.dropout, "input_dropout": teacher.input_dropout}
        return Work(teacher, teacher, method, teacher.trainer)

    def widths(self, inputs: int, classes: int) -> list[int]:
        """The student's layers, inputs and classes included."""
        return [inputs, *self.student.hidden, classes]

    def gflop_per_step(self, inputs: int, classes: int) -> float:
        """The student's matrix products in one step, in units of 1e9 operations: forward and both gradients."""
        widths = self.widths(inputs, classes)
        sizes = [first * second for first, second in pairwise(widths)]
        # The images need no gradient, so the first layer has one product less.
        products = 3 * sum(sizes) - sizes[0]
        moments = 2 if "variational" in self.method["parts"] else 1
        return 2 * self.trainer.batch_size * products * moments / 1e9
