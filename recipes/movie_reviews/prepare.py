"""Split real sentences of film reviews into prompts, texts and preference pairs; train a tokenizer.

    python recipes/movie_reviews/prepare.py --config recipes/movie_reviews/prepare.yaml

Reads pos.txt and neg.txt, one sentence a line (Pang and Lee's sentence polarity data), from data_dir. Writes
to output_dir: prompts.{train,validation,test}.jsonl (a sentence's first words), sentences.*.jsonl (prompt and
rest), pairs.*.jsonl (a positive against a negative sentence) and tokenizer/.
"""

import argparse
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from ivg.config.yaml_file import build, read_yaml
from ivg.errors import UserError, exit_on_user_error
from ivg.run.json_files import write_jsonl
from ivg.training.tokenizer import train_tokenizer

SPLITS = ("test", "validation", "train")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """Where the sentences lie, and how they are split; `num_*` counts sentences of each kind."""

    data_dir: str
    output_dir: str
    seed: int
    num_validation: int
    num_test: int
    prompt_words: int
    negatives_per_positive: int
    vocab_size: int


def read_sentences(path: Path, min_words: int) -> list[str]:
    """Read distinct sentences that are long enough."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the folder of pos.txt and neg.txt") from error
    sentences = dict.fromkeys(" ".join(line.split()) for line in lines)
    return [sentence for sentence in sentences if len(sentence.split()) >= min_words]


def split(sentences: Sequence[str], config: PrepareConfig, rng: random.Random) -> dict[str, list[str]]:
    """Shuffle, and take the test and validation sentences off the top."""
    shuffled = rng.sample(sentences, len(sentences))
    ends = (config.num_test, config.num_test + config.num_validation, len(shuffled))
    if ends[1] >= ends[2]:
        raise UserError(f"{len(shuffled)} sentences are too few for {ends[1]} held-out ones")
    starts = (0, *ends[:2])
    return {name: shuffled[a:b] for name, a, b in zip(SPLITS, starts, ends, strict=True)}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Split, pair, train the tokenizer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value, such as data_dir=FOLDER")
    options = parser.parse_args(argv)
    config = build(PrepareConfig, read_yaml(options.config, options.overrides), options.config)
    rng = random.Random(config.seed)
    kinds = {
        kind: split(
            read_sentences(Path(config.data_dir) / f"{kind}.txt", 2 * config.prompt_words), config, rng
        )
        for kind in ("pos", "neg")
    }
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for name in SPLITS:
        positive, negative = (kinds[kind][name] for kind in ("pos", "neg"))
        sentences = rng.sample([*positive, *negative], len(positive) + len(negative))
        parts = [sentence.split(maxsplit=config.prompt_words) for sentence in sentences]
        rows = [{"prompt": " ".join(words), "completion": f" {rest}"} for *words, rest in parts]
        write_jsonl(output / f"sentences.{name}.jsonl", rows)
        prompts = [p for p in dict.fromkeys(row["prompt"] for row in rows) if p not in taken]
        taken.update(prompts)  # no prompt is in two splits
        write_jsonl(
            output / f"prompts.{name}.jsonl",
            [{"id": f"{name}-{i}", "prompt": prompt} for i, prompt in enumerate(prompts)],
        )
        pairs = [
            {"prompt": "", "chosen": chosen, "rejected": rejected}
            for chosen in positive
            for rejected in rng.sample(negative, config.negatives_per_positive)
        ]
        write_jsonl(output / f"pairs.{name}.jsonl", pairs)
        print(f"{name}: {len(sentences)} sentences, {len(prompts)} prompts, {len(pairs)} pairs")
    texts = [*kinds["pos"]["train"], *kinds["neg"]["train"]]
    train_tokenizer(texts, config.vocab_size).save_pretrained(output / "tokenizer")


if __name__ == "__main__":
    main()
