"""Random streams: every use of randomness has its own generator, derived from the run's seed and a purpose."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on the words of `purpose`, and on nothing else."""
    text = "/".join(str(word) for word in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one purpose, such as the order of the samples in epoch 3."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *purpose))


def with_seed(seed: int, purpose: str, build: Callable[[], T]) -> T:
    """Call `build` with torch's global generator seeded for one purpose, and restore the generator afterwards.

    torch's layers draw their initial weights only from the global generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, purpose))
        return build()
