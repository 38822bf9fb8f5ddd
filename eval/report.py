"""Turn a folder of results into report.md and one HTML page that stands alone.

    python eval/report.py --help

The same as `ivg eval report`: all of it stands in ivg/commands/eval/report.py.
"""

import sys

from ivg.commands.eval.report import main

if __name__ == "__main__":
    sys.exit(main())
