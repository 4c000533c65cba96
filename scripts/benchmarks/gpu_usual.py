"""The usual way on a GPU, as a user of PyTorch writes it, with a DataLoader's workers; perceptrons are usual.py's."""

import os
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks import usual
from benchmarks.gpu_work import SEED
from kdx.config.networks import PlainSettings
from kdx.config.schema import Config
from kdx.data.dataset import Data
from kdx.models import build_model

WORKERS, WARM_UPS, LEAST_STEPS = 8, 5, 20
TrainingStep = Callable[[Tensor, Tensor], float]


class ByteImages(usual.Images):
    """Images as bytes in memory, in the manner of torchvision's data sets: a PIL image and a transform for each."""

    def __init__(self, data: Data) -> None:
        self.pixels, self.labels = (
            data.train.images.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy(),
            data.train.labels,
        )
        self.transform = transforms.ToTensor()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its label."""
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


def measure(config: Config, data: Data, device: str, seconds: float, steps: int) -> dict[str, Any]:
    """Mean time of a step over some seconds, the waiting for data included; one epoch at most."""
    _as_torch_comes()
    started = time.perf_counter()
    cuda = device == "cuda"
    if cuda:
        # Of what was measured before in this process.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    workers = min(WORKERS, (os.cpu_count() or 1) - 1) if cuda else 0
    loader = DataLoader(
        ByteImages(data), config.trainer.batch_size, shuffle=True, drop_last=True, num_workers=workers, pin_memory=cuda
    )
    step = _step(config, data, device, steps)
    count = setup = 0
    begun = time.perf_counter()
    # A short data set is gone through again.
    for count, (images, labels) in enumerate(_repeated(loader), 1):
        step(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
        if count == min(WARM_UPS, steps):
            begun = time.perf_counter()
            setup = begun - started
        measured = count - min(WARM_UPS, steps)
        if measured >= LEAST_STEPS and time.perf_counter() - begun > seconds:
            break
        if measured >= max(steps, LEAST_STEPS):
            break
    return {
        "models": 1,
        "measured_epochs": None,
        "seconds_per_step": (time.perf_counter() - begun) / (count - min(WARM_UPS, steps)),
        "setup_seconds": setup,
        "evaluation_seconds": 0.0,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "training_seconds": [],
    }


def _repeated(loader: DataLoader):
    while True:
        yield from islice(loader, len(loader))


def _as_torch_comes() -> None:
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False


def _step(config: Config, data: Data, device: str, steps: int) -> TrainingStep:
    teacher = build_model(config.teacher.network(), data.image_shape, data.classes, SEED).to(device).eval()
    if isinstance(config.student, PlainSettings):
        inputs = data.train.images[0].numel()
        student = usual.network([inputs, *config.student.hidden, data.classes], config.method).to(device)
        examples = steps * config.trainer.batch_size
        training = usual.UsualTraining(student, teacher, config.method, config.trainer.lr, examples)
        return lambda images, labels: training.step(images, labels, 0.0)
    student = build_model(config.student, data.image_shape, data.classes, SEED).to(device).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=config.trainer.lr)
    loss_of = _kddp(student, teacher, config.method) if config.method["name"] == "kddp" else _plain(student)

    def step(images: Tensor, labels: Tensor) -> float:
        optimizer.zero_grad()
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _plain(student: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, labels: F.cross_entropy(student(images), labels)


def _kddp(student: nn.Module, teacher: nn.Module, method: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Labels, the teacher's predictions at temperature T and the L1 norm of the hidden activations (KDDP eq. 4)."""
    seen: list[Tensor] = []
    student.get_submodule("fc1_relu").register_forward_hook(lambda layer, inputs, output: seen.append(output))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        seen.clear()
        logits = student(images)
        with torch.no_grad():
            targets = F.softmax(teacher(images) / method["T"], dim=1)
        soft = F.cross_entropy(logits / method["T"], targets)
        hard = F.cross_entropy(logits, labels)
        return (1 - method["alpha"]) * hard + method["alpha"] * soft + method["L1"] * seen[0].abs().sum()

    return loss
