"""All measurements of a trained, plain network, whatever method it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kdx.data.dataset import Data, Split
from kdx.measure.accuracy import error_percent
from kdx.measure.footprint import csr_bytes, dense_bytes, memory_compression, parameter_count, parameter_ratio
from kdx.measure.latency import BATCHES, DENSE, Latency, fastest_csr, latencies
from kdx.measure.multiplications import multiplications, nonzero_multiplications
from kdx.measure.sparsity import Layer, layers, neurons, percent_zero, sparsity_ratio
from kdx.models.ensemble import MeanLogits

Figures = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Measurements:
    """The figures of metrics.json that depend on the network only, and the rows of layers.csv and latency.csv."""

    figures: Figures
    layers: list[Layer]
    latencies: list[Latency]


def measure(
    student: nn.Module,
    teacher: nn.Module | None,
    data: Data,
    device: torch.device,
    latency_seconds: float,
    further_teachers: Sequence[nn.Module] = (),
) -> Measurements:
    """Measure the plain network `student` and compare it with `teacher`, if there is one.

    With `further_teachers` the teachers' error is that of the ensemble of all; sizes and multiplications are the first
    one's.

    `latency_ms` is the median for one image of the dense student on one CPU thread, `latency_1024_ms` that for a batch
    of 1024, `csr_*` that of the CSR runtime which is faster for one image; timing takes about `latency_seconds`.
    Neurons are the inputs of weight matrices. Multiplications are per image. A figure is None if there is no teacher,
    no validation split or no timing (0 seconds), and `R_s` if every weight is zero. Raises ValueError for a student
    without weight matrices.
    """
    rows = layers(student)
    if not rows:
        raise ValueError("the student has no weight matrix (nn.Linear or nn.Conv2d)")
    images, _ = next(data.test.batches(max(BATCHES)))
    timings = latencies(student, images, device, latency_seconds) if latency_seconds else []
    answering = MeanLogits([teacher, *further_teachers]) if teacher and further_teachers else teacher
    figures = {"classes": data.classes} | _errors(student, answering, data) | _sizes(student, teacher, rows)
    figures |= _work(student, teacher, data) | _latency_figures(timings)
    return Measurements(figures, rows, timings)


def _errors(student: nn.Module, teacher: nn.Module | None, data: Data) -> Figures:
    def error(model: nn.Module | None, split: Split | None) -> float | None:
        if model is None or split is None or len(split.images) == 0:
            return None
        return error_percent(model, split)

    return {
        "test_error_percent": error(student, data.test),
        "val_error_percent": error(student, data.validation),
        "teacher_test_error_percent": error(teacher, data.test),
    }


def _sizes(student: nn.Module, teacher: nn.Module | None, rows: list[Layer]) -> Figures:
    weights, nonzero = sum(row.weights for row in rows), sum(row.nonzero for row in rows)
    inputs = neurons(student)
    return {
        "parameters": parameter_count(student),
        "weights": weights,
        "nonzero_weights": nonzero,
        "sparsity_percent": percent_zero(weights, nonzero),
        "R_s": sparsity_ratio(rows),
        "neurons": sum(layer.inputs for layer in inputs),
        "nonzero_neurons": sum(layer.nonzero for layer in inputs),
        # In the papers' notation: 311-86-14 are the remaining inputs of three matrices.
        "nonzero_neurons_by_layer": "-".join(str(layer.nonzero) for layer in inputs),
        "R_c": None if teacher is None else parameter_ratio(teacher, student),
        "dense_bytes": dense_bytes(student),
        "csr_bytes": csr_bytes(student),
        "teacher_dense_bytes": None if teacher is None else dense_bytes(teacher),
        "memory_compression": None if teacher is None else memory_compression(teacher, student),
    }


def _work(student: nn.Module, teacher: nn.Module | None, data: Data) -> Figures:
    image_shape = data.test.images.shape[1:]
    return {
        "multiplications": multiplications(student, image_shape),
        "nonzero_multiplications": nonzero_multiplications(student, image_shape),
        "teacher_multiplications": None if teacher is None else multiplications(teacher, image_shape),
    }


def _latency_figures(rows: list[Latency]) -> Figures:
    on_cpu = {(row.runtime, row.batch): row for row in rows if row.device == "cpu"}
    csr = fastest_csr(rows)

    def median(runtime: str | None, batch: int) -> float | None:
        row = on_cpu.get((runtime or "", batch))
        return row.median_ms if row else None

    single = on_cpu.get((DENSE, 1))
    return {
        "latency_ms": single.median_ms if single else None,
        "latency_p10_ms": single.p10_ms if single else None,
        "latency_p90_ms": single.p90_ms if single else None,
        "latency_1024_ms": median(DENSE, 1024),
        "csr_latency_ms": median(csr, 1),
        "csr_latency_1024_ms": median(csr, 1024),
        "csr_runtime": csr,
    }
