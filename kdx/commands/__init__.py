"""The commands, a module each: `HELP` is its help text or makes it from the arguments, `main` returns the exit code.

Heavy imports are inside functions, so that help appears at once.
"""

import os
from pathlib import Path


def outputs_folder() -> Path:
    """The folder of results: $KDX_OUTPUTS, else `outputs`."""
    return Path(os.environ.get("KDX_OUTPUTS", "outputs"))
