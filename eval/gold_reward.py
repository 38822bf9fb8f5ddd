"""Judge decoded files by a reward model, beside length, repetition and distance from the base.

    python eval/gold_reward.py base=runs/base.jsonl ivg=runs/ivg.jsonl \
        --function ivg.rewards.vader --base models/base --output runs/gold_reward.json

The first file holds the base's own samples; the last is the one that the others are compared with, unless
`--reference` names another.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.decoded import Decoded, check_same_prompts, read_decoded
from ivg.evaluation.distance import EncodedResponse, encode_response, response_nll
from ivg.evaluation.measures import compare, measure, missing_reasons
from ivg.evaluation.tables import methods_table, paired_table
from ivg.rewards import RewardConfig, load_reward, score


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="NAME=FILE.jsonl", help="decoded files, the base's first")
    reward = parser.add_argument_group("reward")
    reward.add_argument("--function", help="dotted name of a callable, such as ivg.rewards.vader")
    reward.add_argument("--model", help="folder or Hub name of a sequence classifier")
    reward.add_argument("--label", help="the classifier's label whose log-odds are the reward")
    reward.add_argument("--template", help="how the classifier sees a prompt: chat, or text with {prompt}")
    reward.add_argument("--batch_size", type=int, default=32, help="responses per pass of the classifier")
    distance = parser.add_argument_group("distance from the base")
    distance.add_argument("--base", help="folder or Hub name of the base; unset: no distance")
    distance.add_argument("--base_template", help="how the base sees a prompt; unset: its default")
    distance.add_argument("--max_tokens", type=int, default=8192, help="padded tokens per pass of the base")
    parser.add_argument("--reference", help="file that the others are subtracted from; default: the last")
    parser.add_argument("--output", help="write the numbers there as JSON")
    return parser.parse_args(argv)


def read_files(arguments: Sequence[str]) -> list[Decoded]:
    """Read NAME=FILE arguments and make sure that they can be compared."""
    files = []
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise UserError(f"got {argument!r}; expected NAME=FILE.jsonl, such as ivg=runs/ivg.jsonl")
        files.append(read_decoded(name, path))
    if len({file.name for file in files}) < len(files):
        raise UserError(f"two files have the same name in {' '.join(arguments)}; give each its own")
    check_same_prompts(files)
    return files


def check(args: argparse.Namespace, files: Sequence[Decoded]) -> None:
    """Find what can be found before any weights are loaded."""
    names = [file.name for file in files]
    if args.reference is not None and args.reference not in names:
        raise UserError(f"reference {args.reference!r} is not among the files {', '.join(names)}; name one")
    if args.output is not None and not Path(args.output).parent.is_dir():
        raise UserError(f"output {args.output}: its folder does not exist; create it")


def encode_for_base(args: argparse.Namespace, files: Sequence[Decoded]) -> list[list[EncodedResponse]]:
    """Turn every file's prompts and responses into the base's ids."""
    try:
        AutoConfig.from_pretrained(args.base)
        tokenizer = AutoTokenizer.from_pretrained(args.base)
    except (OSError, ValueError) as error:
        raise UserError(f"base {args.base}: not a model folder or Hub name ({error})") from error
    return [[encode_response(tokenizer, row, template=args.base_template) for row in f.rows] for f in files]


def base_nll(args: argparse.Namespace, encoded: Sequence[list[EncodedResponse]]) -> list[list[float]]:
    """Score every file's responses under the base."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(args.base).to(device).eval()
    return [response_nll(model, responses, max_tokens=args.max_tokens) for responses in encoded]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the evaluation."""
    args = parse_args(argv)
    files = read_files(args.files)
    check(args, files)
    config = RewardConfig(
        function=args.function,
        model=args.model,
        label=args.label,
        template=args.template,
        batch_size=args.batch_size,
    )
    encoded = None if args.base is None else encode_for_base(args, files)
    reward = load_reward(config)
    name = str(args.function or args.model)
    rewards = [score(reward, file.rows, file.responses, name) for file in files]
    nll = [None] * len(files) if encoded is None else base_nll(args, encoded)
    measured = {f.name: measure(f, r, n) for f, r, n in zip(files, rewards, nll, strict=True)}
    base = None if args.base is None else files[0].name
    report = {"reward": name, **compare(measured, base=base, reference=args.reference)}
    for file, values in zip(files, rewards, strict=True):
        report["methods"][file.name]["missing"] = missing_reasons(file, values)
    console = Console()
    console.print(methods_table(report).console())
    if len(files) > 1:
        console.print(paired_table(report).console())
    for file in files:
        for reason, count in report["methods"][file.name]["missing"].items():
            console.print(f"{file.name}: {count} of {len(file.rows)} responses without a reward: {reason}")
    if args.output is not None:
        Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
