"""The base policy in value training: whose next token a vocabulary head's values are averaged over (cd-q)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ivg.errors import UserError
from ivg.models.inspection import context_length, read_config, read_tokenizer
from ivg.models.loading import load_weights
from ivg.models.prompts import encode_prompt
from ivg.models.rendering import Renderer
from ivg.models.vocab import compare
from ivg.training.models import whole_weights
from ivg.training.rows import as_prompt_row, refuse
from ivg.training.value.arguments import ValueTrainingArguments
from ivg.training.value.heads import NextLogits


class Policy:
    """A frozen causal language model that says how likely every next token is.

    Every process holds it whole, also under ZeRO-3.

    Args:
        model: the language model; its logits must be those of its last layer, unchanged.

    Raises:
        UserError: it changes its logits after the last layer.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self._check_logits()

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor, mask: Tensor) -> NextLogits:
        """Read whole sequences once; logits are then made for a few positions at a time.

        Args:
            input_ids: prompt and response, padded on the right (R, T).
            attention_mask: (R, T).
            mask: the positions wanted (R, T), numbered row by row.
        """
        with torch.no_grad():
            outputs = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask)
        hidden = outputs.last_hidden_state[mask]  # (N, H)
        return lambda part: self.model.get_output_embeddings()(hidden[part])

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Refuse a model that scales or caps its logits, which `next_logits` would not."""
        ids = torch.arange(2, device=self.model.device).unsqueeze(0)
        mask = torch.ones_like(ids)
        exact = self.model(input_ids=ids, attention_mask=mask).logits[0]
        found = self.next_logits(ids, mask, mask.bool())(slice(None))
        if not torch.allclose(exact.float(), found.float(), rtol=1e-2, atol=1e-2):
            raise UserError(
                f"policy_model: {type(self.model).__name__} scales or caps its logits after the last layer, "
                "which the expectation does not follow; give another model or leave policy_model out"
            )


def load_policy(training: ValueTrainingArguments) -> Policy | None:
    """Load the policy that the settings name, if they name one."""
    if training.policy_model is None:
        return None
    with whole_weights(training):
        model = load_weights(
            "causal",
            training.policy_model,
            f"policy_model {training.policy_model}",
            revision=training.policy_revision,
            trust_remote_code=training.trust_remote_code,
            dtype=training.policy_dtype,
        )
    return Policy(model.to(training.device))


def add_policy_prompts(
    encoded: Sequence[dict[str, Any]],
    rows: datasets.Dataset,
    name: str,
    training: ValueTrainingArguments,
    renderer: Renderer,
) -> None:
    """Give every encoded row `policy_prompt`, the ids of its prompt as the policy sees it.

    Args:
        encoded: from `encode_rewarded`, changed in place.
        rows: the rows it was made from.
        name: what to call them in an error message.
        training: the settings.
        renderer: how the value model reads text.

    Raises:
        UserError: no such model, its ids mean other tokens, or rows are longer than its context.
    """
    if training.policy_model is None:
        return
    name_of_policy = f"policy_model {training.policy_model}"
    trust = training.trust_remote_code
    config, policy_tokenizer = (
        read(
            training.policy_model, name_of_policy, revision=training.policy_revision, trust_remote_code=trust
        )
        for read in (read_config, read_tokenizer)
    )
    check_vocabulary(Renderer(policy_tokenizer, training.policy_template), renderer, training.policy_model)
    for new, row in zip(encoded, rows, strict=True):
        prompt = as_prompt_row(row["prompt"])
        new["policy_prompt"] = encode_prompt(policy_tokenizer, prompt, training.policy_template)
    context = context_length(config)
    if context is not None:
        lengths = [
            len(row["policy_prompt"]) + len(row["sequences"][0]) - row["num_prompt_tokens"] for row in encoded
        ]
        what = f"more than the policy model's {context} tokens"
        refuse(name, what, [length > context for length in lengths], "remove them")


def check_vocabulary(policy: Renderer, value: Renderer, name: str) -> None:
    """Refuse a policy whose ids do not mean the value model's tokens, or which ends responses otherwise.

    Args:
        policy: how the policy reads text.
        value: how the value model does.
        name: of the policy, for the message.

    Raises:
        UserError: saying how far the two token-to-id maps agree, or which token ends a response.
    """
    match = compare(policy.tokenizer, value.tokenizer)
    if not match.agrees:
        raise UserError(
            f"policy_model {name}: its ids are not the value model's ({match.summary()}; "
            f"{match.differing[0]!r} differs); give a model of the same vocabulary, or leave policy_model out"
        )
    if policy.end_id != value.end_id:
        raise UserError(
            f"policy_model {name}: it ends a response with {_end_of(policy)}, the value model with "
            f"{_end_of(value)}, so the policy's end would be valued by an output that is never trained; give "
            "both a template with one end (policy_template, prompt_template), or leave policy_model out"
        )


def _end_of(renderer: Renderer) -> str:
    if renderer.end_id is None:
        return "no token"
    return repr(renderer.tokenizer.convert_ids_to_tokens(renderer.end_id))
