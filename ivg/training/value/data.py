"""Rows for value training as token ids: exactly those that decoding will feed the value model.

`ivg.models.rendering` says which: the prompt in its template, the response as it stands, and the model's own
end where it came to one. Right padding, so that absolute positions are those of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ivg.models.rendering import Renderer
from ivg.training.encoding import IGNORED, encode_pair, response_ids
from ivg.training.rows import as_prompt_row


def encode_rewarded(rows: datasets.Dataset, renderer: Renderer) -> list[dict[str, Any]]:
    """Encode rows of prompt, completion and reward.

    A field `finish_reason`, where there is one, tells which responses came to their end (`eos` or `stop`) and
    which were cut; rows without it did.

    Returns:
        Per row: `sequences` (one list of ids), `num_prompt_tokens`, `reward`, and `group`, a number that
        rows with the same prompt share.
    """
    groups: dict[str, int] = {}
    encoded = []
    for row in rows:
        prompt = renderer.prompt_ids(as_prompt_row(row["prompt"]))
        encoded.append(
            {
                "sequences": [prompt + response_ids(row, "completion", renderer)],
                "num_prompt_tokens": len(prompt),
                "reward": float(row["reward"]),
                "group": groups.setdefault(str(row["prompt"]), len(groups)),
            }
        )
    return encoded


def encode_pairs(rows: datasets.Dataset, renderer: Renderer) -> list[dict[str, Any]]:
    """Encode rows of prompt, chosen and rejected.

    Returns:
        Per row: `sequences` (chosen, rejected) and `num_prompt_tokens`.
    """
    encoded = []
    for row in rows:
        prompt, chosen, rejected = encode_pair(row, renderer).values()
        encoded.append({"sequences": [prompt + chosen, prompt + rejected], "num_prompt_tokens": len(prompt)})
    return encoded


class ValueCollator:
    """Pad rows of S sequences each (1, or chosen and rejected) into one batch."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate B rows, padded to T tokens.

        Returns:
            `input_ids` and `attention_mask` (B, S, T); `labels` (B, S, T): the ids of response tokens, -100
            elsewhere; and where the rows carry them, `rewards` (B,) in float32 and `groups` (B,). Rows with
            `policy_prompt` give the same responses after those prompts too: `policy_input_ids`,
            `policy_attention_mask` and `policy_labels` (B, T').
        """
        num_sequences = len(features[0]["sequences"])
        sequences = [ids for feature in features for ids in feature["sequences"]]
        starts = [feature["num_prompt_tokens"] for feature in features for _ in range(num_sequences)]
        shape = (len(features), num_sequences, -1)
        batch = {name: tensor.view(shape) for name, tensor in self._pad(sequences, starts).items()}
        if "reward" in features[0]:
            batch["rewards"] = torch.tensor([feature["reward"] for feature in features])
            batch["groups"] = torch.tensor([feature["group"] for feature in features])
        if "policy_prompt" in features[0]:
            prompts = [feature["policy_prompt"] for feature in features]
            responses = [f["sequences"][0][f["num_prompt_tokens"] :] for f in features]
            sequences = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
            padded = self._pad(sequences, list(map(len, prompts)))
            batch |= {f"policy_{name}": tensor for name, tensor in padded.items()}
        return batch

    def _pad(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> dict[str, Tensor]:
        """Pad N sequences on the right; a response starts where `starts` says. All results are (N, T)."""
        tensors = [torch.tensor(ids) for ids in sequences]
        input_ids = pad_sequence(tensors, batch_first=True, padding_value=self.pad_token_id)  # (N, T)
        positions = torch.arange(input_ids.shape[1])  # (T,)
        attention_mask = positions < torch.tensor(list(map(len, sequences))).unsqueeze(1)  # (N, T)
        is_response = attention_mask & (positions >= torch.tensor(starts).unsqueeze(1))
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask.long(),
            "labels": input_ids.masked_fill(~is_response, IGNORED),
        }
