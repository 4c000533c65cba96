"""Words of a command line in tests, which often take shared ones and some of their own."""

from collections.abc import Sequence


def typed(words: Sequence[str]) -> list[str]:
    """Each key once, where it stood first, with the value that is given last, as kdx takes no key twice."""
    last = {word.partition("=")[0] if "=" in word else number: word for number, word in enumerate(words)}
    return list(last.values())
