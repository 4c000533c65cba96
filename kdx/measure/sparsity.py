"""Zeros in the weight matrices, per layer and in total; biases are excluded."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdx.measure.footprint import matrix_csr_bytes, matrix_dense_bytes
from kdx.models.weights import weight_matrices
from kdx.storage.files import write_rows


@dataclass(frozen=True)
class Layer:
    """One weight matrix, as a row of layers.csv: `shape` reads like `300x784`, bytes exclude the bias."""

    layer: str
    shape: str
    weights: int
    nonzero: int
    sparsity_percent: float
    dense_bytes: int
    csr_bytes: int


def layers(model: nn.Module) -> list[Layer]:
    """One row per weight matrix of `model` (nn.Linear and nn.Conv2d), in module order."""
    rows = []
    for name, weight in weight_matrices(model).items():
        nonzero = int(weight.count_nonzero())
        rows.append(
            Layer(
                layer=name,
                shape="x".join(map(str, weight.shape)),
                weights=weight.numel(),
                nonzero=nonzero,
                sparsity_percent=percent_zero(weight.numel(), nonzero),
                dense_bytes=matrix_dense_bytes(weight),
                csr_bytes=matrix_csr_bytes(weight),
            )
        )
    return rows


def nonzero_count(model: nn.Module) -> Tensor:
    """The number of nonzero weights in all matrices: () int64 on the model's device, without synchronising."""
    return torch.stack([weight.count_nonzero() for weight in weight_matrices(model).values()]).sum()


def weight_count(model: nn.Module) -> int:
    """The number of weights in all matrices, zeros included."""
    return sum(weight.numel() for weight in weight_matrices(model).values())


@dataclass(frozen=True)
class Neurons:
    """The number of inputs of one weight matrix, and of those that have a nonzero weight."""

    inputs: int
    nonzero: int


def neurons(model: nn.Module) -> list[Neurons]:
    """The inputs of every weight matrix, in module order: the inputs of an nn.Linear, the channels of an nn.Conv2d.

    A neuron is counted by its outgoing weights, so the neurons of 784-300-100-10 are 784, 300 and 100.
    """
    counts = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            used = (layer.weight != 0).any(dim=0)
        elif isinstance(layer, nn.Conv2d):
            used = (layer.weight != 0).unflatten(0, (layer.groups, -1)).any(dim=4).any(dim=3).any(dim=1)
        else:
            continue
        counts.append(Neurons(used.numel(), int(used.sum())))
    return counts


def percent_zero(weights: int, nonzero: int) -> float:
    """Sparsity in percent: the share of `weights` that are exactly zero."""
    return 100.0 * (weights - nonzero) / weights


def sparsity_ratio(rows: Sequence[Layer]) -> float | None:
    """R_s: weights over nonzero weights, in all matrices (VS); None if every weight is zero."""
    nonzero = sum(row.nonzero for row in rows)
    return sum(row.weights for row in rows) / nonzero if nonzero else None


def write_layers(path: Path, rows: Sequence[Layer]) -> None:
    """Write layers.csv atomically."""
    write_rows(path, Layer, rows)


def read_layers(path: Path) -> list[Layer]:
    """Read what `write_layers` wrote; KeyError or ValueError when it is damaged."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Layer(
                layer=row["layer"],
                shape=row["shape"],
                weights=int(row["weights"]),
                nonzero=int(row["nonzero"]),
                sparsity_percent=float(row["sparsity_percent"]),
                dense_bytes=int(row["dense_bytes"]),
                csr_bytes=int(row["csr_bytes"]),
            )
            for row in csv.DictReader(file)
        ]
