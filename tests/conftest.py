"""Puts this folder on the import path, so that tests can share helpers: `from random_graphs import random_graph`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
