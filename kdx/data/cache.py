"""A cache of decoded data sets in the user's cache folder: verified before use, rebuilt if damaged."""

import logging
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from kdx.storage.paths import user_cache
from kdx.storage.tensors import DamagedTensors, load_tensors, save_tensors

log = logging.getLogger(__name__)


def cached(name: str, key: str, decode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `decode` returns, taken from the cache if it holds them intact.

    `key` is a hash of everything that determines the tensors. If the cache cannot be written, a warning is logged.
    """
    path = user_cache() / "decoded" / f"{name}-{key[:16]}.safetensors"
    tensors = _load(path, key)
    if tensors is not None:
        return tensors
    tensors = decode()
    try:
        save_tensors(path, tensors, {"key": key})
    except (OSError, SafetensorError) as error:
        log.warning("%s: decoded again in each run, since %s cannot be written: %s", name, path, error)
    else:
        log.info("%s: decoded into %s", name, path)
    return tensors


def _load(path: Path, key: str) -> dict[str, Tensor] | None:
    try:
        tensors, header = load_tensors(path)
    except FileNotFoundError:
        return None
    except DamagedTensors as error:
        log.warning("%s; it is built again", error)
        return None
    if header.get("key") == key:
        return tensors
    log.warning("%s: made from other files; it is built again", path)
    return None
