"""A Hugging Face sequence classifier as a reward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from ivg.errors import UserError, first_line
from ivg.models.inspection import context_length
from ivg.models.prompts import Row
from ivg.models.rendering import Renderer, check_format
from ivg.rewards.config import RewardConfig

logger = logging.getLogger(__name__)
# Tokenizers without a limit of their own say 1e30.
_NO_LIMIT = 2**31


class ClassifierReward:
    """A sequence classifier as a reward: its single logit, or the log-odds of one label.

    With several labels the reward is log p(label) - log(1 - p(label)), which for two labels is the
    difference of the raw logits.

    An encoder reads a text that is longer than its context up to there, as it was trained to; a decoder,
    whose verdict stands at the last token, gives such a text no score (NaN). Both are counted.

    Attributes:
        num_cut: texts that were longer than the context, up to now.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, label_id: int | None, config: RewardConfig
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.label_id = label_id
        self.config = config
        self._renderer = Renderer(tokenizer, config.template)
        self.limit = context_of(model.config, tokenizer)
        self.num_cut = 0

    @classmethod
    def load(cls, config: RewardConfig) -> ClassifierReward:
        """Load a classifier after checking its head from its configuration alone.

        Raises:
            UserError: not a sequence classifier, no tokenizer, a template that it does not have, or
                another one than it was trained with.
        """
        path = str(config.model)
        label_id = check_classifier(path, config.revision, config.label)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision)
        except (OSError, ValueError, TypeError) as error:
            reason = first_line(error)
            raise UserError(f"reward model {path}: its tokenizer cannot be loaded: {reason}") from error
        Renderer(tokenizer, config.template).require_end(f"reward model {path}", judges=True)
        check_format(path, f"reward model {path}", tokenizer, config.template)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForSequenceClassification.from_pretrained(path, revision=config.revision)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model.to(device).eval(), tokenizer, label_id, config)

    def encode(self, row: Row, response: str) -> list[int]:
        """Return the ids that the classifier reads: those that its training saw (`ivg.models.rendering`)."""
        return self._renderer.judged_ids(row, response)

    @property
    def is_encoder(self) -> bool:
        """Whether the tokenizer closes texts with a separator."""
        return self._renderer.is_encoder

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row], responses: Sequence[str]) -> list[float]:
        """Score responses in batches of `batch_size`, longest together so that padding stays short."""
        encoded = [self.encode(row, text) for row, text in zip(rows, responses, strict=True)]
        fits = self._fit(encoded)
        order = sorted((i for i, ok in enumerate(fits) if ok), key=lambda i: len(encoded[i]))
        scores = [float("nan")] * len(encoded)
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            padded = self.tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
            logits = self.model(**padded.to(self.model.device)).logits.float()  # (R, labels)
            for i, value in zip(batch, self._reward(logits).tolist(), strict=True):
                scores[i] = value
        return scores

    def _fit(self, encoded: list[list[int]]) -> list[bool]:
        """Tell which texts can be scored; an encoder's are cut in place, before their closing token."""
        limit = self.limit
        if limit is None:
            return [True] * len(encoded)
        too_long = [i for i, ids in enumerate(encoded) if len(ids) > limit]
        if too_long and self.num_cut == 0:
            logger.warning(
                "reward model %s: %d of %d texts are longer than its context of %d tokens and %s",
                self.config.model,
                len(too_long),
                len(encoded),
                limit,
                "are read up to there" if self.is_encoder else "get no score",
            )
        self.num_cut += len(too_long)
        if not self.is_encoder:
            return [len(ids) <= limit for ids in encoded]
        for i in too_long:
            encoded[i] = [*encoded[i][: limit - 1], encoded[i][-1]]
        return [True] * len(encoded)

    def _reward(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits (R, labels) into rewards (R,)."""
        if self.label_id is None:
            return logits[:, 0]
        others = torch.cat([logits[:, : self.label_id], logits[:, self.label_id + 1 :]], dim=1)
        return logits[:, self.label_id] - others.logsumexp(dim=1)


def context_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens a classifier reads; a tokenizer may allow less than there are positions for."""
    shortest = min(tokenizer.model_max_length, context_length(config) or _NO_LIMIT)
    return int(shortest) if shortest < _NO_LIMIT else None


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
