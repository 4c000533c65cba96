"""A plain network as one file of compressed sparse rows (CSR), for `kdx.deploy`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from kdx.deploy.file import FORMAT
from kdx.errors import UserError
from kdx.models.blocks import Dense, Residual
from kdx.storage.tensors import save_tensors

Values = Literal["fp32", "fp16", "int8"]
VALUES: tuple[Values, ...] = ("fp32", "fp16", "int8")
INT8_LARGEST = 127

Entry = dict[str, Any]


def save_csr(path: Path, network: nn.Module, image_shape: tuple[int, ...], values: Values) -> None:
    """Write `network`, for images of `image_shape` (C, H, W), with its weights as `values`, atomically.

    Row pointers and column indices take 2 bytes if they fit; int8 has one float32 scale per row. Raises UserError for a
    layer that `kdx.deploy` does not support.
    """
    tensors: dict[str, Tensor] = {}
    layers = _entries(network, "", tensors, values)
    save_tensors(path, tensors, {"format": FORMAT, "image_shape": list(image_shape), "layers": layers})


def rounded(network: nn.Module, values: Values) -> None:
    """Round every weight, in place, to the value that its file will hold, so that torch can compute the reference."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                stored, scale = _stored(layer.weight.flatten(1).numpy(), values)
                plain = stored.astype(np.float32) if scale is None else stored.astype(np.float32) * scale[:, None]
                layer.weight.copy_(torch.from_numpy(plain).view_as(layer.weight))


def _entries(module: nn.Module, name: str, tensors: dict[str, Tensor], values: Values) -> list[Entry]:
    """The header entries of the layers of `module`, in execution order; their numbers are added to `tensors`."""

    def inside(child: nn.Module, child_name: str) -> list[Entry]:
        return _entries(child, f"{name}.{child_name}".removeprefix("."), tensors, values)

    match module:
        case nn.Sequential():
            return [entry for child_name, child in module.named_children() for entry in inside(child, child_name)]
        case Residual():
            joined = {"layer": "sum", "branch": inside(module.branch, "branch")}
            joined["shortcut"] = inside(module.shortcut, "shortcut")
            return [joined, *inside(module.after, "after")]
        case Dense():
            return [{"layer": "concatenation", "branch": inside(module.branch, "branch"), "shortcut": []}]
        case nn.Linear():
            return [{"layer": "linear", **_matrix(module, name, tensors, values)}]
        case nn.Conv2d():
            return [_convolution(module, name, tensors, values)]
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return [_affine(module, name, tensors)]
        case nn.Identity() | nn.Dropout():
            return []
        case _:
            return [_without_weights(module, name)]


def _matrix(layer: nn.Linear | nn.Conv2d, name: str, tensors: dict[str, Tensor], values: Values) -> Entry:
    weight = layer.weight.detach().cpu().float().flatten(1).numpy()
    stored, scale = _stored(weight, values)
    # Of the rounded weights, so that weights that are rounded to zero are not stored.
    matrix = scipy.sparse.csr_array(stored.astype(np.float32))
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        blocks = np.split(stored.astype(np.float32), layer.groups)
        matrix = scipy.sparse.csr_array(scipy.sparse.block_diag(blocks, format="csr"))
    tensors[f"{name}.values"] = torch.from_numpy(matrix.data.astype(stored.dtype))
    tensors[f"{name}.columns"] = _smallest(matrix.indices)
    tensors[f"{name}.pointers"] = _smallest(matrix.indptr)
    if scale is not None:
        tensors[f"{name}.scale"] = torch.from_numpy(scale)
    if layer.bias is not None:
        # Biases are too few for rounding to save space.
        tensors[f"{name}.bias"] = layer.bias.detach().cpu().float()
    assert matrix.shape is not None, "a matrix has a shape"
    return {"name": name, "shape": list(map(int, matrix.shape))}


def _stored(weight: np.ndarray, values: Values) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights (out, in) as they are written and, for int8, the scale (out,) of each row, symmetric around zero."""
    if values == "int8":
        largest = np.abs(weight).max(axis=1)
        scale = np.where(largest > 0, largest / INT8_LARGEST, 1).astype(np.float32)
        return np.rint(weight / scale[:, None]).astype(np.int8), scale
    return weight.astype(np.float16 if values == "fp16" else np.float32), None


def _smallest(indices: np.ndarray) -> Tensor:
    fits = indices.max(initial=0) <= np.iinfo(np.uint16).max
    return torch.from_numpy(indices.astype(np.uint16 if fits else np.int32))


def _convolution(layer: nn.Conv2d, name: str, tensors: dict[str, Tensor], values: Values) -> Entry:
    padding = list(layer._reversed_padding_repeated_twice)
    if layer.padding_mode != "zeros" and any(padding):
        raise _unsupported(name, f"a convolution with padding_mode={layer.padding_mode}")
    sizes = {"kernel": layer.kernel_size, "stride": layer.stride, "dilation": layer.dilation, "padding": padding}
    return {
        "layer": "convolution",
        **_matrix(layer, name, tensors, values),
        **{key: list(size) for key, size in sizes.items()},
    }


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d, name: str, tensors: dict[str, Tensor]) -> Entry:
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        raise _unsupported(name, "a batch norm without statistics or weights of its own")
    factor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    tensors[f"{name}.factor"] = factor.float().cpu()
    tensors[f"{name}.summand"] = (norm.bias.detach().double() - norm.running_mean.double() * factor).float().cpu()
    return {"layer": "affine", "name": name}


def _without_weights(module: nn.Module, name: str) -> Entry:
    match module:
        case nn.ReLU():
            return {"layer": "relu"}
        case nn.Flatten(start_dim=1, end_dim=-1):
            return {"layer": "flatten"}
        case nn.MaxPool2d(dilation=1 | (1, 1), return_indices=False):
            return {"layer": "max", **_windows(module)}
        case nn.AvgPool2d(padding=0 | (0, 0), divisor_override=None):
            return {"layer": "average", **_windows(module)}
        case nn.AdaptiveAvgPool2d():
            size = _pair(module.output_size)
            if None not in size:
                return {"layer": "bins", "size": size}
        case nn.ZeroPad2d():
            return {"layer": "pad", "padding": list(module.padding)}
    # A single layer with its settings, a nested network by its type only.
    raise _unsupported(name, type(module).__name__ if any(module.children()) else str(module))


def _windows(pool: nn.MaxPool2d | nn.AvgPool2d) -> Mapping[str, Any]:
    sizes = {"kernel": _pair(pool.kernel_size), "stride": _pair(pool.stride), "padding": _pair(pool.padding)}
    return {**sizes, "ceil": pool.ceil_mode}


def _pair(size: Any) -> list[Any]:
    return list(size) if isinstance(size, tuple) else [size, size]


def _unsupported(name: str, what: str) -> UserError:
    return UserError(f"format: 'csr' has nothing for {name or 'the network'}, {what}; allowed: shrink, onnx, torch")
