"""The export formats: how each is written, and how it is run after it has been read again."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import kdx.deploy
from kdx.export.csr import Values, rounded, save_csr
from kdx.export.shrink import shrink
from kdx.export.student import Student, load_shrunk, save_shrunk
from kdx.export.torch_file import load_program, save_program
from kdx.export.verification import Run


@dataclass(frozen=True)
class Format:
    """One export format: its file ending, whether unused pixels are left out, and how it is written and read.

    `write` gets the shrunk network and `values`, the type of the weights, which only CSR files may round.
    """

    ending: str
    write: Callable[[Path, nn.Module, Student, Values], None]
    read: Callable[[Path], Run]
    # Leaving pixels out saves bytes, but selecting them costs time: on 784-300-100-10 with a quarter of its pixels
    # unused, onnxruntime takes 14 us with it and 10 us without for one image, 9.6 ms and 1.5 ms for 1024.
    drops_inputs: bool = False

    def network(self, student: Student, values: Values) -> nn.Module:
        """The network that the file must reproduce: shrunk, with its weights rounded to `values`."""
        smaller = shrink(deepcopy(student.network), inputs=self.drops_inputs)
        rounded(smaller, values)
        return smaller


def _run_csr(path: Path) -> Run:
    network = kdx.deploy.load(path)
    return lambda images: torch.from_numpy(network(images.numpy()))


def _run_shrunk(path: Path) -> Run:
    network = load_shrunk(path)
    return lambda images: network(images).detach()


def _write_onnx(path: Path, network: nn.Module, student: Student, _values: Values) -> None:
    from kdx.export.onnx_file import save_onnx  # imported here, because other formats do not need onnx

    save_onnx(path, network, student.data.image_shape)


def _run_onnx(path: Path) -> Run:
    from kdx.export.onnx_file import INPUT, OUTPUT, load_onnx

    session = load_onnx(path)
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _run_program(path: Path) -> Run:
    network = load_program(path).module()
    return lambda images: network(images).detach()


FORMATS: dict[str, Format] = {
    "shrink": Format(
        "shrink.safetensors",
        lambda path, network, student, _: save_shrunk(path, network, student),
        _run_shrunk,
        drops_inputs=True,
    ),
    "csr": Format(
        "csr.safetensors",
        lambda path, network, student, values: save_csr(path, network, student.data.image_shape, values),
        _run_csr,
    ),
    "onnx": Format("onnx", _write_onnx, _run_onnx),
    "torch": Format(
        "pt2", lambda path, network, student, _: save_program(path, network, student.data.image_shape), _run_program
    ),
}
