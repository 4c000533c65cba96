"""Inference latency of a finished run's teacher and student, in every runtime, batch size and number of threads.

All runtimes get the same image-major float32 batch in the CPU's memory, as an array of their own type, so CSR's time
includes the transposition.

They are timed in turn and compared round by round; results are discarded if other programs took the cores meanwhile.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

import kdx.deploy
from kdx.bench.results import COLUMNS, HASH, PLACE, TABLE
from kdx.deploy.rounds import Speedup, speedup, time_in_rounds
from kdx.device.machine import cores_taken_by_others, describe_machine
from kdx.errors import UserError
from kdx.export.csr import save_csr
from kdx.export.onnx_file import INPUT, OUTPUT, load_onnx, save_onnx
from kdx.export.shrink import shrink
from kdx.export.student import Student, finished_student
from kdx.measure.latency import Latency, cpu_threads, is_quick_enough, summary
from kdx.methods.variational import log_alpha
from kdx.models import build_model
from kdx.models.surgery import replace_layers
from kdx.storage.files import sha256_of, write_csv, write_json
from kdx.storage.tensors import save_weights

BATCHES = (1, 32, 1024)
CROWD = 0.5
"""How much of one core other programs may take. Threads that wait for one without a core are slow in every round, which
no spread shows."""
# log alpha of surviving and of pruned weights, on either side of any threshold in use.
KEPT, GONE, THRESHOLD = -10.0, 10.0, 3.0

TEACHER, STUDENT = "teacher", "student"
TORCH, DEPLOY, ONNX = "torch", "kdx.deploy", "onnxruntime"
RUNTIMES = (TORCH, DEPLOY, ONNX)

Array = np.ndarray[Any, np.dtype[Any]]
Call = Callable[[Any], object]
"""A network in its runtime: a function of images (batch, C, H, W), a tensor for torch, else a numpy array."""


@dataclass(frozen=True)
class Variant:
    """One variant that is timed: a network (teacher, student), its form (dense, shrunk, masked, CSR) and a runtime."""

    network: str
    form: str
    runtime: str

    def __str__(self) -> str:
        return f"{self.name} in {self.runtime}"

    @property
    def name(self) -> str:
        """The student's form, or `teacher`."""
        return self.network if self.network == TEACHER else self.form


DENSE = {runtime: Variant(STUDENT, "dense", runtime) for runtime in RUNTIMES}
# No teacher in kdx.deploy, which only pays with sparse weights.
TEACHERS = {runtime: Variant(TEACHER, "dense", runtime) for runtime in (TORCH, ONNX)}
SHRUNK = {runtime: Variant(STUDENT, "shrunk", runtime) for runtime in (TORCH, ONNX)}
MASKED = Variant(STUDENT, "masked", TORCH)
CSR, AUTO = Variant(STUDENT, "CSR", DEPLOY), Variant(STUDENT, "auto", DEPLOY)


@dataclass(frozen=True)
class VariantLatency:
    """The latency of one variant for one batch size and number of threads, and its speedups.

    The speedups are over the dense student and the teacher in the same runtime, for kdx.deploy over the teacher in
    torch; None if it is one of them itself, or if one could not be timed.
    """

    kind: Variant
    latency: Latency
    dense: Speedup | None
    teacher: Speedup | None


@dataclass(frozen=True)
class Bench:
    """The timings of a run and, by batch size, the faster runtime of each of the shrunk student's matrices.

    These `choices` are for one thread. `file_bytes` is the size of a variant's file, if it is loaded from one;
    `left_out` has a line for everything that could not be timed, `crowded` the cores that other programs took, by
    threads and batch, if they were too many, and `place` describes the machine.
    """

    run: Path
    title: str
    timings: list[VariantLatency]
    choices: dict[int, list[kdx.deploy.Choice]]
    file_bytes: dict[Variant, int]
    left_out: list[str]
    crowded: dict[tuple[int, int], float]
    place: dict[str, Any]

    @property
    def results(self) -> list[VariantLatency]:
        """The timings without those that other programs disturbed."""
        return [each for each in self.timings if (each.latency.threads, each.latency.batch) not in self.crowded]


class Thresholded(nn.Module):
    """A layer that masks its weights in every forward pass: those whose log alpha reaches the threshold are zero.

    The VS paper explains the times of its sparse students by such masking at inference (VS fig. 6). log alpha depends
    on log sigma^2, which a finished run has discarded; any values that give the same zeros take the same time.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        weight = layer.weight.detach()
        zero = log_alpha(weight, torch.zeros_like(weight))
        self.log_sigma2 = torch.where(weight == 0, GONE, KEPT) - zero

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output with the masked weights."""
        layer = self.layer
        weight = torch.where(log_alpha(layer.weight, self.log_sigma2) < THRESHOLD, layer.weight, 0.0)
        if isinstance(layer, nn.Linear):
            return F.linear(inputs, weight, layer.bias)
        return layer._conv_forward(inputs, weight, layer.bias)


def bench(run: Path, seconds: float) -> Bench:
    """Time the networks of the finished `run`, for `seconds` per runtime, batch size and number of threads.

    Raises UserError if a file of the run is missing or does not fit.
    """
    student = finished_student(run)
    images, _ = next(student.data.test.batches(max(BATCHES)))
    images = images[torch.arange(max(BATCHES)) % len(images)].contiguous()
    timings: list[VariantLatency] = []
    choices: dict[int, list[kdx.deploy.Choice]] = {}
    left_out: dict[str, None] = {}
    crowded: dict[tuple[int, int], float] = {}
    with TemporaryDirectory() as folder:
        files = _Files(Path(folder), student, left_out)
        for threads in sorted({1, _cores()}):
            with _limited(threads):
                fixed = files.networks(threads)
                for batch in BATCHES:
                    inputs = images[:batch]
                    calls = dict(fixed)
                    elsewhere = cores_taken_by_others()
                    if CSR in files.deploy:
                        measured = kdx.deploy.choices(files.deploy[CSR], inputs.numpy())
                        choices.setdefault(batch, measured)
                        calls[AUTO] = kdx.deploy.fastest(files.deploy[CSR], measured)
                    timings += timings_of(calls, inputs, threads, seconds, left_out)
                    taken = elsewhere()
                    if taken is not None and taken > _cores() - threads + CROWD:
                        crowded[threads, batch] = taken
        sizes = {kind: path.stat().st_size for kind, path in files.paths.items()}
    title = f"{student.figures['method']} on {student.figures['dataset']}"
    place = describe_machine() | {"seconds": seconds}
    return Bench(run, title, timings, choices, sizes, list(left_out), crowded, place)


def write_bench(bench: Bench) -> None:
    """Write the results to `bench.csv` in the run's folder, in microseconds, and the machine to `bench.json`.

    Without results, existing files are left as they are.
    """
    if not bench.results:
        return
    rows = [
        {
            "network": kind.network,
            "form": kind.form,
            "runtime": kind.runtime,
            "batch": row.batch,
            "threads": row.threads,
            "median_us": 1000 * row.median_ms,
            "p10_us": 1000 * row.p10_ms,
            "p90_us": 1000 * row.p90_ms,
            "repetitions": row.repetitions,
            "file_bytes": bench.file_bytes.get(kind),
            **(timing.dense.columns("against_dense") if timing.dense else {}),
            **(timing.teacher.columns("against_teacher") if timing.teacher else {}),
        }
        for timing in bench.results
        for kind, row in [(timing.kind, timing.latency)]
    ]
    # Removed first: without it `read_inference` ignores the table, which is about to be replaced.
    (bench.run / PLACE).unlink(missing_ok=True)
    write_csv(bench.run / TABLE, COLUMNS, rows)
    write_json(bench.run / PLACE, {**bench.place, HASH: sha256_of(bench.run / TABLE)})


class _Files:
    """The networks of a run in every form, in memory and as files of a temporary folder (`paths`)."""

    def __init__(self, folder: Path, student: Student, left_out: dict[str, None]) -> None:
        shape = student.data.image_shape
        # A teacher's time and the size of its file depend on its shape alone, so any weights serve.
        teacher = build_model(student.config.teacher, shape, student.data.classes, seed=0).eval()
        shrunk, masked = shrink(student.network, inputs=False), deepcopy(student.network)
        replace_layers(masked, lambda layer: Thresholded(layer) if isinstance(layer, nn.Linear | nn.Conv2d) else None)
        self.torch: dict[Variant, Call] = {}
        self.deploy: dict[Variant, kdx.deploy.Network] = {}
        self.paths: dict[Variant, Path] = {}
        for kinds, network in ((TEACHERS, teacher), (DENSE, deepcopy(student.network)), (SHRUNK, shrunk)):
            name = f"{kinds[TORCH].network}-{kinds[TORCH].form}"
            self.torch[kinds[TORCH]] = network
            self.paths |= {kinds[TORCH]: folder / f"{name}.safetensors", kinds[ONNX]: folder / f"{name}.onnx"}
            save_weights(self.paths[kinds[TORCH]], network)
            save_onnx(self.paths[kinds[ONNX]], network, shape)
        self.torch[MASKED] = masked
        try:
            for kind, network in ((CSR, shrunk), (DENSE[DEPLOY], student.network)):
                path = folder / f"{kind.form}.csr"
                save_csr(path, network, shape, "fp32")
                self.deploy[kind], self.paths[kind] = kdx.deploy.load(path), path
            plain = self.deploy[DENSE[DEPLOY]]
            self.deploy[DENSE[DEPLOY]] = plain.with_runtimes({matrix.name: "dense" for matrix in plain.matrices()})
            self.paths[AUTO] = self.paths[CSR]
        except UserError as error:
            left_out[f"{DEPLOY}: {error}"] = None

    def networks(self, threads: int) -> dict[Variant, Call]:
        """All networks but the one whose runtimes depend on the batch size."""
        sessions = {kind: _session(path, threads) for kind, path in self.paths.items() if kind.runtime == ONNX}
        return {**self.torch, **self.deploy, **sessions}


def _session(path: Path, threads: int) -> Call:
    session = load_onnx(path, threads)
    return lambda images: session.run([OUTPUT], {INPUT: images})


def _cores() -> int:
    # The cores that this process may use, if the system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _limited(threads: int) -> Iterator[None]:
    """Limit the threads of numpy and torch to `threads`, and run torch in inference mode."""
    with threadpool_limits(limits=threads, user_api="blas"), cpu_threads(threads), torch.inference_mode():
        yield


def timings_of(
    calls: Mapping[Variant, Call], inputs: Tensor, threads: int, seconds: float, left_out: dict[str, None]
) -> list[VariantLatency]:
    """Time networks on one batch, for about `seconds` each; those that would take too long are named in `left_out`."""
    arrays: dict[Variant, Tensor | Array] = {
        kind: inputs if kind.runtime == TORCH else inputs.numpy() for kind in calls
    }
    quick = {kind: partial(call, arrays[kind]) for kind, call in calls.items() if is_quick_enough(call, arrays[kind])}
    for kind in (kind for kind in calls if kind not in quick):
        left_out[f"{kind}: {len(inputs)} images would take too long with {threads} threads"] = None
    taken = time_in_rounds(quick, seconds)

    def against(kind: Variant, other: Variant) -> Speedup | None:
        return speedup(taken[kind], over=taken[other]) if kind != other and other in taken else None

    timings = []
    for kind, rounds in taken.items():
        latency = summary("cpu", threads, str(kind), len(inputs), rounds)
        dense = None if kind.network == TEACHER else against(kind, DENSE[kind.runtime])
        timings.append(VariantLatency(kind, latency, dense, against(kind, TEACHERS.get(kind.runtime, TEACHERS[TORCH]))))
    return timings
