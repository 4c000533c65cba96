"""What every unit test gets."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tests' tensors are small and their machine is shared."""
    torch.set_num_threads(1)
