"""AlpacaEval 2: decode its instructions guided and unguided; a judge compares both with the reference.

    python eval/alpaca.py --help

The same as `ivg eval alpaca`: all of it stands in ivg/commands/eval/alpaca.py.
"""

import sys

from ivg.commands.eval.alpaca import main

if __name__ == "__main__":
    sys.exit(main())
