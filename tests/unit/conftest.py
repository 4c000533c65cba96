"""What every unit test gets."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tests' tensors are small and their machine is shared."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _deterministic() -> None:
    """An operation that could give another result on the same machine is an error."""
    torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """No test computes with the products that another one, or the machine, has chosen."""
    precision, rounds = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = rounds
