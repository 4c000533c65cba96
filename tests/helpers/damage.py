"""Damages of files at random."""

import os
import random
from collections.abc import Callable, Container, Sequence
from pathlib import Path

Damage = Callable[[random.Random, Path, Sequence[Path]], bool]


def damage(chance: random.Random, files: Sequence[Path], without: Container[str] = ()) -> tuple[str, Path]:
    """Damage one of the files; how, and which."""
    while True:
        victim, how = chance.choice(files), chance.choice([how for how in DAMAGES if how not in without])
        # An empty file cannot be cut, and so on.
        if DAMAGES[how](chance, victim, files):
            return how, victim


def _flip(chance: random.Random, victim: Path, files: Sequence[Path]) -> bool:
    content = bytearray(victim.read_bytes())
    if not content:
        return False
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    victim.write_bytes(content)
    return True


def _digit(chance: random.Random, victim: Path, files: Sequence[Path]) -> bool:
    """Another digit in a file of text: still JSON, still CSV, still YAML, but not what was measured."""
    content = bytearray(victim.read_bytes())
    places = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if not places or victim.suffix not in (".json", ".csv", ".yaml"):
        return False
    place = chance.choice(places)
    content[place] = 48 + (content[place] - 48 + chance.randint(1, 9)) % 10
    victim.write_bytes(content)
    return True


def _truncate(chance: random.Random, victim: Path, files: Sequence[Path]) -> bool:
    size = victim.stat().st_size
    if not size:
        return False
    os.truncate(victim, chance.randrange(size))
    return True


def _zeros(chance: random.Random, victim: Path, files: Sequence[Path]) -> bool:
    content = bytearray(victim.read_bytes())
    start = chance.randrange(len(content) or 1)
    length = min(len(content) - start, 512)
    if not any(content[start : start + length]):
        return False
    content[start : start + length] = bytes(length)
    victim.write_bytes(content)
    return True


def _delete(chance: random.Random, victim: Path, files: Sequence[Path]) -> bool:
    victim.unlink()
    return True


def _swap(chance: random.Random, victim: Path, files: Sequence[Path]) -> bool:
    alike = [path for path in files if path.suffix == victim.suffix and path.read_bytes() != victim.read_bytes()]
    if not alike:
        return False
    other = chance.choice(alike)
    one, two = victim.read_bytes(), other.read_bytes()
    victim.write_bytes(two)
    other.write_bytes(one)
    return True


DAMAGES: dict[str, Damage] = {
    "flip a bit of": _flip,
    "another digit in": _digit,
    "truncate": _truncate,
    "zeros in": _zeros,
    "delete": _delete,
    "swap": _swap,
}
