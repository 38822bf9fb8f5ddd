"""Train an explicit value model: a scorer of prefixes, on a stock token-classification class.

    accelerate launch train/value.py --config recipes/<task>/value.yaml

The same as `ivg train value`: all of it stands in ivg/commands/train/value.py.
"""

import sys

from ivg.commands.train.value import main

if __name__ == "__main__":
    sys.exit(main())
