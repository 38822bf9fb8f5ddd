"""How good is a judge? It is asked about comparisons that another judge has answered before.

    python eval/judge.py --help

The same as `ivg eval judge`: all of it stands in ivg/commands/eval/judge.py.
"""

import sys

from ivg.commands.eval.judge import main

if __name__ == "__main__":
    sys.exit(main())
