"""`python -m kdx` does what the command `kdx` does."""

import sys

from kdx.cli.main import main

sys.exit(main())
