"""Where the real data lies that some tests use; they skip, saying so, where it is absent."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("IVG_SHARED_DATA", ROOT.parent / "shared" / "data"))
TOKENIZERS = SHARED / "tokenizers"
