"""The recipe's modules are scripts beside their YAML: put their folder and the quickstart's on the path."""

import sys
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path[:0] = [str(RECIPES / "smollm2"), str(RECIPES / "quickstart")]
