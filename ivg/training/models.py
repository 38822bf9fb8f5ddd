"""Models to train: checking them before weights load, and starting new ones from a config."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from ivg.config.yaml_file import nearest
from ivg.errors import UserError, first_line, is_main_process
from ivg.training.arguments import ModelArguments


def load_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with EOS, as TRL does.

    Raises:
        UserError: there is none at that path, or it has no EOS token.
    """
    path = str(arguments.tokenizer_path or arguments.model_name_or_path)
    tokenizer = read_tokenizer(path, None if arguments.tokenizer_path else arguments.model_revision)
    if tokenizer.eos_token is None:
        raise UserError(f"tokenizer {path} has no EOS token; a response could never end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Read a tokenizer.

    Raises:
        UserError: there is none at that path.
    """
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"tokenizer {path}: {first_line(error)}; give a folder or a Hub name") from error


def read_model_config(path: str, revision: str | None = None) -> PretrainedConfig:
    """Read a model's config, without its weights.

    Raises:
        UserError: the path is not a model folder and not a Hub name.
    """
    folder = Path(path)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"model {path} is not a model folder: it has no config.json; give a saved model")
    try:
        return AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"model {path}: {first_line(error)}; give a model folder or a Hub name") from error


def context_length(config: PretrainedConfig) -> int | None:
    """Return how many tokens the model can see, where its config says so."""
    length = config.get_text_config().to_dict().get("max_position_embeddings")
    # GPT-2 and its relatives know this key by another name.
    length = length or config.to_dict().get("n_positions")
    return int(length) if length else None


def new_config(shape: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Build the config of a new model: the given shape, with the tokenizer's vocabulary and special ids.

    Raises:
        UserError: no such model type, or a key that this type does not know.
    """
    fields = dict(shape)
    model_type = fields.pop("model_type", None)
    try:
        known = AutoConfig.for_model(model_type)
    except (KeyError, ValueError) as error:
        raise UserError(f"model_config: unknown model_type {model_type!r}; give one such as gpt2") from error
    valid = set(known.to_dict()) | set(known.attribute_map)
    for key in fields:
        if key not in valid:
            raise UserError(f"model_config: {model_type} has no key {key!r}; {nearest(key, valid)}")
    vocabulary = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoConfig.for_model(model_type, **{**vocabulary, **fields})


def planned_config(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the config of the model that will be trained, before any weight is loaded or made."""
    if isinstance(arguments.model_config, dict):
        return new_config(arguments.model_config, tokenizer)
    return read_model_config(str(arguments.model_name_or_path), arguments.model_revision)


def starting_point(
    arguments: ModelArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingArguments,
) -> str:
    """Return the path of the weights to start from, making them first where only a shape is given.

    Trainers are always handed a path: under ZeRO-3 the weights must be created by the trainer, and DPO
    finds its reference by the path. New weights lie in `output_dir/initial`.

    Args:
        arguments: which model.
        config: from `planned_config`.
        tokenizer: saved beside new weights.
        training: for the output folder and the seed.
    """
    if arguments.model_name_or_path is not None:
        return str(arguments.model_name_or_path)
    folder = Path(training.output_dir) / "initial"
    if is_main_process() and not folder.exists():
        partial = folder.with_name("initial.partial")
        shutil.rmtree(partial, ignore_errors=True)
        set_seed(training.seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    PartialState().wait_for_everyone()
    return str(folder)


def init_kwargs(arguments: ModelArguments, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Collect what `from_pretrained` is told: ModelArguments' keys, then `model_init_kwargs` over them."""
    own = {
        "revision": arguments.model_revision if arguments.model_name_or_path else "main",
        "attn_implementation": arguments.attn_implementation,
        "dtype": arguments.dtype,
    }
    return {**own, **(given or {})}
