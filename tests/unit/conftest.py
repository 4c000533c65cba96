"""What every unit test gets."""

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
