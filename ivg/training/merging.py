"""Whole models from adapters: what a stage that starts from a fine-tuned model with LoRA needs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import trl
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ivg.errors import UserError, is_main_process
from ivg.models.loading import load_weights
from ivg.models.rendering import PROMPT_FORMAT
from ivg.training.arguments import ModelArguments
from ivg.training.models import whole_weights

MERGED = "merged"


@dataclasses.dataclass
class SFTArguments(trl.SFTConfig):
    """Keys of supervised fine-tuning, beside all of TRL's `SFTConfig`."""

    merge_adapter: bool = dataclasses.field(
        default=False,
        metadata={
            "help": "With use_peft: also save the whole model, the adapter merged into it, in "
            "output_dir/merged, for stages that start from it."
        },
    )


def check_merging(training: SFTArguments, model: ModelArguments) -> None:
    """Refuse `merge_adapter` where there will be no adapter."""
    if training.merge_adapter and not model.use_peft:
        raise UserError("merge_adapter is set without use_peft: there is no adapter; drop it")


def save_merged(path: str, training: TrainingArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """Merge the adapter saved in `output_dir` into the model it was trained over, from the main process.

    It is read back from the folder and not taken from memory, where ZeRO-3 has it in shards and QLoRA in
    four bits.

    Args:
        path: the model that the adapter was trained over.
        training: for the output folder and the model's keyword arguments.
        tokenizer: saved beside the merged model.
    """
    if not is_main_process():
        return
    assert isinstance(training, trl.SFTConfig)
    output = Path(training.output_dir)
    partial = output / f"{MERGED}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with whole_weights(training):
        kwargs = training.model_init_kwargs or {}
        model = load_weights("causal", path, f"model {path}", adapter=str(output), **kwargs)
        model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if (output / PROMPT_FORMAT).is_file():  # whole texts have none
        shutil.copy(output / PROMPT_FORMAT, partial)
    shutil.rmtree(output / MERGED, ignore_errors=True)
    partial.rename(output / MERGED)
