"""Write the quickstart's prompts, reviews and tokenizer.

    python recipes/quickstart/prepare.py --config recipes/quickstart/prepare.yaml

Writes to output_dir: prompts.{train,validation,test}.jsonl, reviews.{train,validation}.jsonl and tokenizer/.
"""

import argparse
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import corpus

from ivg.config.yaml_file import build, read_yaml
from ivg.errors import exit_on_user_error
from ivg.evaluation.progress import tracked
from ivg.run.json_files import write_jsonl
from ivg.training.tokenizer import train_tokenizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """Sizes of the made-up task; `seed` decides prompts and reviews."""

    output_dir: str
    seed: int
    num_train: int
    num_validation: int
    num_test: int
    vocab_size: int


def read_config(path: str) -> PrepareConfig:
    """Read the YAML strictly."""
    config: PrepareConfig = build(PrepareConfig, read_yaml(path), path)
    return config


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the splits, write a review for every training and validation prompt, train the tokenizer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file")
    config = read_config(parser.parse_args(argv).config)
    splits = corpus.split_prompts(
        config.seed,
        num_train=config.num_train,
        num_validation=config.num_validation,
        num_test=config.num_test,
    )
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for name, prompts in splits._asdict().items():
        rows = [{"id": f"{name}-{i}", "prompt": prompt} for i, prompt in enumerate(prompts)]
        write_jsonl(output / f"prompts.{name}.jsonl", rows)
    texts = []
    for name in ("train", "validation"):
        rng = random.Random(f"{config.seed} {name}")
        with tracked(getattr(splits, name), f"reviews for {name} prompts") as prompts:
            # A review opens with the blank that parts it from the prompt.
            rows = [{"prompt": prompt, "completion": " " + corpus.write_review(rng)} for prompt in prompts]
        write_jsonl(output / f"reviews.{name}.jsonl", rows)
        texts += [row["prompt"] + row["completion"] for row in rows if name == "train"]
    train_tokenizer(texts, config.vocab_size).save_pretrained(output / "tokenizer")
    print(f"{len(texts)} training reviews, for example: {texts[0]}")


if __name__ == "__main__":
    main()
