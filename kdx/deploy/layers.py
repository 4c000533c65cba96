"""The layers of an exported network, in numpy and scipy.

Arrays are feature-major, with the batch as last axis: then each nonzero weight scales one contiguous row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import scipy.sparse

# Columns of an unfolded convolution that are in memory at once, in numbers: 4 MB stay in the processor's cache.
COLUMN_NUMBERS = 2**20

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Runtime = Literal["csr", "dense"]
_ZERO = np.float32(0)
Padding = tuple[int, int, int, int]


@dataclass(frozen=True)
class Matrix:
    """A weight (out, in) as CSR, its runtime (CSR or dense), and its bias (out, 1) or None."""

    name: str
    csr: scipy.sparse.csr_array
    bias: Array | None
    dense: Array | None = None

    def __call__(self, columns: Array) -> Array:
        """Columns (in, n) to (out, n)."""
        weight = self.csr if self.dense is None else self.dense
        # One column as a vector: scipy and BLAS have a quicker way for it.
        outputs = weight @ (columns[:, 0] if columns.shape[1] == 1 else columns)
        outputs = outputs.reshape(-1, columns.shape[1])
        if self.bias is not None:
            outputs += self.bias
        return outputs

    def as_runtime(self, runtime: Runtime) -> "Matrix":
        """The same matrix, multiplied as CSR or dense."""
        return replace(self, dense=self.csr.toarray() if runtime == "dense" else None)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return cast("tuple[int, int]", self.csr.shape)

    @property
    def sparsity(self) -> float:
        """The fraction of zero weights."""
        rows, inputs = self.shape
        return 1.0 - self.csr.nnz / (rows * inputs)


@dataclass(frozen=True)
class Linear:
    """A linear layer for inputs (in, N)."""

    matrix: Matrix

    def __call__(self, inputs: Array) -> Array:
        """(in, N) to (out, N)."""
        return self.matrix(inputs)


@dataclass(frozen=True)
class Convolution:
    """A convolution as (out, in*kh*kw) times unfolded images; `padding` is (left, right, top, bottom)."""

    matrix: Matrix
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: Padding

    def __call__(self, images: Array) -> Array:
        """(in, H, W, N) to (out, H', W', N)."""
        images = _padded(images, self.padding)
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        height, width = (images.shape[1] - dh * (kh - 1) - 1) // sh + 1, (images.shape[2] - dw * (kw - 1) - 1) // sw + 1
        per_image = len(images) * kh * kw * height * width
        size, parts = max(1, COLUMN_NUMBERS // per_image), []
        for start in range(0, images.shape[3], size):
            part = images[..., start : start + size]
            columns = np.empty((len(images), kh, kw, height, width, part.shape[3]), dtype=np.float32)
            for row in range(kh):
                for column in range(kw):
                    top, left = row * dh, column * dw
                    bottom, right = top + sh * (height - 1) + 1, left + sw * (width - 1) + 1
                    columns[:, row, column] = part[:, top:bottom:sh, left:right:sw]
            outputs = self.matrix(columns.reshape(len(images) * kh * kw, -1))
            parts.append(outputs.reshape(-1, height, width, part.shape[3]))
        return np.concatenate(parts, axis=3)


@dataclass(frozen=True)
class Pooling:
    """Maximum or average pooling; at the border only what lies in the image counts."""

    kind: Literal["max", "average"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil: bool

    def __call__(self, images: Array) -> Array:
        """(C, H, W, N) to (C, H', W', N)."""
        sides, edges = [], []
        for size, kernel, stride, padding in zip(
            images.shape[1:3], self.kernel, self.stride, self.padding, strict=True
        ):
            steps = (size + 2 * padding - kernel) / stride
            side = (math.ceil(steps) if self.ceil else math.floor(steps)) + 1
            # As torch: the last window begins inside the image or its first padding.
            side -= self.ceil and (side - 1) * stride >= size + padding
            sides.append(side)
            edges += [padding, max(0, (side - 1) * stride + kernel - size - padding)]
        padding = edges[2], edges[3], edges[0], edges[1]
        if self.kind == "max":
            return self._reduced(_padded(images, padding, -np.inf), sides, np.maximum)
        counts = self._reduced(_padded(np.ones_like(images[:1, :, :, :1]), padding), sides, np.add)
        return self._reduced(_padded(images, padding), sides, np.add) / counts

    def _reduced(self, images: Array, sides: Sequence[int], combine: Callable[[Array, Array], Array]) -> Array:
        (height, width), (sh, sw) = sides, self.stride
        result = None
        for top in range(self.kernel[0]):
            for left in range(self.kernel[1]):
                part = images[:, top : top + sh * (height - 1) + 1 : sh, left : left + sw * (width - 1) + 1 : sw]
                result = part if result is None else combine(result, part)
        assert result is not None, "a window has at least one pixel"
        return result


@dataclass(frozen=True)
class Average:
    """Adaptive average pooling to `size`, for images of any size."""

    size: tuple[int, int]

    def __call__(self, images: Array) -> Array:
        """(C, H, W, N) to (C, *size, N)."""
        rows, columns = (
            [(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]
            for side, count in zip(images.shape[1:3], self.size, strict=True)
        )
        bins = [[images[:, slice(*row), slice(*column)] for column in columns] for row in rows]
        means = [[each.mean(axis=(1, 2), dtype=np.float32) for each in row] for row in bins]
        return np.stack([np.stack(row, axis=1) for row in means], axis=1)


@dataclass(frozen=True)
class Pad:
    """Zero padding: left, right, top, bottom."""

    padding: Padding

    def __call__(self, images: Array) -> Array:
        """(C, H, W, N) to a larger (C, H', W', N)."""
        return _padded(images, self.padding)


@dataclass(frozen=True)
class Affine:
    """A batch norm in eval mode: one scale and one offset for each neuron or channel, both (C,)."""

    factor: Array
    summand: Array

    def __call__(self, inputs: Array) -> Array:
        """(C, ..., N) to the same shape."""
        shape = (-1, *[1] * (inputs.ndim - 1))
        return inputs * self.factor.reshape(shape) + self.summand.reshape(shape)


@dataclass(frozen=True)
class Relu:
    """The rectified linear unit."""

    def __call__(self, inputs: Array) -> Array:
        """Any shape to the same shape."""
        return np.maximum(inputs, _ZERO)


@dataclass(frozen=True)
class Flatten:
    """Flattens channels, rows and columns into one axis."""

    def __call__(self, images: Array) -> Array:
        """(C, H, W, N) to (C*H*W, N)."""
        return images.reshape(-1, images.shape[-1])


@dataclass(frozen=True)
class Joined:
    """Two branches of the same inputs, added (residual block) or concatenated (dense block)."""

    how: Literal["sum", "concatenation"]
    branch: "tuple[Layer, ...]"
    shortcut: "tuple[Layer, ...]"

    def __call__(self, inputs: Array) -> Array:
        """(C, ..., N) to the sum or concatenation of both branches."""
        first, second = through(self.shortcut, inputs), through(self.branch, inputs)
        return first + second if self.how == "sum" else np.concatenate([first, second])


Layer = Linear | Convolution | Pooling | Average | Pad | Affine | Relu | Flatten | Joined


def through(layers: Sequence[Layer], inputs: Array) -> Array:
    """Apply layers in order to inputs (C, ..., N)."""
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def _padded(images: Array, padding: Padding, value: float = 0.0) -> Array:
    left, right, top, bottom = padding
    if not any(padding):
        return images
    return np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)
