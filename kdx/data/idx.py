"""The IDX format: a header with the array's sizes, then its bytes."""

import math
import struct

import numpy as np
import torch
from torch import Tensor

from kdx.errors import UserError

UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, dimensions: int, name: str) -> Tensor:
    """The uint8 tensor in an IDX file; raises UserError, which names the file, if header and length disagree."""
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        raise UserError(f"{name}: is not an IDX file of unsigned bytes with {dimensions} dimensions")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if math.prod(sizes) != len(content) - header:
        raise UserError(f"{name}: the header says {sizes}, but {len(content) - header} bytes follow it")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy())
