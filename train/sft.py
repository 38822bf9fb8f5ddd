"""Supervised fine-tuning of a causal language model, existing or new.

    accelerate launch train/sft.py --config recipes/<task>/sft.yaml

The same as `ivg train sft`: all of it stands in ivg/commands/train/sft.py.
"""

import sys

from ivg.commands.train.sft import main

if __name__ == "__main__":
    sys.exit(main())
