"""Puts this folder on the import path: the child process of the engine `lava` imports `lava_faults` from it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
