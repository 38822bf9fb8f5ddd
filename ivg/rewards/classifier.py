"""A Hugging Face sequence classifier as a reward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ivg.errors import UserError
from ivg.models.inspection import (
    Adapter,
    read_adapter,
    read_config,
    read_tokenizer,
    readable_length,
    tokenizer_place,
)
from ivg.models.loading import default_device, load_weights
from ivg.models.prompts import Record
from ivg.models.rendering import Renderer, check_format
from ivg.rewards.config import RewardConfig

logger = logging.getLogger(__name__)


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
        self.limit = readable_length(model.config, tokenizer)
        self.num_cut = 0

    @classmethod
    def load(cls, config: RewardConfig) -> ClassifierReward:
        """Load a classifier after checking its head from its configuration alone.

        Raises:
            UserError: not a sequence classifier, no tokenizer, a template that it does not have, or
                another one than it was trained with.
        """
        path, name = str(config.model), f"reward model {config.model}"
        adapter = read_adapter(path, name)
        over = path if adapter is None else adapter.over
        given: dict[str, Any] = {
            "revision": config.revision if adapter is None else None,
            "trust_remote_code": config.trust_remote_code,
        }
        head = read_config(over, name, **given)
        label_id = check_classifier(head, adapter, name, config.label)
        tokenizer = read_tokenizer(tokenizer_place(path, over), name, **given)
        Renderer(tokenizer, config.template).require_end(name, judges=True)
        check_format(path, name, tokenizer, config.template)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = load_weights(
            "classifier",
            over,
            name,
            adapter=None if adapter is None else path,
            num_labels=head.num_labels,
            **given,
        )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model.to(config.device or default_device()).eval(), tokenizer, label_id, config)

    def encode(self, row: Record, response: str) -> list[int]:
        """Return the ids that the classifier reads: those that its training saw (`ivg.models.rendering`)."""
        return self._renderer.judged_ids(row, response)

    @property
    def is_encoder(self) -> bool:
        """Whether the tokenizer closes texts with a separator."""
        return self._renderer.is_encoder

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
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


def check_classifier(
    config: PretrainedConfig, adapter: Adapter | None, name: str, label: str | None
) -> int | None:
    """Check a classifier's head from its configuration.

    Args:
        config: the model's; gets the number of outputs of an adapter's head.
        adapter: what lies over it.
        name: how messages call it.
        label: which label's log-odds are wanted.

    Returns:
        The index of `label`, or None for a head with a single output.

    Raises:
        UserError: not a sequence classifier, or a missing or unknown label.
    """
    heads = list(config.architectures or [])
    is_headed = any(head.endswith("ForSequenceClassification") for head in heads)
    if adapter is not None and adapter.task == "SEQ_CLS":
        if adapter.num_labels is None and not is_headed:
            raise UserError(
                f"{name}: score.weight is missing from its adapter, and the model under it has no head; "
                "save the adapter with its head"
            )
        heads, config.num_labels = ["ForSequenceClassification"], adapter.num_labels or config.num_labels
    elif adapter is not None and adapter.task is not None:
        heads = [f"{adapter.task} adapter"]
    if not any(head.endswith("ForSequenceClassification") for head in heads):
        raise UserError(
            f"{name} is a {', '.join(heads) or config.model_type}; "
            "expected a model with a sequence-classification head"
        )
    if config.num_labels == 1:
        return None
    if label not in config.label2id:
        given = "no label was given" if label is None else f"it has no label {label!r}"
        raise UserError(
            f"{name} has {config.num_labels} labels, but {given}; "
            f"give one of {', '.join(map(str, config.label2id))}"
        )
    return int(config.label2id[label])
