"""A training script whose checkpoints stand without their marker for a minute, for a test to strike there.

    python tests/train/slow_checkpoints.py train/dpo.py --config ...

The first checkpoint, which a killed job goes back to, is marked at once. Without this a tiny model's
checkpoint is whole within milliseconds, and a busy machine looks too late.
"""

import runpy
import sys
import time
from pathlib import Path

from ivg.training import resume

SECONDS = 60
mark_complete = resume.mark_complete
marked = []


def mark_late(checkpoint: Path) -> None:
    if marked:
        time.sleep(SECONDS)
    marked.append(checkpoint)
    mark_complete(checkpoint)


resume.mark_complete = mark_late
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
