"""The commands, a module each: `HELP` is its text (or makes it of the words), `main` does it and gives the exit code.

What is heavy is imported when it is needed, so that help is there at once.
"""

import os
from pathlib import Path


def outputs_folder() -> Path:
    """The folder of results: $KDX_OUTPUTS, else outputs."""
    return Path(os.environ.get("KDX_OUTPUTS", "outputs"))
