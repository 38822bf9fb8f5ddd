"""Decode a grid of guidance settings with one model load; gold reward against distance and against compute.

    python eval/sweep.py --help

The same as `ivg eval sweep`: all of it stands in ivg/commands/eval/sweep.py.
"""

import sys

from ivg.commands.eval.sweep import main

if __name__ == "__main__":
    sys.exit(main())
