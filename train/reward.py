"""Train a reward model, which scores finished responses, from preferences.

    accelerate launch train/reward.py --config recipes/<task>/reward.yaml

The same as `ivg train reward`: all of it stands in ivg/commands/train/reward.py.
"""

import sys

from ivg.commands.train.reward import main

if __name__ == "__main__":
    sys.exit(main())
