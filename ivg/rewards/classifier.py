"""A Hugging Face sequence classifier as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from ivg.errors import UserError
from ivg.prompts import Row, encode_prompt
from ivg.rewards.config import RewardConfig
from ivg.rewards.sentiment import plain_prompt


class ClassifierReward:
    """A sequence classifier as a reward: its single logit, or the log-odds of one label.

    With several labels the reward is log p(label) - log(1 - p(label)), which for two labels is the
    difference of the raw logits.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, label_id: int | None, config: RewardConfig
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.label_id = label_id
        self.config = config

    @classmethod
    def load(cls, config: RewardConfig) -> ClassifierReward:
        """Load a classifier after checking its head from its configuration alone."""
        path = str(config.model)
        label_id = check_classifier(path, config.revision, config.label)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForSequenceClassification.from_pretrained(path, revision=config.revision)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model.to(device).eval(), tokenizer, label_id, config)

    def encode(self, row: Row, response: str) -> list[int]:
        """Return the ids that the classifier reads: the prompt in its template, the response, EOS.

        An encoder (a tokenizer that closes texts with a separator) gets its own closing token instead.
        """
        if self.tokenizer.cls_token_id is not None and not self.tokenizer.chat_template:
            text = (self.config.template or "{prompt}").replace("{prompt}", plain_prompt(row)) + response
            return list(self.tokenizer(text, truncation=True)["input_ids"])
        ids = encode_prompt(self.tokenizer, row, self.config.template)
        ids = ids + list(self.tokenizer(response, add_special_tokens=False)["input_ids"])
        return ids if self.tokenizer.eos_token_id is None else [*ids, self.tokenizer.eos_token_id]

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row], responses: Sequence[str]) -> list[float]:
        """Score responses in batches of `batch_size`, longest together so that padding stays short."""
        encoded = [self.encode(row, text) for row, text in zip(rows, responses, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        scores = [0.0] * len(encoded)
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            padded = self.tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
            logits = self.model(**padded.to(self.model.device)).logits.float()  # (R, labels)
            for i, value in zip(batch, self._reward(logits).tolist(), strict=True):
                scores[i] = value
        return scores

    def _reward(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits (R, labels) into rewards (R,)."""
        if self.label_id is None:
            return logits[:, 0]
        others = torch.cat([logits[:, : self.label_id], logits[:, self.label_id + 1 :]], dim=1)
        return logits[:, self.label_id] - others.logsumexp(dim=1)


def check_classifier(path: str, revision: str | None, label: str | None) -> int | None:
    """Check a classifier's head from its configuration.

    Returns:
        The index of `label`, or None for a head with a single output.

    Raises:
        UserError: not a model, not a sequence classifier, or a missing or unknown label.
    """
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"reward model {path}: not a model folder or Hub name ({error})") from error
    heads = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in heads):
        raise UserError(
            f"reward model {path} is a {', '.join(heads) or config.model_type}; "
            "expected a model with a sequence-classification head"
        )
    if config.num_labels == 1:
        return None
    if label not in config.label2id:
        given = "no label was given" if label is None else f"it has no label {label!r}"
        raise UserError(
            f"reward model {path} has {config.num_labels} labels, but {given}; "
            f"give one of {', '.join(map(str, config.label2id))}"
        )
    return int(config.label2id[label])
