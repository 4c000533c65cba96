"""The user's mistakes, reported in one line each (exit code 2), and the interruption of a run (130)."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake that the user can correct; the message is one line and names the key, the value and what is allowed."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside and can be resumed; the message says where it stopped (exit code 130)."""


def nearest(given: object, allowed: Iterable[str]) -> str:
    """The words "did you mean 'x'? " for the name in `allowed` that is nearest to `given`, or nothing."""
    # Case-insensitive, so that lambda_v finds lambda_V rather than lambda_g.
    names = {name.casefold(): name for name in allowed}
    near = get_close_matches(str(given).casefold(), list(names), n=1, cutoff=0.5)
    return f"did you mean '{names[near[0]]}'? " if near else ""


def unknown(key: str, given: object, allowed: Iterable[str]) -> UserError:
    """The error for a value, key or file that is not among `allowed`, with the nearest match where one is near."""
    names = sorted(allowed)
    return UserError(f"{key}: '{given}' is not known; {nearest(given, names)}allowed: {', '.join(names)}")


def one_line(error: BaseException) -> str:
    """An error's message on one line, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class Diverged(ArithmeticError):
    """A loss term is no longer finite; the message names the term (exit code 1)."""
