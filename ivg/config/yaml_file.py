"""Strict reading of nested settings: YAML with dotted overrides into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import dacite
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ivg.config import DecodeConfig, ModelConfig, SamplingConfig, ValueConfig
from ivg.errors import UserError, first_line

_WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}


def nearest(name: str, valid: Iterable[str]) -> str:
    """Name the closest valid key, for an error message."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"


class YamlFile(NamedTuple):
    """What a YAML file says.

    Attributes:
        data: its keys, interpolations resolved.
        references: for each text that came from the environment (`${oc.env:NAME}`), the text as it was
            written, which may be kept where the value, a token or a private path, must not.
    """

    data: dict[str, Any]
    references: dict[str, str]


def read_yaml(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML mapping and apply dotted overrides such as `search.num_beams=2`.

    Raises:
        UserError: the file is missing, unreadable, not YAML or not a mapping.
    """
    return read_yaml_file(path, overrides).data


def read_yaml_file(path: str, overrides: Sequence[str] = ()) -> YamlFile:
    """Read a YAML mapping as `read_yaml` does, and which of its texts the environment gave."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"config {path}: is no regular file; give a readable YAML file")
        loaded = OmegaConf.load(Path(path))
        if not isinstance(loaded, DictConfig):
            raise UserError(f"config {path}: expected a mapping of keys, got a list")
        for override in overrides:
            key, _, text = override.partition("=")
            # Not merged as a whole: a dotted list would replace lists such as `pairs`.
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
            assert isinstance(value, dict)
            OmegaConf.update(loaded, key, value["value"])
        written = OmegaConf.to_container(loaded, resolve=False)
        data = OmegaConf.to_container(loaded, resolve=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}; give a readable YAML file") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"config {path}: not valid YAML: {error}") from error
    # Numbers of thousands of digits, null characters, nesting without end, what is no UTF-8, overrides
    # that index a list by a word.
    except (ValueError, TypeError, RecursionError, AttributeError) as error:
        raise UserError(f"config {path}: not valid YAML: {first_line(error)}") from error
    assert isinstance(data, dict)
    references = {
        value: text
        for value, text in _pair_leaves(data, written)
        if isinstance(value, str) and isinstance(text, str) and "${oc.env:" in text and value
    }
    return YamlFile({str(key): value for key, value in data.items()}, references)


def _pair_leaves(resolved: object, written: object) -> Iterator[tuple[object, object]]:
    """Walk two trees of one shape; an interpolated branch stands for each of its leaves."""
    if isinstance(resolved, Mapping):
        for key, value in resolved.items():
            yield from _pair_leaves(value, written[key] if isinstance(written, Mapping) else written)
    elif isinstance(resolved, list):
        for i, value in enumerate(resolved):
            yield from _pair_leaves(value, written[i] if isinstance(written, list) else written)
    else:
        yield resolved, written


def config_from_dict(data: Mapping[str, Any]) -> DecodeConfig:
    """Build a checked `DecodeConfig` from plain nested data.

    Raises:
        UserError: unknown key (naming the nearest valid one), wrong type, or a value out of range.
    """
    built = build(DecodeConfig, data, "config")
    assert isinstance(built, DecodeConfig)
    return built


def build(cls: type, data: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass, and those that its fields hold, from a YAML mapping.

    Args:
        cls: the dataclass.
        data: its keys.
        where: what to call the mapping in an error message.

    Raises:
        UserError: unknown key (naming the nearest valid one), wrong type, or a value out of range.
    """
    _check_keys(data, cls, where)
    _check_lists(data, cls, where)
    hooks = {int: _number(int), float: _number(float), **dict(_nested_hooks(cls))}
    try:
        return dacite.from_dict(cls, dict(data), dacite.Config(cast=[tuple], type_hooks=hooks))
    except dacite.MissingValueError as error:
        raise UserError(f"{where}: {error.field_path} is missing; give it") from error
    except dacite.WrongTypeError as error:
        raise UserError(
            f"{where}: {error.field_path} is {error.value!r:.60}; give {_describe(error.field_type)}"
        ) from error
    except dacite.DaciteError as error:
        raise UserError(f"{where}: {error}") from error


def _number(convert: type) -> Callable[[object], object]:
    """Take whole numbers for any number, but not `true` for 1."""

    def check(value: object) -> object:
        if isinstance(value, bool):
            raise UserError(f"config: found {str(value).lower()} where a number belongs")
        try:
            return convert(value) if isinstance(value, int) else value
        except OverflowError as error:
            raise UserError("config: found a whole number beyond every other; give a smaller one") from error

    return check


def _nested_hooks(cls: type) -> Iterator[tuple[type, Callable[[object], object]]]:
    """Yield, for each dataclass below this one, what checks and completes its keys."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for kind in _dataclasses_in(hints[field.name]):
            where = "model" if kind is ModelConfig else field.name
            yield kind, _section(kind, where)
            yield from _nested_hooks(kind)


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for argument in get_args(hint):
        yield from _dataclasses_in(argument)


def _section(cls: type, where: str) -> Callable[[object], object]:
    def check(data: object) -> object:
        data = _SHORTHANDS.get(cls, _as_it_is)(data)
        if isinstance(data, Mapping):
            _check_keys(data, cls, where)
            _check_lists(data, cls, where)
        return data

    return check


def _check_keys(data: Mapping[str, Any], cls: type, where: str) -> None:
    valid = {field.name for field in dataclasses.fields(cls)}
    for key in data:
        if key not in valid:
            raise UserError(f"{where}: unknown key {key!r}; {nearest(str(key), valid)}")


def _check_lists(data: Mapping[str, Any], cls: type, where: str) -> None:
    """Refuse anything but a list for a field that is one: a text would be read as its letters."""
    hints = typing.get_type_hints(cls)
    for key, value in data.items():
        if get_origin(hints[key]) in (tuple, list) and not isinstance(value, list | tuple):
            raise UserError(
                f"{where}: {key} is {value!r:.60}; give a list (in YAML, lines that open with '- ')"
            )


def _as_it_is(data: object) -> object:
    return data


def _model(data: object) -> object:
    """Let a plain string stand for a model's path."""
    return {"path": data} if isinstance(data, str) else data


def _sampling(data: object) -> object:
    """Let one string stand for a list of one stop string."""
    if isinstance(data, Mapping) and isinstance(data.get("stop"), str):
        return {**data, "stop": [data["stop"]]}
    return data


_VALUE_KEYS = ("chunk_weight", "beta", "function")


def _value(data: object) -> object:
    """Let `{path: ..., chunk_weight: ...}` stand for `{model: {path: ...}, chunk_weight: ...}`."""
    if isinstance(data, str):
        return {"model": data}
    if not isinstance(data, Mapping):
        return data
    if "weight" in data:  # the earlier name
        if "chunk_weight" in data:
            raise UserError("values: chunk_weight and weight are two names of one thing; give chunk_weight")
        data = {"chunk_weight" if key == "weight" else key: value for key, value in data.items()}
    if "model" in data or "function" in data:
        return data
    valid = {*(field.name for field in dataclasses.fields(ModelConfig)), *_VALUE_KEYS}
    for key in data:
        if key not in valid:
            raise UserError(f"values: unknown key {key!r}; {nearest(str(key), {*valid, 'weight'})}")
    own = {key: data[key] for key in _VALUE_KEYS if key in data}
    return {"model": {key: value for key, value in data.items() if key not in own}, **own}


_SHORTHANDS: Mapping[type, Callable[[object], object]] = {
    ModelConfig: _model,
    SamplingConfig: _sampling,
    ValueConfig: _value,
}


def _describe(wanted: Any) -> str:
    """Say in a user's words what values a field's type takes."""
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(get_args(wanted))}"
    if isinstance(wanted, UnionType) or get_origin(wanted) is Union:
        return " or ".join(_describe(one) for one in get_args(wanted))
    if dataclasses.is_dataclass(wanted):
        return f"keys, such as {dataclasses.fields(wanted)[0].name}"
    if get_origin(wanted) is Mapping:
        return "keys with their values"
    if get_origin(wanted) in (tuple, list):
        return f"a list, each of its entries {_describe(get_args(wanted)[0])}"
    return _WORDS.get(wanted, str(wanted))
