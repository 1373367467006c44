"""`python -m targets.sanafe`; see command.py."""

import sys

from targets.sanafe.command import main

sys.exit(main())
