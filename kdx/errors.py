"""The user's mistakes in one line (exit code 2), interruptions (130), and failures, whose traceback a log keeps."""

import errno
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path


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


# The file system says no; a traceback would add nothing.
_PLAIN = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE, errno.ETIMEDOUT),
    }
)
_OUT_OF_MEMORY = (
    "the GPU's memory is full{}; try a smaller trainer.batch_size (teacher.trainer.batch_size while a teacher is"
    " trained), hydra.launcher.max_models with hydra/launcher=fused, or device=cpu"
)


class RunFailed(Exception):
    """A run has failed; the message is one line and names the file with the traceback."""


@contextmanager
def log_failures(log_file: Path) -> Iterator[None]:
    """Turn exceptions within the context into RunFailed, with the traceback in `log_file` if its folder exists."""
    # A full disk refuses the log's lines too, and logging would print a traceback for each of them. The results, which
    # lie on the same disk, say it in one line.
    shown, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    except (UserError, RunFailed):
        # One line already.
        raise
    except Exception as failure:
        if is_expected(failure):
            raise RunFailed(describe(failure)) from failure
        if not log_file.parent.is_dir():
            raise
        with suppress(OSError), log_file.open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(failure)))
            raise RunFailed(f"{describe(failure)}; the traceback is in {log_file}") from failure
        raise
    finally:
        logging.raiseExceptions = shown


def is_expected(failure: BaseException) -> bool:
    """Whether the failure needs no traceback: no disk space, no permission, no GPU memory."""
    return (isinstance(failure, OSError) and failure.errno in _PLAIN) or _is_out_of_memory(failure)


def _is_out_of_memory(failure: BaseException) -> bool:
    # Without torch imported, the failure cannot be one of torch's.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(failure, torch.OutOfMemoryError)


def describe(failure: BaseException) -> str:
    """A failure in one line."""
    if _is_out_of_memory(failure):
        # The rest of torch's message is about other uses of the memory.
        wanted = re.search(r"ried to allocate [\d.]+ \w+", str(failure))
        return _OUT_OF_MEMORY.format(f" (t{wanted[0]})" if wanted else "")
    if isinstance(failure, OSError) and failure.strerror:
        return f"{failure.filename}: {failure.strerror}" if failure.filename else failure.strerror
    if isinstance(failure, UserError | RunFailed):
        return one_line(failure)
    return f"{type(failure).__name__}: {one_line(failure)}".removesuffix(f": {type(failure).__name__}")
