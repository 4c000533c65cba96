"""A copy of a network with its weight matrices as compressed sparse rows (CSR), multiplied by scipy or by torch.

CSR multiplies fastest when its right-hand side is feature-major, (in, batch): then each nonzero weight scales one
contiguous row. The layers return a transposed view of their result, and elementwise layers keep that layout, so between
linear layers nothing is copied; only a network's first layer transposes its inputs.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Protocol

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Columns of an unfolded convolution that are in memory at once, in numbers: 4 MB stay in the processor's cache, and
# the whole batch of a large network would not fit into the machine.
COLUMN_NUMBERS = 2**20


class Product(Protocol):
    """A CSR matrix (out, in) times contiguous columns (in, n): a new tensor (out, n)."""

    def __call__(self, columns: Tensor, /) -> Tensor:
        """The product (out, n)."""
        ...


class ScipyProduct:
    """The product by scipy, on one thread."""

    def __init__(self, matrix: scipy.sparse.csr_array) -> None:
        self._matrix = matrix

    def __call__(self, columns: Tensor) -> Tensor:
        """The product (out, n), on the CPU."""
        return torch.from_numpy(self._matrix @ columns.numpy())


class TorchProduct:
    """The product by torch's sparse CSR tensors."""

    def __init__(self, matrix: scipy.sparse.csr_array) -> None:
        # torch 2.11 takes the stride 0 of numpy's empty arrays, where nothing is left of a matrix, for not contiguous.
        arrays = (matrix.indptr, matrix.indices, matrix.data)
        pointers, indices, values = (torch.from_numpy(array).as_strided(array.shape, (1,)) for array in arrays)
        # A context, since torch 2.11 warns that nothing was said about checks where an argument says it.
        with torch.sparse.check_sparse_tensor_invariants(), warnings.catch_warnings():
            # torch says once a process that these tensors are beta; the tests compare the results with dense ones.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
            self._matrix = torch.sparse_csr_tensor(pointers, indices, values, matrix.shape)

    def __call__(self, columns: Tensor) -> Tensor:
        """The product (out, n), on the CPU."""
        return self._matrix @ columns


MakeProduct = Callable[[scipy.sparse.csr_array], Product]


class CsrLinear(nn.Module):
    """The CSR counterpart of an `nn.Linear`: inputs (..., in) to outputs (..., out)."""

    def __init__(self, linear: nn.Linear, make_product: MakeProduct) -> None:
        super().__init__()
        self.product = make_product(_csr(linear.weight))
        self.bias = _column(linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (..., in) to outputs (..., out)."""
        columns = inputs.reshape(-1, inputs.shape[-1]).t().contiguous()
        outputs = self.product(columns)
        if self.bias is not None:
            outputs += self.bias
        return outputs.t().reshape(*inputs.shape[:-1], -1)


class CsrConv2d(nn.Module):
    """The CSR counterpart of an `nn.Conv2d`: (out, in*kh*kw) times unfolded images; groups are diagonal blocks."""

    def __init__(self, conv: nn.Conv2d, make_product: MakeProduct) -> None:
        super().__init__()
        blocks = [_csr(block) for block in conv.weight.chunk(conv.groups)]
        self.product = make_product(blocks[0] if conv.groups == 1 else _block_diagonal(blocks))
        self.bias = _column(conv.bias)
        self.kernel, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        # torch's own resolved form, which covers padding="same" and uneven padding too.
        self.padding = list(conv._reversed_padding_repeated_twice)
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in, H, W) to (N, out, H', W')."""
        if any(self.padding):
            images = F.pad(images, self.padding, self.padding_mode)
        height, width = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                images.shape[2:], self.kernel, self.stride, self.dilation, strict=True
            )
        )
        numbers_per_image = images.shape[1] * self.kernel[0] * self.kernel[1] * height * width
        parts = images.split(max(1, COLUMN_NUMBERS // numbers_per_image))
        return torch.cat([self._convolve(part).unflatten(2, (height, width)) for part in parts])

    def _convolve(self, images: Tensor) -> Tensor:
        columns = F.unfold(images, self.kernel, dilation=self.dilation, stride=self.stride)
        outputs = self.product(columns.transpose(0, 1).flatten(1).contiguous())
        if self.bias is not None:
            outputs += self.bias
        return outputs.unflatten(1, (len(images), -1)).transpose(0, 1)


def csr_network(model: nn.Module, make_product: MakeProduct) -> nn.Module:
    """A copy of `model` on the CPU in eval mode, every nn.Linear and nn.Conv2d replaced by its CSR counterpart."""
    return _replaced(deepcopy(model).cpu().float().eval(), make_product, {})


def _replaced(module: nn.Module, make_product: MakeProduct, done: dict[nn.Module, nn.Module]) -> nn.Module:
    # `done` keeps a layer that occurs at two places one layer, and holds the replaced ones alive.
    if module not in done:
        if isinstance(module, nn.Linear):
            done[module] = CsrLinear(module, make_product)
        elif isinstance(module, nn.Conv2d):
            done[module] = CsrConv2d(module, make_product)
        else:
            done[module] = module
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = _replaced(child, make_product, done)
    return done[module]


def _csr(weight: Tensor) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(weight.detach().flatten(1).numpy())


def _block_diagonal(blocks: list[scipy.sparse.csr_array]) -> scipy.sparse.csr_array:
    matrix = scipy.sparse.csr_array(scipy.sparse.block_diag(blocks, format="csr"))
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return matrix


def _column(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()[:, None]
