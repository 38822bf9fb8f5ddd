"""Models to train: checking them before weights load, and starting new ones from a config."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import deepspeed

from ivg.config.yaml_file import nearest
from ivg.errors import UserError, is_main_process, readable
from ivg.models.inspection import Kind, read_config, read_generation, read_tokenizer
from ivg.models.loading import check_weights
from ivg.models.memory import refuse_absurd_size
from ivg.training.arguments import ModelArguments

# What PEFT calls a task, and what is loaded for it; both heads of values are token classifiers.
_KINDS: dict[str, Kind] = {"CAUSAL_LM": "causal", "SEQ_CLS": "classifier", "TOKEN_CLS": "scalar"}


def load_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with EOS, as TRL does.

    Raises:
        UserError: there is none at that path, or it has no EOS token.
    """
    path = str(arguments.tokenizer_path or arguments.model_name_or_path)
    tokenizer = read_tokenizer(
        path,
        f"tokenizer {path}",
        revision=None if arguments.tokenizer_path else arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
    )
    if tokenizer.eos_token is None:
        raise UserError(f"tokenizer {path} has no EOS token; a response could never end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def new_config(shape: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Build the config of a new model: the given shape, with the tokenizer's vocabulary and special ids.

    Raises:
        UserError: no such model type, or a key that this type does not know.
    """
    fields = dict(shape)
    model_type = fields.pop("model_type", None)
    try:
        known = AutoConfig.for_model(model_type)
    except (KeyError, ValueError, TypeError) as error:
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
    with readable(f"model_config: no {model_type} can be made of this shape"):
        config = AutoConfig.for_model(model_type, **{**vocabulary, **fields})
        text = config.get_text_config()
        if text.vocab_size < len(tokenizer):
            raise UserError(
                f"model_config: vocab_size is {text.vocab_size}, but the tokenizer has {len(tokenizer)} "
                "tokens; leave it out"
            )
        refuse_absurd_size(config, "model_config")
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return config


def planned_config(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the config of the model that will be trained, before any weight is loaded or made."""
    if isinstance(arguments.model_config, dict):
        return new_config(arguments.model_config, tokenizer)
    path = str(arguments.model_name_or_path)
    return read_config(
        path,
        f"model {path}",
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
    )


def starting_point(
    arguments: ModelArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingArguments,
) -> str:
    """Return the path of the weights to start from, checked, or made first where only a shape is given.

    Trainers are always handed a path: under ZeRO-3 the weights must be created by the trainer, and DPO
    finds its reference by the path. New weights lie in `output_dir/initial`.

    Args:
        arguments: which model.
        config: from `planned_config`.
        tokenizer: saved beside new weights.
        training: for the output folder and the seed.

    Raises:
        UserError: the weights are damaged, or some that training does not start itself are missing.
    """
    if arguments.model_name_or_path is not None:
        path = str(arguments.model_name_or_path)
        with whole_weights(training):
            check_weights(
                _KINDS[str(arguments.lora_task_type)],
                path,
                f"model {path}",
                starts_head=True,
                revision=arguments.model_revision,
                trust_remote_code=arguments.trust_remote_code,
            )
        if arguments.lora_task_type == "CAUSAL_LM":
            _require_language_model(config, path)
        if arguments.lora_task_type == "CAUSAL_LM" and not arguments.use_peft:
            _require_savable_generation(path, arguments.model_revision)
        return path
    folder = Path(training.output_dir) / "initial"
    if is_main_process() and not folder.exists():
        partial = folder.with_name("initial.partial")
        shutil.rmtree(partial, ignore_errors=True)
        set_seed(training.seed)
        AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    PartialState().wait_for_everyone()
    return str(folder)


def _require_language_model(config: PretrainedConfig, path: str) -> None:
    """Refuse a config whose `architectures`, by which TRL loads a model, names none that writes text."""
    names = getattr(config, "architectures", None)
    name = names[0] if isinstance(names, list) and names else names
    found: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    is_known = is_model and found.can_generate()
    if not is_known and not (found is None and getattr(config, "auto_map", None)):
        raise UserError(
            f"model {path}: its config.json names the architecture {name!r:.60}, no language model of "
            f"transformers {transformers.__version__}; name one, such as GPT2LMHeadModel"
        )


def _require_savable_generation(path: str, revision: str | None) -> None:
    """Refuse generation settings that transformers would not write again, once training is over."""
    generation = read_generation(path, f"model {path}", revision)
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model {path}: its generation_config.json could not be saved with the trained model; mend it: "
            f"{reason:.200}"
        ) from error


def init_kwargs(arguments: ModelArguments, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Collect what `from_pretrained` is told: ModelArguments' keys, then `model_init_kwargs` over them."""
    own = {
        "revision": arguments.model_revision if arguments.model_name_or_path else "main",
        "attn_implementation": arguments.attn_implementation,
        "dtype": arguments.dtype,
        "trust_remote_code": arguments.trust_remote_code,
    }
    return {**own, **(given or {})}


@contextlib.contextmanager
def whole_weights(training: TrainingArguments) -> Iterator[None]:
    """Load whole weights inside, where ZeRO-3 would load shards."""
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if training.deepspeed_plugin is not None:
            training.deepspeed_plugin.set_deepspeed_weakref()
