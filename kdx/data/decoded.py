"""Decoded data sets in the user's cache: validated before they are trusted, rebuilt when damaged."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdx.files import write_atomically
from kdx.folders import user_cache

log = logging.getLogger("kdx.data")


def decoded(name: str, key: str, decode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `decode` gives, taken from the cache when it holds them intact.

    `key` is a hash of all that determines the tensors. A cache that cannot be written is done without, with a warning.
    """
    path = user_cache() / "decoded" / f"{name}-{key[:16]}.safetensors"
    tensors = _load(path, key)
    if tensors is not None:
        return tensors
    tensors = decode()
    metadata = {"sha256": _content_hash(key, tensors)}
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))
    except (OSError, SafetensorError) as error:
        log.warning("%s: decoded again in each run, since %s cannot be written: %s", name, path, error)
    else:
        log.info("%s: decoded into %s", name, path)
    return tensors


def _load(path: Path, key: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if (file.metadata() or {}).get("sha256") == _content_hash(key, tensors):
                return tensors
        reason = "its content does not match its hash"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        reason = str(error)
    log.warning("%s is damaged and is built again: %s", path, reason)
    return None


def _content_hash(key: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
