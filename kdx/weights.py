"""The weights of a plain network as a safetensors file."""

from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from kdx.errors import UserError
from kdx.tensors import DamagedTensors, load_tensors, save_tensors

Network = TypeVar("Network", bound=nn.Module)


def save_weights(path: Path, network: nn.Module) -> None:
    """Write every parameter and buffer of `network` to `path`, atomically."""
    save_tensors(path, network.state_dict())


def emptied(network: Network) -> Network:
    """A copy of `network` with all parameters and buffers set to zero."""
    blank = deepcopy(network)
    with torch.no_grad():
        for tensor in blank.state_dict().values():
            tensor.zero_()
    return blank


def load_weights(path: Path, blank: Network, key: str = "") -> Network:
    """Fill `blank` from the file; raises UserError if it is missing, damaged or made for another network.

    `key` is the setting in which the user named the file, if so; the message names it too.
    """
    named = f"{key}: {path}" if key else str(path)
    try:
        tensors, _ = load_tensors(path)
    except FileNotFoundError:
        raise UserError(f"{named}: there is no such file; allowed: a .safetensors file of weights") from None
    except DamagedTensors as error:
        raise UserError(f"{key}: {error}" if key else str(error)) from error
    expected = blank.state_dict()
    for name in [*expected, *sorted(tensors.keys() - expected.keys())]:
        found, wanted = (tuple(group[name].shape) if name in group else "absent" for group in (tensors, expected))
        if found != wanted:
            raise UserError(f"{named}: made for another network: '{name}' is {found} there, {wanted} here")
    blank.load_state_dict(tensors)
    return blank
