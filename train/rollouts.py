"""Sample responses from a model, score them, and write training data for DPO and value models.

    accelerate launch train/rollouts.py --config recipes/<task>/rollouts.yaml

The same as `ivg train rollouts`: all of it stands in ivg/commands/train/rollouts.py.
"""

import sys

from ivg.commands.train.rollouts import main

if __name__ == "__main__":
    sys.exit(main())
