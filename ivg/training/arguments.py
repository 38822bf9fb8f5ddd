"""Keys that the training scripts share, and their strict parsing from YAML and flags.

TRL's conventions hold: a dataclass field is a YAML key and a flag, `--config FILE` reads the YAML, flags
override it. Unknown keys and values of the wrong type are fatal.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from argparse import Action
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NoReturn

import trl

from ivg.config.yaml_file import nearest, read_yaml
from ivg.errors import UserError


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
        metadata={"help": "How the dataset's own columns become TRL's; see ivg/training/adapters.py."},
    )
    prompt_template: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "How a prompt becomes the model's text: 'chat', a format string with {prompt}, or unset: "
            "the tokenizer's chat template where it has one, else the bare prompt. Decode with the same one."
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
        template = self.prompt_template
        if template is not None and template != "chat" and "{prompt}" not in template:
            raise UserError(
                f"prompt_template {template!r} has no '{{prompt}}'; give 'chat' or a format string with it"
            )


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.model_config, str):
            self.model_config = json.loads(self.model_config)
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
    """Read a script's dataclasses from `--config FILE.yaml` and flags.

    Args:
        classes: dataclasses whose fields are the valid keys.
        argv: command line without the program's name.

    Raises:
        UserError: unknown key or flag (naming the nearest valid one), wrong type, or a value refused by a
            dataclass's own checks.
    """
    parser = _Parser(list(classes), allow_abbrev=False)
    arguments, config_path = _split_config(list(argv))
    if config_path is not None:
        data = read_yaml(config_path)
        _set_environment(data.pop("env", None), config_path)
        parser.set_defaults_with_config(**_checked(data, classes, config_path))
    try:
        *outputs, unknown = parser.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:
        # The dataclasses' own checks: transformers and TRL raise these for values they refuse.
        raise UserError(str(error)) from error
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        raise UserError(f"unknown argument {unknown[0]!r}; {nearest(name, parser.actions())}")
    return tuple(outputs)


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
