"""Sample responses from a model, score them, and write training data for DPO and value models.

    ivg train rollouts --config recipes/<task>/rollouts.yaml

Writes to output_dir: completions.jsonl (prompt, completion, reward), preferences.jsonl (prompt, chosen,
rejected) and statistics.json. Killed and started again with the same command, it goes on after the last
finished block; several processes share the blocks. Keys: ivg/training/rollouts/arguments.py.
"""

import sys
from pathlib import Path

from ivg.errors import exit_on_user_error, needs

with needs("train"):
    from rich.console import Console
    from rich.table import Table

    from ivg.models.loading import load_inspected
    from ivg.rewards import load_reward
    from ivg.run.console import note
    from ivg.run.json_files import write_json, write_jsonl
    from ivg.run.processes import end_processes, join_processes
    from ivg.training import arguments
    from ivg.training.data import read_jsonl
    from ivg.training.resume import claim_output, own_output, settings_of
    from ivg.training.rollouts import labelling, sampling
    from ivg.training.rollouts.arguments import RolloutArguments


@exit_on_user_error
def main() -> None:
    """Check, sample and score, label."""
    state = join_processes()
    (args,) = arguments.parse_arguments((RolloutArguments,), sys.argv[1:])
    with own_output(args.output_dir):
        prompts = sampling.load_prompts(args)
        policy, reward_config = sampling.inspect_policy(prompts, args), args.reward()
        claim_output(args.output_dir, settings_of(args), overwrite=args.overwrite_output)
        samples_dir = Path(args.output_dir) / "samples"
        samples_dir.mkdir(exist_ok=True)

        reward = load_reward(reward_config)
        sampling.sample_blocks(prompts, load_inspected(policy), reward, args, samples_dir)
        if state.is_main_process:
            label(args, samples_dir)
    end_processes()


def label(args: RolloutArguments, samples_dir: Path) -> None:
    """Turn all finished blocks into completions, preferences and statistics."""
    samples = [row for path in sorted(samples_dir.glob("block-*.jsonl")) for row in read_jsonl(path)]
    completions = labelling.usable(samples)
    pairs = labelling.preference_pairs(
        completions, strategy=args.pairs, margin=args.min_margin, seed=args.seed
    )
    output = Path(args.output_dir)
    write_jsonl(output / "completions.jsonl", completions)
    write_jsonl(output / "preferences.jsonl", pairs.rows)
    statistics = labelling.describe(samples, pairs)
    write_json(output / "statistics.json", statistics, sort_keys=True)
    table = Table("statistic", "value", title=f"Rollouts in {output}")
    for name, value in statistics.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    if warning := labelling.warn_of_cut(statistics, args.max_new_tokens):
        note(f"warning: {warning}")


if __name__ == "__main__":
    main()
