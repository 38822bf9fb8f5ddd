"""Measure how many responses stay the same when only the batch size changes.

    python eval/reproducibility.py --help

The same as `ivg eval reproducibility`: all of it stands in ivg/commands/eval/reproducibility.py.
"""

import sys

from ivg.commands.eval.reproducibility import main

if __name__ == "__main__":
    sys.exit(main())
