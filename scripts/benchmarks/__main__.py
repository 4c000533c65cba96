"""`scripts/benchmark SUBCOMMAND ...`."""

import argparse
import signal
import sys

from benchmarks import gpu, sweep, train
from kdx.errors import UserError

SUBCOMMANDS = {"train": train, "sweep": sweep, "gpu": gpu}


def main() -> int:
    """Run one subcommand; the exit code is 2 for the user's mistakes."""
    parser = argparse.ArgumentParser("scripts/benchmark", description=__import__("benchmarks").__doc__)
    subparsers = parser.add_subparsers(dest="subcommand", required=True)
    for name, module in SUBCOMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_options(subparsers.add_parser(name, help=summary, description=module.__doc__))
    options = parser.parse_args()
    # As Ctrl-C, so that worker processes are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        SUBCOMMANDS[options.subcommand].run(options)
    except UserError as mistake:
        print(f"scripts/benchmark: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
