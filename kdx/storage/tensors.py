"""Tensors and weights on disk: safetensors files with a header, and a hash that reveals any damage."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kdx.errors import UserError
from kdx.storage.files import write_atomically


class DamagedTensors(OSError):
    """A file of tensors that cannot be read or is not what was written; the message is one line."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Write tensors and a JSON header to `path`, atomically."""
    contents = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(header or {}, sort_keys=True, allow_nan=False)
    # One metadata entry, because safetensors writes several in random order, and equal results should be equal files.
    entry = json.dumps({"header": text, "sha256": tensors_sha256(contents, text)})
    # Written by Python, whose errors tell more than those of safetensors.
    write_atomically(path, lambda file: file.write_bytes(save(contents, {"kdx": entry})))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`: its tensors and header.

    A safetensors file that kdx did not write has an empty header, and no hash to check. Raises FileNotFoundError if
    there is no file, and DamagedTensors if it cannot be read or its content has changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get("kdx")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        written = None if entry is None else json.loads(entry)
        header = {} if written is None else json.loads(written["header"])
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise DamagedTensors(f"{path} is damaged: not a safetensors file ({' '.join(str(error).split())})") from error
    if written is not None and written.get("sha256") != tensors_sha256(tensors, written["header"]):
        raise DamagedTensors(f"{path} is damaged: its content does not match its hash")
    return tensors, header


def tensors_sha256(tensors: Mapping[str, Tensor], header: str = "") -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, and of the header's text."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


Network = TypeVar("Network", bound=nn.Module)


def save_weights(path: Path, network: nn.Module) -> None:
    """Write every parameter and buffer of `network` to `path`, atomically."""
    save_tensors(path, network.state_dict())


def template_of(network: Network) -> Network:
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
