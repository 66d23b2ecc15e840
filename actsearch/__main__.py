"""`python -m actsearch`."""

import sys

from actsearch.cli import main

sys.exit(main())
