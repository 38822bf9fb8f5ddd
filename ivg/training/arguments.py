"""Keys that the training scripts share, and their strict parsing from YAML and flags.

TRL's conventions hold: a dataclass field is a YAML key and a flag, `--config FILE` reads the YAML, flags
override it. Unknown keys and values of the wrong type are fatal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import types
import typing
import warnings
from argparse import Action
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
import trl
from transformers import PreTrainedTokenizerBase
from transformers.utils import is_torch_bf16_gpu_available
from transformers.utils import logging as transformers_logging

from ivg.config.models import check_chat_template_kwargs
from ivg.config.yaml_file import nearest, read_yaml
from ivg.errors import UserError, first_line, readable
from ivg.models.rendering import Renderer
from ivg.run.console import is_quiet, take_flags

_MAX_BLAMED = 3
_TINY = 5e-324  # the smallest number above 0
_COUNT, _POSITIVE = (1, math.inf, "a number >= 1"), (_TINY, math.inf, "a number above 0")
_NOT_NEGATIVE, _BELOW_ONE = (0, math.inf, "a number >= 0"), (0, 1 - 2**-53, "a number >= 0 and below 1")
_SEED = (0, 2**32 - 1, "an integer between 0 and 4294967295")
# Lowest, highest, and how to say it; max_steps may also be -1.
_RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "max_steps"), _COUNT),
    **dict.fromkeys(("lora_alpha", "save_total_limit", "max_length"), _COUNT),
    **dict.fromkeys(("torch_empty_cache_steps", "precompute_ref_batch_size"), _COUNT),
    **dict.fromkeys(("dataloader_prefetch_factor", "ref_model_sync_steps", "pad_to_multiple_of"), _COUNT),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "eval_steps"), _POSITIVE),
    **dict.fromkeys(("adam_epsilon", "ddp_timeout", "ddp_bucket_cap_mb", "discopop_tau"), _POSITIVE),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("eval_delay", "beta", "neftune_noise_alpha"), _NOT_NEGATIVE),
    **dict.fromkeys(("lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor"), _BELOW_ONE),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    # More is a slip, and would be paid for in memory and processes before anything says so.
    "lora_r": (1, 65_536, "an integer between 1 and 65536"),
    "dataloader_num_workers": (0, 1024, "an integer between 0 and 1024"),
    "dataset_num_proc": (1, 1024, "an integer between 1 and 1024"),
    "label_smoothing": (0, 0.5 - 2**-54, "a number >= 0 and below 0.5"),
}


# Settings that may name a JSON file instead; other mappings are JSON themselves where they are flags.
_MAPPINGS_OR_FILES = {"accelerator_config", "deepspeed", "fsdp_config"}


def as_mapping(given: object, name: str) -> dict[str, Any]:
    """Return a setting that is a mapping in YAML, and its JSON as a flag; nothing where it is unset.

    Raises:
        UserError: anything else.
    """
    if isinstance(given, str):
        with readable(f"{name}: {given!r:.60} is not JSON"):
            given = json.loads(given)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{name} is {given!r:.60}; give a mapping")
    return given


@dataclasses.dataclass
class DataArguments:
    """Where the rows come from and how prompts become text."""

    dataset_name: str = dataclasses.field(
        metadata={"help": "Training rows: a .jsonl file, a folder saved by `datasets`, or a Hub dataset."}
    )
    dataset_config: str | None = dataclasses.field(
        default=None, metadata={"help": "Configuration of a Hub dataset."}
    )
    dataset_train_split: str = dataclasses.field(
        default="train", metadata={"help": "Split to train on; a single file has no splits."}
    )
    eval_dataset_name: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Evaluation rows, named like dataset_name; unset: its test split, if given."},
    )
    dataset_test_split: str | None = dataclasses.field(
        default=None, metadata={"help": "Split to evaluate on; unset: no split is read for evaluation."}
    )
    adapter: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "How the dataset's own columns become TRL's; see ivg/training/dataset_adapters.py."
        },
    )
    prompt_template: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "How a prompt becomes the model's text: 'chat', a format string with {prompt}, or unset: "
            "the tokenizer's chat template where it has one, else the bare prompt. Decode with the same one."
        },
    )
    chat_template_kwargs: dict[str, Any] | str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "What the chat template is told beside the messages, such as {enable_thinking: false}. "
            "Decode with the same."
        },
    )
    max_train_rows: int | None = dataclasses.field(
        default=None, metadata={"help": "Use only the first rows of the training split, >= 1."}
    )
    max_eval_rows: int | None = dataclasses.field(
        default=None, metadata={"help": "Use only the first rows of the evaluation split, >= 1."}
    )
    overwrite_output: bool = dataclasses.field(
        default=False,
        metadata={"help": "Discard what another run left in output_dir, instead of refusing it."},
    )

    def __post_init__(self) -> None:
        for name in ("max_train_rows", "max_eval_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; give an integer >= 1")
        self.chat_template_kwargs = as_mapping(self.chat_template_kwargs, "chat_template_kwargs")
        check_chat_template_kwargs(self.chat_template_kwargs)
        template = self.prompt_template
        if template is not None and template != "chat" and "{prompt}" not in template:
            raise UserError(
                f"prompt_template {template!r} has no '{{prompt}}'; give 'chat' or a format string with it"
            )

    def renderer(self, tokenizer: PreTrainedTokenizerBase) -> Renderer:
        """Return what turns prompts and responses into the model's ids.

        Raises:
            UserError: the tokenizer has no such template, or the template does not read what it is told.
        """
        assert not isinstance(self.chat_template_kwargs, str)
        return Renderer(tokenizer, self.prompt_template, self.chat_template_kwargs)


@dataclasses.dataclass
class ModelArguments(trl.ModelConfig):
    """Which model is trained: an existing one, or a new one of a given shape."""

    model_config: dict[str, Any] | str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Start from random weights of this shape instead of model_name_or_path: a mapping with "
            "`model_type` and that type's config keys. vocab_size and special tokens follow the tokenizer."
        },
    )
    tokenizer_path: str | None = dataclasses.field(
        default=None, metadata={"help": "Tokenizer folder or Hub name; unset: the model's own."}
    )
    lora_task_type: str | None = dataclasses.field(
        default=None, metadata={"help": "PEFT's name for the task; follows from the script."}
    )
    # One key, which stands beside the training settings.
    trust_remote_code: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.model_config, str):
            self.model_config = json.loads(self.model_config)
        if self.model_config is not None and not isinstance(self.model_config, dict):
            raise UserError(f"model_config is {self.model_config!r:.60}; give a mapping")
        if (self.model_config is None) == (self.model_name_or_path is None):
            raise UserError("give exactly one of model_name_or_path and model_config")
        if self.model_config is not None and self.tokenizer_path is None:
            raise UserError("model_config starts a new model and needs a tokenizer: give tokenizer_path")

    def set_task(self, task: str) -> None:
        """Set PEFT's name for what is trained.

        Raises:
            UserError: the user has named another task.
        """
        if self.lora_task_type not in (None, task):
            raise UserError(f"lora_task_type is {self.lora_task_type}, but {task} is trained; drop it")
        self.lora_task_type = task


class _Parser(trl.TrlParser):
    """TRL's parser whose every complaint is a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def actions(self) -> dict[str, Action]:
        return {action.dest: action for action in self._actions if action.dest != "help"}


def parse_arguments(classes: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """Read a stage's dataclasses from `--config FILE.yaml` and flags; obey `--quiet` and `--verbose`.

    Args:
        classes: dataclasses whose fields are the valid keys.
        argv: command line without the program's name.

    Raises:
        UserError: unknown key or flag (naming the nearest valid one), wrong type, or a value refused by a
            dataclass's own checks.
    """
    parser = _Parser(list(classes), allow_abbrev=False)
    words, config_path = _split_config(take_flags(argv))
    if is_quiet():
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
    _refuse_unusable(words, "command line")
    given = {word.lstrip("-").split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    if config_path is not None:
        data = _read_config(config_path)
        _refuse_unusable(data, config_path)
        given |= set(data)
        _set_environment(data.pop("env", None), config_path)
        parser.set_defaults_with_config(**_checked(data, classes, config_path))
    _fit_defaults(parser, given)
    values, unknown = parser.parse_known_args(words)
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        raise UserError(f"unknown argument {unknown[0]!r}; {nearest(name, parser.actions())}")
    return tuple(_build(cls, vars(values), given) for cls in classes)


def _fit_defaults(parser: _Parser, given: Collection[str]) -> None:
    """Take back what transformers and TRL ask for by default and a machine without a GPU has not."""
    keys = parser.actions()
    if "bf16" in keys and not {"bf16", "fp16", "use_cpu"} & {*given} and not is_torch_bf16_gpu_available():
        parser.set_defaults(bf16=False)  # which would be refused
    if "dataloader_pin_memory" in {*keys} - {*given} and not torch.accelerator.is_available():
        parser.set_defaults(dataloader_pin_memory=False)  # torch would warn of it


def parse_training(kind: type, argv: Sequence[str]) -> tuple[DataArguments, Any, ModelArguments]:
    """Read the dataclasses of a training stage: data, `kind` (the trainer's settings) and model.

    Raises:
        UserError: as `parse_arguments`.
    """
    # TRL sets the older of two names by default, which is nothing that a user could mend.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
    data, training, model = parse_arguments((DataArguments, kind, ModelArguments), argv)
    model.trust_remote_code = training.trust_remote_code
    if is_quiet():
        training.disable_tqdm = True
    if "token" in (training.model_init_kwargs or {}):
        raise UserError("model_init_kwargs holds a token, which would be saved; set HF_TOKEN instead")
    for name, hint in typing.get_type_hints(kind).items():
        given = vars(training).get(name)
        if isinstance(given, str) and "dict" in str(hint) and name not in _MAPPINGS_OR_FILES:
            setattr(training, name, as_mapping(given, name))
    if getattr(training, "activation_offloading", False) and not torch.accelerator.is_available():
        raise UserError(
            "activation_offloading moves activations out of an accelerator's memory; there is none"
        )
    if training.hub_token is not None:
        # Saved with the model otherwise; whoever talks to the Hub looks here too.
        os.environ["HF_TOKEN"] = training.hub_token
        training.hub_token = None
    return data, training, model


@contextlib.contextmanager
def refused_settings(what: str, *settings: Any) -> Iterator[None]:
    """Turn what transformers, TRL and PEFT raise on settings into one line that names the keys to blame.

    Args:
        what: opens the message, such as `training`.
        settings: the dataclasses that hold the keys.

    Raises:
        UserError: something in the block raised what these libraries raise on settings.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, ImportError) as error:
        message = first_line(error)
        keys = [key for setting in settings for key in _mentioned(str(error), setting)]
        raise UserError(f"{what} fails{' on ' if keys else ''}{', '.join(keys)}: {message}") from error


def _mentioned(message: str, setting: Any) -> list[str]:
    """Return the keys with another value than the default that a message names, or whose value it names."""
    words = set(re.findall(r"\w+", message))
    found = []
    for field in dataclasses.fields(setting):
        value = vars(setting).get(field.name)
        parts = value if isinstance(value, list) else [value]
        named = [part for part in parts if isinstance(part, str) and part in words]
        if value != field.default and (field.name in words or named):
            found.append(f"{field.name}: {value!r:.60}")
    return found[:_MAX_BLAMED]


def _read_config(path: str) -> dict[str, Any]:
    with readable(f"config {path}: not valid YAML"):
        is_endless = Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()
        if is_endless and not path.startswith(("/dev/fd/", "/dev/stdin", "/proc/")):
            raise UserError(f"config {path}: not a regular file; give a YAML file")
        return read_yaml(path)


def _refuse_unusable(value: object, where: str) -> None:
    """Refuse what no file name, text or number may hold, wherever it stands.

    Raises:
        UserError: a NUL byte, half a character, NaN, or an integer beyond 64 bits.
    """
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise UserError(f"{where}: {value!r:.60} holds a NUL byte or half a character; remove it")
    elif isinstance(value, float) and math.isnan(value):
        raise UserError(f"{where}: a value is NaN; give a number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        digits = value.bit_length() * 0.30103
        raise UserError(f"{where}: an integer of {digits:.0f} digits; give one of at most 64 bits")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_unusable(key, where)
            _refuse_unusable(inner, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_unusable(inner, where)


def _build(cls: type, values: Mapping[str, Any], given: Collection[str]) -> Any:
    """Make a dataclass of its values, and say which key is to blame where it refuses them."""
    inputs = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.init}
    for name, value in inputs.items():
        _check_range(name, value)
    try:
        return cls(**inputs)
    except UserError:
        raise
    except Exception as error:  # transformers' and TRL's own checks raise what they please
        own = [key for key in inputs if key in given]
        blamed = [key for key in own if _is_to_blame(cls, inputs, key)] or own
        shown = ", ".join(f"{key}: {inputs[key]!r:.60}" for key in blamed[:_MAX_BLAMED])
        raise UserError(f"{shown or cls.__name__} is refused: {first_line(error)}") from error


def _is_to_blame(cls: type, inputs: Mapping[str, Any], key: str) -> bool:
    """Tell whether a dataclass takes its values once this key has its default."""
    try:
        cls(**{name: value for name, value in inputs.items() if name != key})
    except Exception:  # as above; a required key among them
        return False
    return True


def _check_range(name: str, value: object) -> None:
    """Refuse numbers that transformers and TRL take, and fail on later."""
    if name not in _RANGES or not isinstance(value, int | float) or isinstance(value, bool):
        return
    low, high, words = _RANGES[name]
    if (name, value) != ("max_steps", -1) and not low <= value <= high:
        raise UserError(f"{name} is {value}; give {words}")


def _split_config(argv: list[str]) -> tuple[list[str], str | None]:
    """Take `--config FILE` or `--config=FILE` out of a command line."""
    for i, word in enumerate(argv):
        if word.startswith("--config="):
            return argv[:i] + argv[i + 1 :], word.removeprefix("--config=")
        if word == "--config":
            if i + 1 == len(argv):
                raise UserError("--config needs a file name after it")
            return argv[:i] + argv[i + 2 :], argv[i + 1]
    return argv, None


def _set_environment(variables: object, path: str) -> None:
    if not isinstance(variables, Mapping | None):
        raise UserError(f"{path}: env is {variables!r:.60}; expected a mapping of names to values")
    for name, value in (variables or {}).items():
        os.environ[str(name)] = str(value)


def _checked(data: Mapping[str, Any], classes: Sequence[type], path: str) -> dict[str, Any]:
    """Return the values for the fields; one value stands for a list of one.

    Raises:
        UserError: an unknown key or a value of the wrong type (argparse checks flags only).
    """
    hints: dict[str, Any] = {}
    checked: dict[str, Any] = {}
    for cls in classes:
        hints |= {field.name: typing.get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in hints:
            raise UserError(f"{path}: unknown key {key!r}; {nearest(key, hints)}")
        # transformers' hint says str, its documentation knows true and false too.
        is_resume = key == "resume_from_checkpoint" and isinstance(value, bool)
        if _fits(value, hints[key]) or is_resume:
            checked[key] = value
        elif _fits([value], hints[key]):
            checked[key] = [value]
        else:
            raise UserError(f"{path}: {key} is {value!r}; expected {_describe(hints[key])}")
    return checked


def _fits(value: object, hint: Any) -> bool:
    """Tell whether a YAML value can stand for a field of this type; types not known here take anything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, member) for member in arguments)
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    kind = origin or hint
    if kind is list:
        return isinstance(value, list) and all(_fits(entry, arg) for arg in arguments for entry in value)
    if kind in (bool, str, dict, types.NoneType):
        return isinstance(value, kind)
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (kind is float and isinstance(value, float))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return value in [member.value for member in kind]
    return True


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        return " or ".join(_describe(member) for member in members)
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
