"""Label samples that were drawn for one reward with another one: pairs and rewards without sampling again.

    python recipes/smollm2/label.py SAMPLED OUT FUNCTION

SAMPLED is what `ivg train rollouts` wrote, FUNCTION a reward's dotted name. OUT gets completions.jsonl,
preferences.jsonl and statistics.json, as SAMPLED has them.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ivg.errors import UserError, exit_on_user_error
from ivg.rewards import RewardConfig, load_reward, score
from ivg.run.json_files import write_json, write_jsonl
from ivg.training.data import read_jsonl
from ivg.training.rollouts import labelling


@exit_on_user_error
def main(arguments: Sequence[str]) -> None:
    """Read, score, write."""
    if len(arguments) != 3:
        raise UserError(f"got {len(arguments)} arguments; give SAMPLED OUT FUNCTION")
    sampled, out, function = arguments
    samples = [
        row for path in sorted((Path(sampled) / "samples").glob("*.jsonl")) for row in read_jsonl(path)
    ]
    if not samples:
        raise UserError(f"{sampled}: holds no samples; give the output_dir of ivg train rollouts")
    rewards = score(
        load_reward(RewardConfig(function=function)),
        samples,
        [row["completion"] for row in samples],
        function,
    )
    labelled = [
        {**row, "reward": reward if math.isfinite(reward) else None}
        for row, reward in zip(samples, rewards, strict=True)
    ]
    completions = labelling.usable(labelled)
    pairs = labelling.preference_pairs(completions, strategy="best-worst")
    output = Path(out)
    output.mkdir(parents=True, exist_ok=True)
    write_jsonl(output / "completions.jsonl", completions)
    write_jsonl(output / "preferences.jsonl", pairs.rows)
    statistics = labelling.describe(labelled, pairs)
    write_json(output / "statistics.json", statistics, sort_keys=True)
    print(
        f"{output}: {len(completions)} completions, {len(pairs.rows)} pairs, "
        f"reward {statistics['reward_mean']:.3f} +- {statistics['reward_std']:.3f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
