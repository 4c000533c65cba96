"""The weights of a plain network as a safetensors file."""

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from kdx.errors import UserError
from kdx.files import write_atomically

Network = TypeVar("Network", bound=nn.Module)


def save_weights(path: Path, network: nn.Module) -> None:
    """Write every parameter and buffer of `network` to `path`, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, lambda file: save_file(tensors, file))


def load_weights(path: Path, blank: Network) -> Network:
    """Fill `blank` from the file; UserError where it is damaged or made for another network."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({' '.join(str(error).split())})") from error
    expected = blank.state_dict()
    for name in expected.keys() | tensors.keys():
        shapes = [tuple(mapping[name].shape) if name in mapping else None for mapping in (tensors, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path}: made for another network: '{name}' has shape {shapes[0]}, expected {shapes[1]}")
    blank.load_state_dict(tensors)
    return blank
