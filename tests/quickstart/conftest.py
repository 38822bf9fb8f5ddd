"""The quickstart's modules are scripts beside their YAML: put their folder where Python looks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "quickstart"))
