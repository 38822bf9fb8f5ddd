"""Strict reading of a decoding configuration: YAML with dotted overrides into `DecodeConfig`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import dacite
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ivg.config import (
    DatasetConfig,
    DecodeConfig,
    ModelConfig,
    PairConfig,
    SamplingConfig,
    SearchConfig,
    ValueConfig,
)
from ivg.errors import UserError

_WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}


def nearest(name: str, valid: Iterable[str]) -> str:
    """Name the closest valid key, for an error message."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"


def _number(convert: type) -> Any:
    """Take whole numbers for any number, but not `true` for 1."""

    def check(value: object) -> object:
        if isinstance(value, bool):
            raise UserError(f"config: found {str(value).lower()} where a number belongs")
        return convert(value) if isinstance(value, int) else value

    return check


NUMBERS: dict[Any, Any] = {int: _number(int), float: _number(float)}  # hooks for dacite


def _check_keys(data: Mapping[str, Any], cls: type, where: str) -> None:
    valid = {field.name for field in dataclasses.fields(cls)}
    for key in data:
        if key not in valid:
            raise UserError(f"{where}unknown key {key!r}; {nearest(str(key), valid)}")


def _check_lists(data: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        if not isinstance(data.get(key, []), list | tuple):
            raise UserError(
                f"{where}{key} is {data[key]!r:.60}; give a list (in YAML, lines that open with '- ')"
            )


def _model(data: object) -> object:
    """Let a plain string stand for a model's path."""
    if isinstance(data, str):
        return {"path": data}
    if isinstance(data, Mapping):
        _check_keys(data, ModelConfig, "model: ")
    return data


def _section(cls: type, where: str) -> Any:
    def check(data: object) -> object:
        if isinstance(data, Mapping):
            _check_keys(data, cls, f"{where}: ")
        return data

    return check


def _sampling(data: object) -> object:
    """Let one string stand for a list of one stop string."""
    if isinstance(data, Mapping) and isinstance(data.get("stop"), str):
        data = {**data, "stop": [data["stop"]]}
    if isinstance(data, Mapping):
        _check_lists(data, ("stop",), "sampling: ")
    return _section(SamplingConfig, "sampling")(data)


def _value(data: object) -> object:
    """Let `{path: ..., weight: ...}` stand for `{model: {path: ...}, weight: ...}`."""
    if isinstance(data, str):
        return {"model": data}
    if isinstance(data, Mapping) and "function" in data:
        _check_keys(data, ValueConfig, "values: ")
        return {"model": None, **data}
    if isinstance(data, Mapping) and "model" not in data:
        valid = {field.name for cls in (ModelConfig, ValueConfig) for field in dataclasses.fields(cls)}
        for key in data:
            if key not in valid:
                raise UserError(f"values: unknown key {key!r}; {nearest(str(key), valid - {'model'})}")
        own = {key: data[key] for key in ("weight", "beta") if key in data}
        return {"model": {key: value for key, value in data.items() if key not in own}, **own}
    return _section(ValueConfig, "values")(data)


def build(cls: type, data: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from a YAML mapping.

    Args:
        cls: the dataclass.
        data: its keys.
        where: what to call the mapping in an error message.

    Raises:
        UserError: unknown key (naming the nearest valid one), wrong type, or a value out of range.
    """
    _check_keys(data, cls, f"{where}: ")
    try:
        return dacite.from_dict(cls, dict(data), dacite.Config(type_hooks=NUMBERS))
    except dacite.DaciteError as error:
        raise UserError(f"{where}: {error}") from error


def config_from_dict(data: Mapping[str, Any]) -> DecodeConfig:
    """Build a checked `DecodeConfig` from plain nested data.

    Raises:
        UserError: unknown key (naming the nearest valid one), wrong type, or a value out of range.
    """
    _check_keys(data, DecodeConfig, "")
    _check_lists(data, ("pairs", "values"), "")
    hooks = {
        ModelConfig: _model,
        PairConfig: _section(PairConfig, "pairs"),
        ValueConfig: _value,
        SearchConfig: _section(SearchConfig, "search"),
        SamplingConfig: _sampling,
        DatasetConfig: _section(DatasetConfig, "dataset"),
        **NUMBERS,
    }
    try:
        return dacite.from_dict(
            DecodeConfig, dict(data), dacite.Config(strict=True, cast=[tuple], type_hooks=hooks)
        )
    except dacite.MissingValueError as error:
        raise UserError(f"config: {error.field_path} is missing; give it") from error
    except dacite.WrongTypeError as error:
        raise UserError(
            f"config: {error.field_path} is {error.value!r:.60}; give {_described(error.field_type)}"
        ) from error
    except dacite.DaciteError as error:
        raise UserError(f"config: {error}") from error


def _described(wanted: Any) -> str:
    """Say in a user's words what values a field's type takes."""
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(get_args(wanted))}"
    if isinstance(wanted, UnionType) or get_origin(wanted) is Union:
        return " or ".join(_described(one) for one in get_args(wanted))
    if dataclasses.is_dataclass(wanted):
        return f"keys, such as {dataclasses.fields(wanted)[0].name}"
    if get_origin(wanted) is tuple:
        return f"a list, each of its entries {_described(get_args(wanted)[0])}"
    return _WORDS.get(wanted, str(wanted))


def read_yaml(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML mapping and apply dotted overrides such as `search.num_beams=2`.

    Raises:
        UserError: the file is missing, unreadable, not YAML or not a mapping.
    """
    try:
        loaded = OmegaConf.load(Path(path))
        if not isinstance(loaded, DictConfig):
            raise UserError(f"config {path}: expected a mapping of keys, got a list")
        for override in overrides:
            key, _, text = override.partition("=")
            # Not merged as a whole: a dotted list would replace lists such as `pairs`.
            OmegaConf.update(loaded, key, OmegaConf.from_dotlist([f"value={text}"])["value"])
        data = OmegaConf.to_container(loaded, resolve=True)
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}; give a readable YAML file") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"config {path}: not valid YAML: {error}") from error
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}
