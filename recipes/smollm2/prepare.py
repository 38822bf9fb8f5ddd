"""Write the recipe's instructions as prompts, one file a split.

    python recipes/smollm2/prepare.py --config recipes/smollm2/prepare.yaml

Writes to output_dir: prompts.{train,validation,test}.jsonl, and the test instructions as plain text for bases
without a chat template, prompts.text.jsonl.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import instructions

from ivg.config.yaml_file import build, read_yaml
from ivg.errors import UserError, exit_on_user_error
from ivg.run.json_files import write_jsonl


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """How many instructions of each split, and the system turn that stands before every one."""

    output_dir: str
    seed: int
    num_train: int
    num_validation: int
    num_test: int
    system: str


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the splits and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file")
    path = parser.parse_args(argv).config
    config: PrepareConfig = build(PrepareConfig, read_yaml(path), path)
    try:
        splits = instructions.split_instructions(
            config.seed,
            num_train=config.num_train,
            num_validation=config.num_validation,
            num_test=config.num_test,
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}; lower num_train, num_validation or num_test") from error
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for name, texts in splits._asdict().items():
        write_jsonl(
            output / f"prompts.{name}.jsonl",
            [
                {"id": f"{name}-{i}", "messages": as_messages(config.system, text)}
                for i, text in enumerate(texts)
            ],
        )
        print(f"{len(texts)} {name} instructions, for example: {texts[0]}")
    plain = [{"id": f"test-{i}", "prompt": text} for i, text in enumerate(splits.test)]
    write_jsonl(output / "prompts.text.jsonl", plain)


def as_messages(system: str, instruction: str) -> list[dict[str, str]]:
    """Return the conversation that a model answers."""
    return [{"role": "system", "content": system}, {"role": "user", "content": instruction}]


if __name__ == "__main__":
    main()
