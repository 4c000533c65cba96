"""Reads an exported network: a safetensors file, checked against its hash; no code in it is ever executed."""

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from kdx.deploy.layers import (
    Affine,
    Array,
    Average,
    Convolution,
    Flatten,
    Joined,
    Layer,
    Linear,
    Matrix,
    Pad,
    Pooling,
    Relu,
)
from kdx.deploy.network import Network

FORMAT = "kdx-csr-1"
# By safetensors' dtype name: numpy's dtype, and the name that goes into the file's hash.
_TYPES = {
    "F32": (np.float32, "torch.float32"),
    "F16": (np.float16, "torch.float16"),
    "I8": (np.int8, "torch.int8"),
    "U16": (np.uint16, "torch.uint16"),
    "I32": (np.int32, "torch.int32"),
}
# A header is a few kilobytes; a damaged length must not fill the memory.
_LONGEST_HEADER = 2**24


class DamagedFile(ValueError):
    """A file is not what was exported; the message is one line."""


def load(path: Path | str) -> Network:
    """Read an exported network, every matrix of which is multiplied as CSR.

    Raises FileNotFoundError if there is no file, and DamagedFile if it was truncated, changed or not written by kdx.
    """
    content = Path(path).read_bytes()
    try:
        tensors, header = _parsed(content)
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {header.get('format')!r}, expected {FORMAT!r}")
        return Network(tuple(_layers(header["layers"], tensors)), tuple(header["image_shape"]))
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DamagedFile(f"{path} is damaged or no exported network: {reason}") from error


def _parsed(content: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """The tensors and kdx's header; raises ValueError, KeyError or TypeError if the content is incomplete."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(len(content) - 8, _LONGEST_HEADER):
        raise ValueError("it is truncated or not a safetensors file")
    entries = json.loads(content[8 : 8 + length])
    written = json.loads(entries.pop("__metadata__")["kdx"])
    data = memoryview(content)[8 + length :]
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        (start, stop), (kind, _) = entry["data_offsets"], _TYPES[entry["dtype"]]
        if start != end or stop - start != prod(entry["shape"]) * np.dtype(kind).itemsize or stop > len(data):
            raise ValueError(f"it is truncated: {name} does not lie where its header says")
        tensors[name] = np.frombuffer(data[start:stop], dtype=kind).reshape(entry["shape"])
        end = stop
    if end != len(data):
        raise ValueError("it is longer than its header says")
    if written["sha256"] != _sha256(tensors, entries, written["header"]):
        raise ValueError("its content does not match its hash")
    return tensors, json.loads(written["header"])


def _sha256(tensors: Mapping[str, Array], entries: Mapping[str, Any], header: str) -> str:
    """The same hash as `kdx.storage.tensors.tensors_sha256`, which needs torch."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {_TYPES[entries[name]['dtype']][1]} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _layers(entries: list[dict[str, Any]], tensors: Mapping[str, Array]) -> list[Layer]:
    return [_layer(entry, tensors) for entry in entries]


def _layer(entry: Mapping[str, Any], tensors: Mapping[str, Array]) -> Layer:
    def pair(key: str) -> tuple[int, int]:
        first, second = entry[key]
        return int(first), int(second)

    def padding() -> tuple[int, int, int, int]:
        left, right, top, bottom = map(int, entry["padding"])
        return left, right, top, bottom

    match entry["layer"]:
        case "linear":
            return Linear(_matrix(entry, tensors))
        case "convolution":
            matrix = _matrix(entry, tensors)
            return Convolution(matrix, pair("kernel"), pair("stride"), pair("dilation"), padding())
        case "max" | "average" as kind:
            return Pooling(kind, pair("kernel"), pair("stride"), pair("padding"), bool(entry["ceil"]))
        case "bins":
            return Average(pair("size"))
        case "pad":
            return Pad(padding())
        case "affine":
            name = entry["name"]
            return Affine(tensors[f"{name}.factor"], tensors[f"{name}.summand"])
        case "relu":
            return Relu()
        case "flatten":
            return Flatten()
        case "sum" | "concatenation" as how:
            return Joined(how, tuple(_layers(entry["branch"], tensors)), tuple(_layers(entry["shortcut"], tensors)))
        case other:
            raise ValueError(f"the layer {other!r} is not known")


def _matrix(entry: Mapping[str, Any], tensors: Mapping[str, Array]) -> Matrix:
    name, shape = entry["name"], tuple(entry["shape"])
    pointers, values = tensors[f"{name}.pointers"].astype(np.int32), tensors[f"{name}.values"].astype(np.float32)
    columns = tensors[f"{name}.columns"].astype(np.int32)
    if values.ndim != 1 or columns.shape != values.shape or pointers.shape != (shape[0] + 1,):
        raise ValueError(f"{name} is no CSR matrix of {shape[0]}x{shape[1]}")
    scale = tensors.get(f"{name}.scale")
    if scale is not None:
        # One factor for each row of int8 values.
        values = values * np.repeat(scale, np.diff(pointers))
    matrix = scipy.sparse.csr_array((values, columns, pointers), shape=shape)
    # scipy trusts its indices: one out of bounds would read foreign memory.
    matrix.check_format(full_check=True)
    bias = tensors.get(f"{name}.bias")
    return Matrix(name, matrix, None if bias is None else bias.astype(np.float32)[:, None])
