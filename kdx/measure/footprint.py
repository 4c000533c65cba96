"""Bytes of a network stored dense and as compressed sparse rows (CSR).

Values take 4 bytes (float32) and so do CSR's column indices and row pointers. A matrix is stored as (out, in), a
convolution as (out, in*kh*kw), so a matrix has out + 1 row pointers. Whatever is no weight matrix (biases, batch
norm) is stored dense in both. Buffers, such as batch norm's running statistics, are not counted.
"""

from torch import Tensor, nn

from kdx.models.weights import weight_matrices

VALUE_BYTES = INDEX_BYTES = POINTER_BYTES = 4


def parameter_count(model: nn.Module) -> int:
    """Number of parameters of `model`, biases included."""
    return sum(parameter.numel() for parameter in model.parameters())


def matrix_dense_bytes(weight: Tensor) -> int:
    """Bytes of one weight stored dense, without its bias."""
    return weight.numel() * VALUE_BYTES


def matrix_csr_bytes(weight: Tensor) -> int:
    """Bytes of one weight (out, ...) stored as CSR (out, rest), without its bias."""
    nonzero = int(weight.count_nonzero())
    return nonzero * (VALUE_BYTES + INDEX_BYTES) + (len(weight) + 1) * POINTER_BYTES


def dense_bytes(model: nn.Module) -> int:
    """Bytes of all parameters stored dense, biases included."""
    return parameter_count(model) * VALUE_BYTES


def csr_bytes(model: nn.Module) -> int:
    """Bytes of the network with every weight matrix stored as CSR and all other parameters dense."""
    matrices = weight_matrices(model).values()
    others = parameter_count(model) - sum(matrix.numel() for matrix in matrices)
    return sum(map(matrix_csr_bytes, matrices)) + others * VALUE_BYTES


def parameter_ratio(teacher: nn.Module, student: nn.Module) -> float:
    """R_c: the teacher's parameters per parameter of the student.

    Zeros count, and biases count in both; VS counts them in the teacher alone for Le-L (2,395,210 / 266,200), so its
    8.998 is 8.984 here.
    """
    return parameter_count(teacher) / parameter_count(student)


def memory_compression(teacher: nn.Module, student: nn.Module) -> float:
    """Bytes of the dense teacher per byte of the student stored as CSR."""
    return dense_bytes(teacher) / csr_bytes(student)
