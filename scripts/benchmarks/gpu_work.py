"""What `scripts/benchmark gpu` measures: networks with their methods, and the ways to train them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdx.config.compose import compose_config
from kdx.config.schema import Config
from kdx.data import load_data
from kdx.data.dataset import Data, build_data
from kdx.data.preprocessing import PER_BATCH
from kdx.errors import UserError, one_line
from kdx.methods import build
from kdx.methods.method import Method
from kdx.models import build_model
from kdx.training.noise import NoiseSource
from kdx.training.state import State
from kdx.training.step import Batch, hyperparameter_names, make_step

USUAL, FUSED = "usual", "fused"
WAYS = {
    USUAL: "usual way",
    "eager": "kdx, one by one",
    "graph": "captured",
    "graph-tf32": "captured, tf32",
    "graph-bf16": "captured, bf16",
    FUSED: "captured, 64 together",
    "compiled": "compiled, captured",
    "compiled-bf16": "compiled, captured, bf16",
    "fused-compiled": "compiled, 64 together",
}
TITLES = {
    "t1": "T1 with dropout, MNIST",
    "kd": "KD of Le-L, MNIST",
    "st-vbd": "ST-VBD of Le-L, MNIST",
    "kddp": "KDDP SN_100, CIFAR-10",
    "nin": "NIN, CIFAR-10",
    "vgg19": "VGG-19, CIFAR-10",
}
_WORDS = {
    "t1": ["student=mlp-1200-1200", "method=dropout", "method.dropout=0.5", "method.input_dropout=0.2"],
    "kd": ["method=kd"],
    "st-vbd": ["method=st-vbd"],
    "kddp": ["dataset=cifar10", "student=kddp-sn-100", "method=kddp"],
    "nin": ["dataset=cifar10", "student=nin", "method=vanilla"],
    "vgg19": ["dataset=cifar10", "student=vgg19", "method=vanilla"],
}
BATCH_SIZE, TOGETHER, EPOCHS, SEED = 128, 64, 100, 0
# An epoch of these is cut to so many steps, all of which take as long as each other.
STEPS = {"nin": 150, "vgg19": 80}
# These get time for a hundred epochs, so that what a whole training takes is measured.
WHOLE = {("kd", "graph"), ("st-vbd", "graph")}
WHOLE_SECONDS = 20.0
# A trial has batches of TINY images, two of them in an epoch, and narrow layers.
TINY = 4
_NARROW = {"nin": ["student.width=0.05"], "vgg19": ["student.width=0.02", "student.hidden=[8]"]}
_SIZES = {"mnist": (60000, (1, 28, 28)), "cifar10": (50000, (3, 32, 32))}


@dataclass(frozen=True)
class Order:
    """One job in some of the ways, as a worker process is told it; each way takes about so many seconds."""

    job: str
    ways: list[str]
    device: str
    seconds: float
    tiny: bool
    outputs: str

    def config(self, way: str) -> Config:
        """kdx's configuration; no checkpoint is written on the way."""
        return compose_config(
            [
                *_WORDS[self.job],
                f"outputs='{self.outputs}'",
                f"device={self.device}",
                *(["device.threads=1", "device.gemm=default"] if self.device == "cpu" else []),
                f"device.precision={precision(way)}",
                f"device.graph={'false' if way == 'eager' else 'auto'}",
                f"device.compile={str('compiled' in way).lower()}",
                "dataset.download=false",
                "trainer.checkpoint_seconds=1e9",
                f"trainer.epochs={EPOCHS}",
                f"trainer.batch_size={TINY if self.tiny else BATCH_SIZE}",
                *(["dataset.validation=8", *_NARROW.get(self.job, [])] if self.tiny else []),
            ]
        )

    def seconds_of(self, way: str) -> float:
        """How long a way is measured."""
        return WHOLE_SECONDS if (self.job, way) in WHOLE and not self.tiny else self.seconds

    @property
    def models(self) -> int:
        """How many are trained together, where several are."""
        return 3 if self.tiny else TOGETHER


def precision(way: str) -> str:
    """`device.precision` of a way."""
    last = way.rpartition("-")[2]
    return last if last in ("tf32", "bf16") else "fp32"


def data_of(config: Config, *, tiny: bool) -> tuple[Data, str | None]:
    """The data, and why it is synthetic where it is: random bytes of the same shape."""
    if tiny:
        return _random_data(config, 2 * TINY + config.dataset.validation, 16), "a trial"
    try:
        return load_data(config.dataset), None
    except UserError as absent:
        return _random_data(config, _SIZES[config.dataset.name][0], 10000), one_line(absent)


def _random_data(config: Config, training: int, test: int) -> Data:
    generator = torch.Generator().manual_seed(SEED)
    shape = _SIZES[config.dataset.name][1]

    def samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
        return pixels, torch.arange(count) % 10

    chosen = PER_BATCH[config.dataset.preprocessing]
    return build_data(config.dataset, samples(training), samples(test), chosen)


def steps_of(order: Order, data: Data) -> tuple[int, int]:
    """The steps of a whole epoch, and those that are measured."""
    whole = len(data.train) // (TINY if order.tiny else BATCH_SIZE)
    return whole, min(whole, STEPS.get(order.job, whole))


def gflop_per_step(config: Config, data: Data) -> float:
    """The student's matrix products and convolutions in one step, forward and backward, in units of 1e9 operations.

    Counted on tensors without numbers.
    """
    batch_size = config.trainer.batch_size
    with torch.device("meta"):
        method = build(config.method)[0]
        student = method.prepare(build_model(config.student, data.image_shape, data.classes, SEED))
        teacher = build_model(config.teacher.network(), data.image_shape, data.classes, SEED)
        objective = method.objective(student, teacher, len(data.train))
        images = torch.empty(batch_size, *data.image_shape)
        noise = NoiseSource(student, images, torch.Generator("cpu"), objective.noise_specs).buffers
        logits = torch.empty(batch_size, data.classes)
        batch = Batch(images, torch.empty(batch_size, dtype=torch.int64), logits)
        row = torch.ones(len(hyperparameter_names(objective)))
        state = State.of(student, len(objective.terms), objective.langevin)
        step = make_step(student, objective, eager=False, autocast=None)
        with FlopCounterMode(display=False) as counter:
            step(state, batch, noise, row)
    return counter.get_total_flops() / 1e9


def variants(method: dict[str, Any], count: int) -> list[Method]:
    """Methods that differ in numbers only, as those of a sweep do."""
    chosen = []
    for index in range(count):
        own = {"T": 1.0 + index % 8} if "T" in method else {}
        if "lambda_V" in method:
            own["lambda_V"] = 0.5 + index // 8
        elif "lambda_T" in method:
            own["lambda_T"] = 0.2 + 0.2 * (index // 8)
        chosen.append(build(method | own)[0])
    return chosen
