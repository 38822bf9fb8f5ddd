"""Measure decoding speed rung by rung, each in a process of its own, all on the same work.

    python eval/bench.py --help

The same as `ivg eval bench`: all of it stands in ivg/commands/eval/bench.py.
"""

import sys

from ivg.commands.eval.bench import main

if __name__ == "__main__":
    sys.exit(main())
