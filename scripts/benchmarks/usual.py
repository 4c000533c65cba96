"""The usual way: these trainings as a user of PyTorch writes them from the papers. What kdx is measured against.

A data set with a transform per sample and a DataLoader, modules run eagerly, the teacher's forward pass in every step,
noise drawn inside the layers, the block of VS eq. 8 padded and concatenated in every step, and the optimiser as it
comes. The losses are exactly kdx's: tests/unit/scripts/test_benchmarks.py compares them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from kdx.config.datasets import DatasetSettings
from kdx.data import load_data
from kdx.data.download import fetch_files
from kdx.data.mnist import SOURCES

Images = Dataset[tuple[Tensor, int]]


class VariationalLinear(nn.Linear):
    """A linear layer with weights N(weight, exp(log_sigma2)), sampled by local reparametrisation."""

    def __init__(self, inputs: int, outputs: int, log_sigma2: float) -> None:
        super().__init__(inputs, outputs)
        self.log_sigma2 = nn.Parameter(torch.full_like(self.weight, log_sigma2))

    def forward(self, input: Tensor) -> Tensor:
        """A sample of the outputs."""
        mean = F.linear(input, self.weight, self.bias)
        deviation = torch.sqrt(F.linear(input**2, torch.exp(self.log_sigma2)) + 1e-8)
        return mean + deviation * torch.randn_like(mean)

    def kl(self) -> Tensor:
        """VS eq. 7, summed over the weights."""
        log_alpha = torch.clamp(self.log_sigma2 - torch.log(self.weight**2 + 1e-8), -8, 8)
        return 0.5 * torch.log1p(torch.exp(-log_alpha)).sum()


def network(widths: list[int], method: Mapping[str, Any]) -> nn.Sequential:
    """A multilayer perceptron of these widths, inputs and classes included, with the method's layers."""

    def linear(inputs: int, outputs: int) -> nn.Linear:
        if "variational" in method:
            return VariationalLinear(inputs, outputs, method["log_sigma2_init"])
        return nn.Linear(inputs, outputs)

    layers: list[nn.Module] = [nn.Flatten()]
    if method.get("input_dropout"):
        layers.append(nn.Dropout(method["input_dropout"]))
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [linear(inputs, outputs), nn.ReLU()]
        if method.get("dropout"):
            layers.append(nn.Dropout(method["dropout"]))
    return nn.Sequential(*layers, linear(*widths[-2:]))


def distillation_loss(logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """VS eq. 5, as KL(teacher||student)."""
    divergence = F.kl_div(F.log_softmax(logits / T, 1), F.softmax(teacher_logits / T, 1), reduction="batchmean")
    return 2 * T**2 * divergence


def block_norm(student: nn.Module, teacher: nn.Module) -> Tensor:
    """VS eqs. 8 to 10: the l1/l-infinity norm of all weight matrices of both, zero-padded to one size and put together.

    Of the ways to write it that were tried, this is the fastest: |w| before padding, and `max` rather than `amax`,
    whose gradient visits the whole block.
    """
    weights = [weight.abs() for weight in _matrices(student, teacher)]
    rows, columns = max(weight.shape[0] for weight in weights), max(weight.shape[1] for weight in weights)
    padded = [F.pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0])) for weight in weights]
    return torch.cat(padded, dim=1).max(dim=1).values.sum()


def reduced_block_norm(student: nn.Module, teacher: nn.Module) -> Tensor:
    """The same without the block, as a user may find: each matrix's maxima first, and only these padded."""
    maxima = [weight.abs().amax(dim=1) for weight in _matrices(student, teacher)]
    rows = max(len(vector) for vector in maxima)
    return torch.stack([F.pad(vector, (0, rows - len(vector))) for vector in maxima]).amax(dim=0).sum()


def _matrices(student: nn.Module, teacher: nn.Module) -> list[Tensor]:
    return [layer.weight for one in (teacher, student) for layer in one.modules() if isinstance(layer, nn.Linear)]


BlockNorm = Callable[[nn.Module, nn.Module], Tensor]


class UsualTraining:
    """A network under training; `method` are the settings of kdx's method of the same name."""

    def __init__(
        self,
        student: nn.Sequential,
        teacher: nn.Module,
        method: Mapping[str, Any],
        lr: float,
        examples: int,
        block_norm: BlockNorm = block_norm,
    ) -> None:
        self.student, self.method, self.examples, self.block_norm = student, method, examples, block_norm
        self.teacher = teacher.eval().requires_grad_(False)
        variances = [value for name, value in student.named_parameters() if name.endswith("log_sigma2")]
        others = [value for name, value in student.named_parameters() if not name.endswith("log_sigma2")]
        groups: list[dict[str, Any]] = [{"params": others}]
        if variances:
            groups.append({"params": variances, "lr": lr * method["log_sigma2_lr"]})
        self.optimizer = torch.optim.Adam(groups, lr=lr)
        self.epoch = 0

    def terms(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss terms of a batch, before weighting, under kdx's names."""
        parts = self.method["parts"]
        logits = self.student(images)
        terms = {"cross_entropy": F.cross_entropy(logits, labels)}
        if "hint" in parts:
            with torch.no_grad():
                teacher_logits = self.teacher(images)
            terms["hint"] = distillation_loss(logits, teacher_logits, self.method["T"])
        if "variational" in parts:
            layers = [layer for layer in self.student if isinstance(layer, VariationalLinear)]
            terms["kl"] = torch.stack([layer.kl() for layer in layers]).sum() / self.examples
        if "bsr" in parts:
            terms["bsr"] = self.block_norm(self.student, self.teacher)
        return terms

    def weights(self, epoch: float) -> dict[str, float]:
        """What the terms are multiplied by; the KL's weight rises with the time in epochs."""
        weights = {"cross_entropy": 1.0, "hint": self.method.get("lambda_T", 0.0)}
        if "variational" in self.method["parts"]:
            start, end = self.method["warmup_start"], self.method["warmup_end"]
            weights["kl"] = self.method["lambda_V"] * min(max((epoch - start) / (end - start), 0.0), 1.0)
        weights["bsr"] = self.method.get("lambda_g", 0.0)
        return weights

    def step(self, images: Tensor, labels: Tensor, epoch: float) -> float:
        """Train on one batch, and give its loss."""
        weights = self.weights(epoch)
        self.optimizer.zero_grad()
        loss = torch.stack([weights[name] * term for name, term in self.terms(images, labels).items()]).sum()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def run_epoch(self, loader: DataLoader[tuple[Tensor, int]]) -> float:
        """Train for one epoch, and give its mean loss."""
        self.student.train()
        total = 0.0
        for index, (images, labels) in enumerate(loader):
            total += self.step(images, labels, self.epoch + index / len(loader))
        self.epoch += 1
        return total / len(loader)


class DigitImages(Images):
    """scikit-learn's digits in the manner of torchvision.datasets.MNIST: bytes, an image per sample, a transform."""

    def __init__(self, settings: DatasetSettings, transform: transforms.ToTensor) -> None:
        train = load_data(settings).train
        self.data, self.targets = (train.images[:, 0] * 255).round().byte(), train.labels
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its label."""
        return self.transform(Image.fromarray(self.data[index].numpy())), int(self.targets[index])

    def __len__(self) -> int:
        return len(self.data)


@contextmanager
def images_of(settings: DatasetSettings) -> Iterator[Images]:
    """The training images: torchvision's own MNIST class on the official files, or the digits in its manner."""
    if settings.name == "digits":
        yield DigitImages(settings, transforms.ToTensor())
        return
    # torchvision wants the four files unpacked, in a folder that may not be ours to write in.
    with TemporaryDirectory() as root:
        raw = Path(root, "MNIST", "raw")
        raw.mkdir(parents=True)
        for verified in fetch_files(SOURCES, settings.root, settings.download).values():
            for name, content in verified.unpacked():
                (raw / name).write_bytes(content)
        yield datasets.MNIST(root, train=True, transform=transforms.ToTensor())
