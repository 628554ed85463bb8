"""`python -m vitesse` is the command line."""

import sys

from vitesse.cli import main

sys.exit(main())
