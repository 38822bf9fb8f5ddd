"""How far a method's responses lie from what the base itself would write.

The distance of method m from the base is, in nats per response,

    E_{x, y ~ m}[-log p_base(y | x)] - E_{x, y ~ base}[-log p_base(y | x)],

with the prompt in the base's own template, the base's own end included where the response came to one, and
both expectations over the same prompts. Zero for the base by construction; it grows as responses become
unlikely. Repetition makes text likely, so read it beside distinct-2 and length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ivg.decoding.log_ratio import log_probs
from ivg.errors import UserError
from ivg.models.prompts import Record
from ivg.models.rendering import Renderer


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A prompt and a response as the ids that one model sees."""

    prompt_ids: list[int]
    response_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def encode_response(
    tokenizer: PreTrainedTokenizerBase,
    row: Record,
    *,
    template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> EncodedResponse:
    """Encode an output row for the base, as `ivg.models.rendering` says: closed by its own end if it ended.

    The sampled ids are used where the row has `token_ids`, without what ended the response (an EOS, or a stop
    string); otherwise the text is encoded.

    Args:
        tokenizer: the base's own.
        row: an output row: prompt, `response`, and optionally `token_ids` and `finish_reason`.
        template: how the base sees a prompt; see `ivg.models.prompts.encode_prompt`.
        chat_template_kwargs: what its chat template is told.

    Raises:
        UserError: the ids do not spell the response in this tokenizer, or no token of the base's ends one.
    """
    renderer = Renderer(tokenizer, template, chat_template_kwargs)
    prompt_ids = renderer.prompt_ids(row)
    text, reason = str(row["response"]), row.get("finish_reason")
    is_ended = reason in ("eos", "stop")
    if row.get("token_ids") is None:
        return EncodedResponse(prompt_ids, renderer.response_ids(text, is_ended=is_ended))
    ids = [int(token) for token in row["token_ids"]]
    spelt = tokenizer.decode(ids, skip_special_tokens=True)
    if not spelt.strip().startswith(text.strip()):
        raise UserError(
            f"token_ids spell {spelt!r:.60} with {tokenizer.name_or_path}, but the response is {text!r:.60}; "
            "give the base that decoded this file"
        )
    if not is_ended:
        return EncodedResponse(prompt_ids, ids)
    content = ids[:-1] if reason == "eos" else _before_stop(tokenizer, ids, text)
    if content is None:
        return EncodedResponse(prompt_ids, renderer.response_ids(text, is_ended=True))
    return EncodedResponse(prompt_ids, content + renderer.response_ids("", is_ended=True))


def _before_stop(tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str) -> list[int] | None:
    """Return the ids that spell a response up to its stop string; None where that begins inside a token."""
    for num_tokens in range(len(ids) - 1, -1, -1):
        spelt = tokenizer.decode(ids[:num_tokens], skip_special_tokens=True)
        if spelt.strip() == text.strip():
            return ids[:num_tokens]
        if len(spelt.strip()) < len(text.strip()):
            break
    return None


@torch.inference_mode()
def response_nll(model: Any, encoded: Sequence[EncodedResponse], *, max_tokens: int = 8192) -> list[float]:
    """Score each response: -Σ_t log p(y_t | x, y_<t) in nats, at temperature 1.

    Args:
        model: a Hugging Face causal language model.
        encoded: prompts and responses in its ids; a prompt must not be empty.
        max_tokens: padded tokens per forward pass.

    Returns:
        One number per response, in order; NaN for an empty response, which has no tokens to score.
    """
    scores = [math.nan] * len(encoded)
    for batch in _batches(encoded, max_tokens):
        logps = response_logps(model, [encoded[i] for i in batch])
        for i, row in zip(batch, logps, strict=True):
            scores[i] = -float(row.double().sum())
    return scores


def _batches(encoded: Sequence[EncodedResponse], max_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of non-empty responses, sorted by length, in batches of bounded padded size."""
    order = sorted((i for i in range(len(encoded)) if encoded[i].response_ids), key=lambda i: len(encoded[i]))
    batch: list[int] = []
    for i in order:
        if batch and len(encoded[i]) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def response_logps(model: Any, batch: Sequence[EncodedResponse]) -> list[Tensor]:
    """Return log p(y_t | x, y_<t) for each response token of a batch, one (T_i,) tensor per row."""
    logits = response_logits(model, batch)
    targets = [
        torch.tensor(row.response_ids, device=rows.device) for row, rows in zip(batch, logits, strict=True)
    ]
    return [
        log_probs(rows).gather(1, ids[:, None])[:, 0]  # (T_i,)
        for rows, ids in zip(logits, targets, strict=True)
    ]


def response_logits(model: Any, batch: Sequence[EncodedResponse]) -> list[Tensor]:
    """Return the logits that predict each response token, one (T_i, V) tensor per row.

    Rows are padded on the right, where causal attention never looks; logits are made only from the
    shortest prompt's last token on.
    """
    if not all(row.prompt_ids for row in batch):
        raise UserError(
            "a prompt without tokens gives the response's first token no distribution; give a BOS"
        )
    width = max(map(len, batch))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(batch):
        ids[i, : len(row)] = torch.tensor(row.prompt_ids + row.response_ids)
        mask[i, : len(row)] = 1
    first = min(len(row.prompt_ids) for row in batch) - 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=width - first, use_cache=False).logits
    starts = [len(row.prompt_ids) - 1 - first for row in batch]
    return [
        logits[i, start : start + len(row.response_ids)]  # (T_i, V)
        for i, (start, row) in enumerate(zip(starts, batch, strict=True))
    ]
