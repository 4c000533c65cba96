"""The command line: subcommands, one-line error messages, exit codes. Heavy imports are deferred."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from kdx import __version__
from kdx.errors import RunFailed, UserError, describe, is_expected, nearest, one_line

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
_HELP_WORDS = {"-h", "--help"}

_HELP = """\
usage: kdx COMMAND ...

Compress image classifiers by knowledge distillation and variational sparsification.

commands:
  train [KEY=VALUE ...]   train a student and print its table (kdx train --help: all choices and keys)
  train -m KEY=A,B ...    the same for several values, and one summary over the seeds
  table RUN ...           the tables of finished runs again, by folder or run id
  reproduce TABLE ...     a paper's table beside the published numbers (kdx reproduce --list)
  plot DATASET            error over sparsity, of all runs and the published networks (kdx plot --help)
  export RUN format=F     a student as a file: shrink, csr, onnx or torch (kdx export --help)
  bench RUN ...           how fast students are, in every runtime (kdx bench --help)
  report [OUTPUTS]        all results as one HTML page (kdx report --help)

options:
  -h, --help              this text
  --version               the version

KDX_DATA is the folder of the data sets, KDX_OUTPUTS that of the results (outputs).
exit codes: 0 done, 1 failed, 2 mistake on the command line, 130 interrupted (the same command continues)"""

COMMANDS = {
    "train": "kdx.cli.train",
    "table": "kdx.cli.table",
    "reproduce": "kdx.cli.reproduce",
    "plot": "kdx.cli.plot",
    "export": "kdx.cli.export",
    "bench": "kdx.cli.bench",
    "report": "kdx.cli.report",
}
"""The module of each command, with `HELP`, a text or a function of the arguments, and `main`, giving the exit code."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        code = _dispatch(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
    except UserError as mistake:
        return _say(one_line(mistake), MISTAKE)
    except KeyboardInterrupt as stop:
        return _say(f"interrupted {stop}".rstrip(), INTERRUPTED)
    except BrokenPipeError:
        # The reader has closed the pipe (`kdx table X | head`); Python would report it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as failure:
        if not isinstance(failure, RunFailed) and not is_expected(failure):
            import traceback

            traceback.print_exception(failure)
        return _say(describe(failure), FAILED)
    return code


def _dispatch(words: list[str]) -> int:
    if not words:
        raise UserError(f"no command is given; allowed: {', '.join(COMMANDS)} (kdx --help)")
    command, *rest = words
    if command in _HELP_WORDS:
        print(_HELP)
        return DONE
    if command == "--version":
        print(f"kdx {__version__}")
        return DONE
    if command not in COMMANDS:
        # `kdx method=kd`: the command was forgotten.
        hint = "did you mean 'kdx train ...'? " if "=" in command else nearest(command, COMMANDS)
        raise UserError(f"command: '{command}' is not known; {hint}allowed: {', '.join(COMMANDS)}")
    module = import_module(COMMANDS[command])
    if _HELP_WORDS.isdisjoint(rest):
        return module.main(rest)
    print(module.HELP if isinstance(module.HELP, str) else module.HELP(rest))
    return DONE


def _say(line: str, code: int) -> int:
    print(f"kdx: {line}", file=sys.stderr)
    return code
