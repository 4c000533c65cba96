"""The bytes of a network stored dense and as compressed sparse rows (CSR).

Values take 4 bytes (float32), as do CSR's column indices and row pointers. A matrix is stored as (out, in), a
convolution as (out, in*kh*kw), so a matrix has out + 1 row pointers. All other parameters (biases, batch norm) are
stored dense in both. Buffers, such as batch norm's running statistics, are not counted.
"""

from torch import Tensor, nn

from kdx.models.weights import weight_matrices

VALUE_BYTES = INDEX_BYTES = POINTER_BYTES = 4


def parameter_count(model: nn.Module) -> int:
    """The number of parameters of `model`, biases included."""
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
    """The compression ratio R_c: parameters of the teacher over parameters of the student, zeros included (VS).

    Biases count in both; VS counts them in the teacher alone for Le-L (2,395,210 / 266,200), so its 8.998 is 8.984
    here.
    """
    return parameter_count(teacher) / parameter_count(student)


def memory_compression(teacher: nn.Module, student: nn.Module) -> float:
    """The bytes of the dense teacher over those of the student stored as CSR."""
    return dense_bytes(teacher) / csr_bytes(student)
