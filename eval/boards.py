"""Answers for other leaderboards, written as those read them: Arena-Hard v2 and MT-Bench.

    python eval/boards.py --help

The same as `ivg eval boards`: all of it stands in ivg/commands/eval/boards.py.
"""

import sys

from ivg.commands.eval.boards import main

if __name__ == "__main__":
    sys.exit(main())
