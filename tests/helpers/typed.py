"""Words of a command line in tests, which often take shared ones and some of their own."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def typed(words: Sequence[str]) -> list[str]:
    """Each key once, where it stood first, with the value that is given last, as kdx takes no key twice."""
    last = {word.partition("=")[0] if "=" in word else number: word for number, word in enumerate(words)}
    return list(last.values())


def misspelt(chance: random.Random, key: str) -> str:
    """The key with a letter too many or too few."""
    place = chance.randrange(len(key))
    letter = chance.choice("abcxyz_")
    return chance.choice((key[:place] + letter + key[place:], key[:place] + key[place + 1 :])).strip(".") or "x"


def flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key of nested settings with dots, and its value."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
