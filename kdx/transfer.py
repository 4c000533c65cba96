"""Tensors from the CPU to the device, without waiting for it."""

import torch
from torch import Tensor


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; a GPU fetches it in its own time, while Python goes on."""
    # A copy from pageable memory would wait for everything that the GPU still has to do.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
