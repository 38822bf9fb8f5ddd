"""Can these guides guide? How often a pair, a value model or a reward model ranks responses as it should.

    python eval/reward_accuracy.py --help

The same as `ivg eval reward-accuracy`: all of it stands in ivg/commands/eval/reward_accuracy.py.
"""

import sys

from ivg.commands.eval.reward_accuracy import main

if __name__ == "__main__":
    sys.exit(main())
