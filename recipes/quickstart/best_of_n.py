"""Score a draw of many samples per prompt by the value model, so that best-of-N can be read off for every N.

    python recipes/quickstart/best_of_n.py DRAWS VALUE OUT.jsonl

DRAWS is what `ivg train rollouts` wrote, VALUE a value model's folder. Best-of-N is the best of the first N
samples of each prompt, by the value or (an upper bound for any value model) by the gold reward itself.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.measures.distance import EncodedResponse, encode_response
from ivg.evaluation.progress import tracked
from ivg.run.json_files import write_jsonl
from ivg.training.data import read_jsonl
from ivg.training.value.heads import prefix_values, prepare_value_model

Sample = Mapping[str, Any]
BATCH = 256


def first_n(samples: Sequence[Sample], n: int, by: str) -> list[Sample]:
    """Choose the best of the first n samples of each prompt; of equals, the earliest.

    Args:
        samples: with `id` (of the prompt) and `sample` (the number of the draw).
        n: how many.
        by: the field that ranks: `value` or `reward`.

    Raises:
        ValueError: a prompt has fewer than n.
    """
    by_prompt: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample["sample"] < n:
            by_prompt[sample["id"]].append(sample)
    if any(len(drawn) < n for drawn in by_prompt.values()):
        raise ValueError(f"a prompt has fewer than {n} samples")
    return [max(drawn, key=lambda sample: (sample[by], -sample["sample"])) for drawn in by_prompt.values()]


@torch.inference_mode()
def with_values(samples: Sequence[Sample], folder: str) -> list[dict[str, Any]]:
    """Return the samples with the score that a value model's folder gives to each, longest first."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForTokenClassification.from_pretrained(folder).eval()
    prepare_value_model(module)
    rows = [{**sample, "response": sample["completion"]} for sample in samples]
    encoded = [encode_response(tokenizer, row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(encoded[i]))
    valued = []
    with tracked(range(0, len(order), BATCH), "scoring") as starts:
        for start in starts:
            places = order[start : start + BATCH]
            for i, score in zip(places, final_values(module, [encoded[i] for i in places]), strict=True):
                valued.append({**samples[i], "value": score})
    return valued


def final_values(module: Any, batch: Sequence[EncodedResponse]) -> list[float]:
    """Return the value of each whole response, its end included."""
    width = max(map(len, batch))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    attended, is_response = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(batch):
        ids[i, : len(row)] = torch.tensor([*row.prompt_ids, *row.response_ids])
        attended[i, : len(row)] = 1
        is_response[i, len(row.prompt_ids) : len(row)] = True
    values = prefix_values(module, ids, attended, is_response)["values"]
    return [float(values[i, len(row) - 1]) for i, row in enumerate(batch)]


@exit_on_user_error
def main(arguments: Sequence[str]) -> None:
    """Read, score, write."""
    if len(arguments) != 3:
        raise UserError(f"got {len(arguments)} arguments; give DRAWS VALUE OUT.jsonl")
    draws, value, out = arguments
    samples = [row for path in sorted((Path(draws) / "samples").glob("*.jsonl")) for row in read_jsonl(path)]
    if not samples:
        raise UserError(f"{draws}: holds no samples; give the output_dir of `ivg train rollouts`")
    write_jsonl(Path(out), with_values(samples, value))


if __name__ == "__main__":
    main(sys.argv[1:])
