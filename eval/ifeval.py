"""IFEval of decoded files: strict and loose accuracy, by prompt and by instruction. No judge is asked.

    python eval/ifeval.py --help

The same as `ivg eval ifeval`: all of it stands in ivg/commands/eval/ifeval.py.
"""

import sys

from ivg.commands.eval.ifeval import main

if __name__ == "__main__":
    sys.exit(main())
