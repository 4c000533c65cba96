"""Tests of what only a GPU shows; elsewhere they are skipped. `scripts/gpu_check` runs them."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ABSENT = "there is no NVIDIA GPU, or torch does not see it"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test here."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason=ABSENT))
            # What torch says once a process of the mode in which it refuses to wait; warnings are errors here.
            item.add_marker(pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"))


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves settings of torch to the next; outputs are in the folder that a test is in."""
    monkeypatch.delenv("KDX_OUTPUTS", raising=False)
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32
    gc.collect()
    torch.cuda.empty_cache()
