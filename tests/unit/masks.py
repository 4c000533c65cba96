"""What masks keep and what they leave."""

from collections.abc import Mapping

import torch
from torch import Tensor


def kept(found: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in found.values())


def no_bit_set(values: Tensor) -> bool:
    return not values.view(torch.int32).any()
