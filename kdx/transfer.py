"""Copies from the CPU to the device without synchronising."""

import torch
from torch import Tensor


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; a copy to a GPU is asynchronous."""
    # A copy from pageable memory would wait for all work that is queued on the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
