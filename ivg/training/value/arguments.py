"""Settings of value training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from transformers import TrainingArguments

from ivg.errors import UserError
from ivg.training.value.heads import HeadKind

Objective = Literal["fudge", "cd-q", "prefix-bt"]


@dataclasses.dataclass
class ValueTrainingArguments(TrainingArguments):
    """Keys of value training, beside all of transformers' `TrainingArguments`."""

    objective: Objective = dataclasses.field(
        default="fudge",
        metadata={
            "help": "fudge: every prefix predicts the final reward; cd-q: each predicts the value after it, "
            "the last the reward; prefix-bt: chosen prefixes above rejected ones."
        },
    )
    head: HeadKind = dataclasses.field(
        default="vocabulary",
        metadata={
            "help": "scalar: one value per prefix; vocabulary: the value after every possible next token, "
            "which token guidance `explicit` needs."
        },
    )
    policy_model: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "cd-q with head vocabulary: every prefix predicts the value expected after a next token "
            "of this language model (the base: a folder or Hub name of the same vocabulary), instead of the "
            "value after the token that came. Every process holds it whole."
        },
    )
    policy_revision: str | None = dataclasses.field(default=None, metadata={"help": "Its Hub revision."})
    policy_dtype: Literal["auto", "float32", "bfloat16", "float16"] = dataclasses.field(
        default="auto", metadata={"help": "Type of its weights."}
    )
    policy_template: str | None = dataclasses.field(
        default=None,
        metadata={"help": "How it sees a prompt: 'chat', a format string with {prompt}, or unset."},
    )
    binary_reward: bool = dataclasses.field(
        default=False,
        metadata={"help": "Rewards are 0 or 1 and values are logits (cross-entropy); fudge only."},
    )
    normalize_rewards: bool = dataclasses.field(
        default=True,
        metadata={
            "help": "Train on rewards of mean 0 and standard deviation 1; undone in the saved head, whose "
            "values are in the reward's own unit."
        },
    )
    max_length: int | None = dataclasses.field(
        default=None,
        metadata={"help": "Longest prompt and response in tokens, >= 1; unset: the model's context."},
    )
    drop_overlong: bool = dataclasses.field(
        default=False, metadata={"help": "Leave out rows longer than that, instead of refusing them."}
    )
    trust_remote_code: bool = dataclasses.field(
        default=False,
        metadata={
            "help": "Run code shipped with a checkpoint (model, tokenizer or policy) instead of refusing it."
        },
    )
    disable_dropout: bool = dataclasses.field(
        default=True, metadata={"help": "Set every dropout of the model to 0."}
    )
    model_init_kwargs: dict[str, Any] | str | None = dataclasses.field(
        default=None, metadata={"help": "More keyword arguments for `from_pretrained`."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.model_init_kwargs, str):
            self.model_init_kwargs = json.loads(self.model_init_kwargs)
        if self.binary_reward and self.objective != "fudge":
            raise UserError(f"binary_reward goes with objective fudge, not {self.objective}; drop one")
        if self.policy_model is not None and (self.objective, self.head) != ("cd-q", "vocabulary"):
            raise UserError(
                "policy_model goes with objective cd-q and head vocabulary, "
                f"not {self.objective} and {self.head}; leave it out"
            )
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"max_length is {self.max_length}; give an integer >= 1")
        if self.push_to_hub and self.hub_strategy != "end":
            raise UserError(
                f"hub_strategy {self.hub_strategy} pushes checkpoints, whose values are in the training "
                "scale; set hub_strategy: end"
            )
        # Rows hold more than the columns that a model's forward names.
        self.remove_unused_columns = False

    @property
    def unit(self) -> str:
        """What a value of the trained model measures."""
        if self.objective == "prefix-bt":
            return "preference logit"
        return "logit" if self.binary_reward else "reward"

    @property
    def judged_unit(self) -> str:
        """What the evaluation compares with the final rewards: of a logit, the probability of reward 1."""
        return "probability" if self.binary_reward else self.unit


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RewardScale:
    """Mean and standard deviation of the training rewards; (0, 1) leaves rewards as they are."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, rewards: Sequence[float]) -> RewardScale:
        """Measure it.

        Raises:
            UserError: all rewards are equal, so there is nothing to learn.
        """
        std = float(np.std(rewards))
        if std == 0:
            raise UserError(f"all {len(rewards)} training rewards equal {rewards[0]}; nothing can be learnt")
        return cls(mean=float(np.mean(rewards)), std=std)
