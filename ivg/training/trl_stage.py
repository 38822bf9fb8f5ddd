"""The course of a training job, the same for every stage: claim the folder, train or resume, save, report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import trl
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments

from ivg.errors import UserError
from ivg.models.loading import quiet
from ivg.run.console import is_quiet, note
from ivg.run.json_files import write_json
from ivg.training import checks
from ivg.training.arguments import DataArguments, ModelArguments, refused_settings
from ivg.training.cards import CardMixin, hub_name, launch_command, model_card
from ivg.training.data import load_training_data
from ivg.training.encoding import apply_tokens, encode
from ivg.training.models import init_kwargs, load_tokenizer, planned_config, starting_point
from ivg.training.resume import (
    CompleteCheckpoints,
    check_resume,
    checkpoint_to_resume,
    claim_output,
    settings_of,
)
from ivg.training.tables import STORED, stored

METRICS = "metrics.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a stage over one of TRL's trainers needs, checked.

    Attributes:
        model: path of the weights to start from.
        tokenizer: its tokenizer.
        train_rows: rows as ids, or whole texts and conversations.
        eval_rows: the same for evaluation.
        prompt_format: how prompts were rendered (`ivg.models.rendering`); None for whole texts.
    """

    model: str
    tokenizer: PreTrainedTokenizerBase
    train_rows: datasets.Dataset
    eval_rows: datasets.Dataset | None
    prompt_format: dict[str, Any] | None


def prepare(
    data: DataArguments,
    training: TrainingArguments,
    model: ModelArguments,
    columns: Sequence[Sequence[str]],
    text_field: str = "text",
) -> Job:
    """Load and check everything that a stage needs, and claim its output folder.

    Args:
        data: where the rows come from.
        training: the TRL config; gets `model_init_kwargs` from `model`.
        model: which model is trained.
        columns: sets of columns, one of which the rows must have.
        text_field: the column of whole texts, in rows without a prompt.

    Raises:
        UserError: anything wrong with data, model or output folder.
    """
    rows = load_training_data(data)
    tokenizer = load_tokenizer(model)
    config = planned_config(model, tokenizer)
    if isinstance(training, trl.SFTConfig | trl.RewardConfig):
        apply_tokens(tokenizer, training)
    renderer = data.renderer(tokenizer)
    names = (data.dataset_name, data.eval_dataset_name or data.dataset_name)
    for name, part in zip(names, rows, strict=True):
        if part is not None:
            checks.check_columns(part, columns, name)
            checks.check_rows(part, name, text_field)
            checks.check_chat(part, name, tokenizer)
    prepared = [
        None if part is None else encode(part, name, renderer, training)
        for name, part in zip(names, rows, strict=True)
    ]
    for name, part in zip(names, prepared, strict=True):
        if part is not None:
            over = checks.check_lengths(part, name, tokenizer, config, training.max_length, text_field)
            _tell_overlong(over, len(part), name, training)
    assert rows[0] is not None
    has_prompts = bool({"prompt", "messages"} & set(rows[0].column_names))
    claim_output(training.output_dir, settings_of(data, training, model), overwrite=data.overwrite_output)
    check_resume(training)
    if isinstance(training, trl.DPOConfig) and training.precompute_ref_log_probs:
        folder = Path(training.output_dir) / STORED
        prepared = [None if part is None else stored(part, folder) for part in prepared]
    training.model_init_kwargs = init_kwargs(model, training.model_init_kwargs)
    return Job(
        model=starting_point(model, config, tokenizer, training),
        tokenizer=tokenizer,
        train_rows=prepared[0],
        eval_rows=prepared[1],
        prompt_format=renderer.describe() if has_prompts else None,
    )


def _tell_overlong(over: checks.Overlong, num_rows: int, name: str, training: Any) -> None:
    """Say what TRL does with rows beyond `max_length`, and refuse data of which it would leave nothing."""
    limit = training.max_length
    if isinstance(training, trl.RewardConfig):
        num_left_out = over.num_rows
    elif training.truncation_mode == "keep_start" and not _learns_prompts(training):
        num_left_out = over.num_filled
    else:
        num_left_out = 0
    if num_left_out == num_rows:
        raise UserError(f"{name}: none of {num_rows} rows fits max_length {limit}; raise it")
    for count, what in ((over.num_rows - num_left_out, "cut at"), (num_left_out, "left out, longer than")):
        if count:
            note(f"{name}: {count} of {num_rows} rows are {what} {limit} tokens")


def _learns_prompts(training: Any) -> bool:
    return isinstance(training, trl.SFTConfig) and training.completion_only_loss is False


def build(kind: type[Any], job: Job, training: TrainingArguments, model: ModelArguments) -> Any:
    """Make one of TRL's trainers, handed the model's path, with LoRA and quantization where asked for.

    Args:
        kind: the trainer's class, with `CardMixin`.
        job: from `prepare`.
        training: the TRL config.
        model: which model is trained, and how.

    Raises:
        UserError: settings that the trainer or PEFT refuse.
    """
    # What TRL and PEFT refuse only now, such as LoRA modules that the model does not have.
    # That a new head starts at random is what is wanted, and no alarm.
    with refused_settings(kind.__bases__[-1].__name__, training, model), quiet():
        trainer = kind(
            model=job.model,
            args=training,
            train_dataset=job.train_rows,
            eval_dataset=job.eval_rows,
            processing_class=job.tokenizer,
            quantization_config=trl.get_quantization_config(model),
            peft_config=trl.get_peft_config(model),
        )
    trainer.prompt_format = job.prompt_format
    return trainer


def train(
    trainer: CardMixin, stage: str, data: DataArguments, model: ModelArguments, **facts: Any
) -> dict[str, float]:
    """Train from the start or from the last complete checkpoint, evaluate, and save with a card.

    Args:
        trainer: the stage's trainer.
        stage: its name, such as `dpo`.
        data: for the card.
        model: for the card.
        facts: more for the card, such as the reward's unit.

    Returns:
        The metrics written to `metrics.json`: losses, runtime, and the final evaluation's.
    """
    arguments = trainer.args
    # Else a tracker makes runs of their own of the evaluation at the end and of what goes on after a kill.
    arguments.run_name = arguments.run_name or f"{stage} {arguments.output_dir}"
    trainer.card = _card(trainer, stage, data, model, facts, None)
    trainer.add_callback(CompleteCheckpoints(arguments))
    checkpoint = checkpoint_to_resume(arguments)
    if checkpoint is not None:
        note(f"resuming from {checkpoint}")
    if is_quiet():
        trainer.remove_callback(PrinterCallback)  # stands in for the progress bar that was switched off
    with refused_settings("training", arguments, model):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics: dict[str, float] = dict(result.metrics)
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    metrics["train_loss"] = mean_train_loss(trainer.state.log_history, metrics["train_loss"])
    trainer.card = _card(trainer, stage, data, model, facts, metrics)
    if trainer.is_world_process_zero():
        write_json(Path(arguments.output_dir) / METRICS, with_reasons(metrics), sort_keys=True)
    trainer.save_state()
    trainer.create_model_card()
    trainer.save_model(arguments.output_dir)  # pushes too, where push_to_hub is set
    return metrics


def _card(
    trainer: CardMixin,
    stage: str,
    data: DataArguments,
    model: ModelArguments,
    facts: dict[str, Any],
    metrics: dict[str, float] | None,
) -> str:
    known = {
        "stage": stage,
        "started from": model.model_name_or_path or f"random weights: {model.model_config}",
        "training data": f"{data.dataset_name} ({len(trainer.train_dataset)} rows)",
        "evaluation data": data.eval_dataset_name or data.dataset_test_split or "none",
        "prompt template": data.prompt_template or "the tokenizer's chat template, else the bare prompt",
        "LoRA": f"rank {model.lora_r}" if model.use_peft else "no, all weights",
        "processes": trainer.accelerator.num_processes,
    }
    return model_card(
        title=Path(trainer.args.output_dir).name,
        stage=stage,
        facts={**known, **facts},
        metrics=metrics,
        command=launch_command(stage, trainer.accelerator.num_processes),
        base_model=hub_name(model.model_name_or_path),
        dataset=hub_name(data.dataset_name),
    )


def with_reasons(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Add `missing`: why a metric is null in the file, where one is no finite number."""
    missing = {
        name: f"{value}: not defined on these rows, or training has diverged"
        for name, value in metrics.items()
        if not math.isfinite(value)
    }
    return {**metrics, "missing": missing} if missing else dict(metrics)


def mean_train_loss(history: Sequence[Mapping[str, float]], since_resume: float) -> float:
    """Return the mean of the logged losses, weighted by the steps each stands for.

    After a resume, transformers averages only since the resume; the log reaches back to the first step.

    Args:
        history: `TrainerState.log_history`.
        since_resume: transformers' own figure, returned where nothing was logged.
    """
    total, previous = 0.0, 0
    for entry in history:
        if "loss" in entry and "step" in entry:
            total += entry["loss"] * (entry["step"] - previous)
            previous = int(entry["step"])
    return total / previous if previous else since_resume
