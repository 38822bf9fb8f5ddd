"""Judge decoded files by a reward model, beside length, repetition and distance from the base.

    python eval/gold_reward.py --help

The same as `ivg eval gold-reward`: all of it stands in ivg/commands/eval/gold_reward.py.
"""

import sys

from ivg.commands.eval.gold_reward import main

if __name__ == "__main__":
    sys.exit(main())
