"""Seconds per prompt and memory by response length, for every setting of a grid, and the reward each buys.

    python eval/speed.py --help

The same as `ivg eval speed`: all of it stands in ivg/commands/eval/speed.py.
"""

import sys

from ivg.commands.eval.speed import main

if __name__ == "__main__":
    sys.exit(main())
