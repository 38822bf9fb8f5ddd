"""Direct preference optimisation: makes the tuned half of a guidance pair from the untuned one.

    accelerate launch train/dpo.py --config recipes/<task>/dpo.yaml

The same as `ivg train dpo`: all of it stands in ivg/commands/train/dpo.py.
"""

import sys

from ivg.commands.train.dpo import main

if __name__ == "__main__":
    sys.exit(main())
