"""Measure the engines side by side on the same models and work, each in a process of its own, in turns.

    python eval/bench_engines.py --help

The same as `ivg eval bench-engines`: all of it stands in ivg/commands/eval/bench_engines.py.
"""

import sys

from ivg.commands.eval.bench_engines import main

if __name__ == "__main__":
    sys.exit(main())
