"""What guides say of the first part of a response: after 25, 50, 75 and 100% of its tokens.

Responses are read as the guides were trained (`ivg.models.rendering`): the prompt in the model's own
template, the response, and the model's own end. Lockstep's rescoring feeds only what the shorter part has
not fed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ivg.engines.lockstep.lora_pair import separate_runners
from ivg.engines.lockstep.model_runner import runner_of
from ivg.engines.lockstep.rescoring import LogpRescorer, ValueRescorer
from ivg.engines.response_encoding import TokenSequence
from ivg.errors import UserError
from ivg.evaluation.measures.candidates import Candidates
from ivg.models.inspection import ModelInfo, readable_length
from ivg.models.loading import LoadedModel, LoadedPair

Array = NDArray[np.float64]
Read = Callable[[Sequence[TokenSequence]], list[float]]

PERCENTS = (25, 50, 75, 100)


def log_ratios(pair: LoadedPair, candidates: Candidates, *, batch_size: int) -> tuple[Array, Array]:
    """Return the pair's log-ratio of each part of each response.

    Args:
        pair: tuned and untuned, each reading the response in its own tokens.
        candidates: N responses.
        batch_size: responses side by side.

    Returns:
        Summed over the tokens (N, parts), and per token: each half's sum divided by its own tokens.
    """
    sums, means = [], []
    for model, runner in zip((pair.tuned, pair.untuned), separate_runners(pair), strict=True):
        info = model.info
        rescorer = LogpRescorer(runner, min(info.num_token_ids, info.num_outputs))
        sequences = encode(info, candidates)
        found = _read_parts(rescorer.read, rescorer.clear, info, sequences, batch_size)
        sums.append(found)
        means.append(found / np.array([part_lengths(len(s.ids) - s.num_prompt) for s in sequences]))
    return sums[0] - sums[1], means[0] - means[1]


def values(model: LoadedModel, candidates: Candidates, *, batch_size: int) -> Array:
    """Return a value model's score of each part of each response (N, parts).

    Args:
        model: a token classifier with a scalar or a vocabulary head.
        candidates: N responses.
        batch_size: responses side by side.
    """
    rescorer = ValueRescorer(runner_of(model), model.head, is_vocabulary=model.info.kind == "vocabulary")
    sequences = encode(model.info, candidates)
    return _read_parts(rescorer.read, rescorer.clear, model.info, sequences, batch_size)


def part_lengths(num_tokens: int) -> list[int]:
    """Return how many tokens of a response each part has: at least one, rounded up."""
    return [max(1, math.ceil(num_tokens * percent / 100)) for percent in PERCENTS]


def encode(info: ModelInfo, candidates: Candidates) -> list[TokenSequence]:
    """Return what a model reads of each response, its own end included.

    Raises:
        UserError: a response that does not fit the model's context.
    """
    renderer = info.renderer()
    limit = readable_length(info.config, info.tokenizer)
    prompts: dict[int, list[int]] = {}
    sequences = []
    for group, record, text in zip(
        candidates.groups.tolist(), candidates.records, candidates.responses, strict=True
    ):
        if group not in prompts:
            prompts[group] = renderer.prompt_ids(record)
        ids = (*prompts[group], *renderer.response_ids(text, is_ended=True))
        if limit is not None and len(ids) > limit:
            raise UserError(
                f"{info.name}: the response {text!r:.60} and its prompt are {len(ids)} tokens, more than its "
                f"context of {limit}; remove such rows"
            )
        sequences.append(TokenSequence(group, len(prompts[group]), ids))
    return sequences


def _read_parts(
    read: Read,
    clear: Callable[[], None],
    info: ModelInfo,
    sequences: Sequence[TokenSequence],
    batch_size: int,
) -> Array:
    found = np.empty((len(sequences), len(PERCENTS)))
    for start in range(0, len(sequences), batch_size):
        batch = sequences[start : start + batch_size]
        lengths = [part_lengths(len(s.ids) - s.num_prompt) for s in batch]
        for part in range(len(PERCENTS)):
            readings = [
                s._replace(ids=s.ids[: s.num_prompt + counts[part]])
                for s, counts in zip(batch, lengths, strict=True)
            ]
            found[start : start + len(batch), part] = read(readings)
        clear()
    if not np.isfinite(found).all():
        raise UserError(f"{info.name} returned NaN or infinite numbers; try another dtype")
    return found
