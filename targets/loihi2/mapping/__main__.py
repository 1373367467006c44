"""`python -m targets.loihi2.mapping`; see command.py."""

import sys

from targets.loihi2.mapping.command import main

sys.exit(main())
