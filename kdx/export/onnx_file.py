"""A plain network as an ONNX file for any batch size, with a hash in its metadata that reveals any damage."""

import hashlib
from pathlib import Path

import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch import nn

from kdx.errors import UserError
from kdx.export.torch_file import without_torchs_own_warnings
from kdx.storage.files import write_atomically

# onnxruntime has supported it since 2023, and torch writes it without conversion.
OPSET = 20
INPUT, OUTPUT = "images", "logits"
HASH = "kdx_sha256"
_NO_HASH = "0" * 64


def save_onnx(path: Path, network: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Write `network`: `images`, float32 (batch, C, H, W), to `logits`, float32 (batch, classes), atomically."""
    # Two images, because torch takes a dimension of 1 for a constant.
    example = (torch.zeros(2, *image_shape),)
    with without_torchs_own_warnings():
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None, "dynamo gives a program"
    model = program.model_proto
    onnx.helper.set_model_props(model, {HASH: _NO_HASH})
    content = model.SerializeToString()
    # The hash is of the file with zeros in the hash's place, so that it does not depend on protobuf's version.
    assert content.count(_NO_HASH.encode()) == 1, "there is one place for the hash"
    signed = content.replace(_NO_HASH.encode(), hashlib.sha256(content).hexdigest().encode())
    write_atomically(path, lambda temporary: temporary.write_bytes(signed))


def load_onnx(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Read a file of `save_onnx`, to run on the CPU; raises UserError if it is missing, damaged or not from kdx."""
    try:
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; allowed: a file written by kdx export RUN format=onnx"
        ) from None
    except DecodeError:
        raise UserError(f"{path} is damaged: not an ONNX file; export it again") from None
    written = {entry.key: entry.value for entry in model.metadata_props}.get(HASH, "")
    blank = content.replace(written.encode(), _NO_HASH.encode()) if written else b""
    if hashlib.sha256(blank).hexdigest() != written:
        raise UserError(f"{path} is damaged: its content does not match its hash; export it again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
