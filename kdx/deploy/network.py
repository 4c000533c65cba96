"""An exported network as a function from images to logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kdx.deploy.layers import Array, Convolution, Joined, Layer, Linear, Matrix, Runtime, through


@dataclass(frozen=True)
class Network:
    """An exported network; called with images, float32 (batch, C, H, W), it returns logits (batch, classes)."""

    layers: tuple[Layer, ...]
    image_shape: tuple[int, ...]

    def __call__(self, images: Array) -> Array:
        """Images (batch, C, H, W) to logits, float32 (batch, classes); ValueError for images of another shape."""
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images of shape {images.shape[1:]}: expected {self.image_shape}")
        inputs = np.asarray(images, dtype=np.float32).reshape(len(images), -1).T
        inputs = np.ascontiguousarray(inputs).reshape(*self.image_shape, len(images))
        return np.ascontiguousarray(through(self.layers, inputs).T)

    def columns(self, images: Array) -> list[tuple[Matrix, Array]]:
        """Every matrix with the first columns (in, n) that it multiplies for `images`."""
        seen: dict[str, tuple[Matrix, Array]] = {}

        def recording(matrix: Matrix) -> Matrix:
            return _Recording(matrix.name, matrix.csr, matrix.bias, matrix.dense, seen=seen)

        replace(self, layers=_changed(self.layers, recording))(images)
        return list(seen.values())

    def matrices(self) -> list[Matrix]:
        """All weight matrices in order of execution."""
        return [layer.matrix for layer in _all(self.layers) if isinstance(layer, Linear | Convolution)]

    def with_runtimes(self, runtimes: Mapping[str, Runtime]) -> "Network":
        """The same network with each matrix, by name, multiplied as CSR or dense."""
        return replace(self, layers=_changed(self.layers, lambda matrix: matrix.as_runtime(runtimes[matrix.name])))


@dataclass(frozen=True)
class _Recording(Matrix):
    seen: dict[str, tuple[Matrix, Array]] = field(default_factory=dict)

    def __call__(self, columns: Array) -> Array:
        self.seen.setdefault(self.name, (Matrix(self.name, self.csr, self.bias, self.dense), columns))
        return super().__call__(columns)


def _all(layers: Sequence[Layer]) -> Iterator[Layer]:
    for layer in layers:
        yield layer
        if isinstance(layer, Joined):
            yield from _all(layer.branch)
            yield from _all(layer.shortcut)


def _changed(layers: Sequence[Layer], change: Callable[[Matrix], Matrix]) -> tuple[Layer, ...]:
    changed: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Linear | Convolution):
            changed.append(replace(layer, matrix=change(layer.matrix)))
        elif isinstance(layer, Joined):
            branch, shortcut = _changed(layer.branch, change), _changed(layer.shortcut, change)
            changed.append(replace(layer, branch=branch, shortcut=shortcut))
        else:
            changed.append(layer)
    return tuple(changed)
