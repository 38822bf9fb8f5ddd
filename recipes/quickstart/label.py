"""Label decoded samples with the gold reward, for training a value model on them.

    python recipes/quickstart/label.py IN.jsonl OUT.jsonl

Writes {"id", "prompt", "completion", "reward", "finish_reason"} for each response.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import review_reward

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.measures.decoded import read_decoded
from ivg.run.json_files import write_jsonl


@exit_on_user_error
def main(arguments: Sequence[str]) -> None:
    """Read, score, write."""
    if len(arguments) != 2:
        raise UserError(f"got {len(arguments)} arguments; give IN.jsonl OUT.jsonl")
    decoded = read_decoded("samples", arguments[0])
    rewards = review_reward.gold(decoded.rows, decoded.responses)
    kept = [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "completion": row["response"],
            "reward": reward,
            "finish_reason": row["finish_reason"],
        }
        for row, reward in zip(decoded.rows, rewards, strict=True)
        if row["response"].strip()
    ]
    write_jsonl(Path(arguments[1]), kept)


if __name__ == "__main__":
    main(sys.argv[1:])
