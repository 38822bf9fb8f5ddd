"""What value training needs, checked and loaded: rows as ids, the reward's scale, the model with its head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
from torch import nn
from transformers import (
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ivg.errors import UserError, readable
from ivg.models.inspection import context_length
from ivg.models.loading import quiet
from ivg.run.console import note
from ivg.training import checks
from ivg.training.arguments import DataArguments, ModelArguments
from ivg.training.data import load_training_data
from ivg.training.models import init_kwargs, load_tokenizer, planned_config, starting_point
from ivg.training.resume import check_resume, claim_output, settings_of
from ivg.training.rows import refuse
from ivg.training.value.arguments import RewardScale, ValueTrainingArguments
from ivg.training.value.data import encode_pairs, encode_rewarded
from ivg.training.value.heads import check_architecture, prepare_value_model
from ivg.training.value.policy import add_policy_prompts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ValueJob:
    """What the value trainer needs, checked.

    Attributes:
        model: path of the weights to start from.
        num_labels: outputs of the head: 1, or the size of the model's vocabulary.
        tokenizer: the model's.
        train_rows: encoded rows.
        eval_rows: encoded rows, held out.
        scale: of the training rewards.
        prompt_format: how prompts were rendered (`ivg.models.rendering`).
    """

    model: str
    num_labels: int
    tokenizer: PreTrainedTokenizerBase
    train_rows: list[dict[str, Any]]
    eval_rows: list[dict[str, Any]] | None
    scale: RewardScale
    prompt_format: dict[str, Any]


def prepare(data: DataArguments, training: ValueTrainingArguments, model: ModelArguments) -> ValueJob:
    """Load and check rows, tokenizer and config, and claim the output folder.

    Raises:
        UserError: anything wrong with data, model or output folder.
    """
    model.set_task("TOKEN_CLS")
    tokenizer = load_tokenizer(model)
    config = planned_config(model, tokenizer)
    check_architecture(config)
    names = (data.dataset_name, data.eval_dataset_name or data.dataset_name)
    train_rows, eval_rows = (
        None if rows is None else encode(rows, name, data, training, tokenizer, config)
        for name, rows in zip(names, load_training_data(data), strict=True)
    )
    assert train_rows is not None
    scaled = training.normalize_rewards and training.objective != "prefix-bt" and not training.binary_reward
    scale = RewardScale.of([row["reward"] for row in train_rows]) if scaled else RewardScale()
    claim_output(training.output_dir, settings_of(data, training, model), overwrite=data.overwrite_output)
    check_resume(training)
    assert not isinstance(training.model_init_kwargs, str)
    training.model_init_kwargs = init_kwargs(model, training.model_init_kwargs)
    return ValueJob(
        model=starting_point(model, config, tokenizer, training),
        num_labels=1 if training.head == "scalar" else config.get_text_config().vocab_size,
        tokenizer=tokenizer,
        train_rows=train_rows,
        eval_rows=eval_rows,
        scale=scale,
        prompt_format=data.renderer(tokenizer).describe(),
    )


def encode(
    rows: datasets.Dataset,
    name: str,
    data: DataArguments,
    training: ValueTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
) -> list[dict[str, Any]]:
    """Check rows for the objective and turn them into ids.

    Raises:
        UserError: wrong columns, bad rows, or rows longer than the model can see.
    """
    paired = training.objective == "prefix-bt"
    checks.check_columns(rows, (checks.PREFERENCE if paired else checks.REWARDED,), name)
    checks.check_rows(rows, name)
    if training.binary_reward:
        remedy = "set binary_reward: false or make them so"
        refuse(name, "a reward other than 0 and 1", [r not in (0, 1) for r in rows["reward"]], remedy)
    renderer = data.renderer(tokenizer)
    renderer.require_end(name)
    encoded = (encode_pairs if paired else encode_rewarded)(rows, renderer)
    add_policy_prompts(encoded, rows, name, training, renderer)
    return _within_limit(encoded, name, training, context_length(config))


def _within_limit(
    encoded: Sequence[dict[str, Any]], name: str, training: ValueTrainingArguments, context: int | None
) -> list[dict[str, Any]]:
    """Drop or refuse rows longer than `max_length` and the context."""
    limits = [limit for limit in (training.max_length, context) if limit is not None]
    if not limits:
        return list(encoded)
    limit = min(limits)
    too_long = [max(len(ids) for ids in row["sequences"]) > limit for row in encoded]
    if not training.drop_overlong:
        refuse(name, f"more than {limit} tokens", too_long, "raise max_length or set drop_overlong: true")
    kept = [row for row, long in zip(encoded, too_long, strict=True) if not long]
    if not kept:
        raise UserError(f"{name}: all {len(encoded)} rows have more than {limit} tokens; raise max_length")
    if len(kept) < len(encoded):
        note(f"{name}: dropped {len(encoded) - len(kept)} of {len(encoded)} rows beyond {limit} tokens")
    return kept


def load_model(
    job: ValueJob, training: ValueTrainingArguments, quantization: Any | None, peft_config: Any | None
) -> PreTrainedModel:
    """Load the model with its new head, ready for the value trainer.

    Called after the training arguments exist, so that under ZeRO-3 the weights are created in shards.

    Args:
        job: from `prepare`.
        training: the settings.
        quantization: bitsandbytes config, for QLoRA.
        peft_config: LoRA config; the head is trained in full beside it.
    """
    assert isinstance(training.model_init_kwargs, dict)
    kwargs = dict(training.model_init_kwargs)
    set_seed(training.seed)  # the head starts at random
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    with readable(f"model {job.model}: cannot be loaded"), quiet():
        model = AutoModelForTokenClassification.from_pretrained(
            job.model, num_labels=job.num_labels, **kwargs
        )
    model.config.pad_token_id = job.tokenizer.pad_token_id
    model.config.value_objective = training.objective
    model.config.value_unit = training.unit
    if training.disable_dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    prepare_value_model(model)
    if peft_config is None:
        return model
    # Optional at import time: only LoRA runs need it.
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantization is not None:
        model = prepare_model_for_kbit_training(model)
    return get_peft_model(model, peft_config)
