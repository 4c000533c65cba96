"""`python -m kdx` is `kdx`."""

import sys

from kdx.cli import main

sys.exit(main())
