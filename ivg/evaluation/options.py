"""Options of the evaluation commands: one dataclass, whose fields are YAML keys and flags alike."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin

from ivg.config.yaml_file import build, nearest, read_yaml
from ivg.errors import UserError
from ivg.run import console

T = TypeVar("T", bound="CommandOptions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """What every evaluation takes; its own options are fields of a subclass."""

    quiet: bool = dataclasses.field(default=False, metadata={"help": console.QUIET})
    verbose: bool = dataclasses.field(default=False, metadata={"help": console.VERBOSE})
    json: bool = dataclasses.field(default=False, metadata={"help": console.JSON})


class GridCommand(NamedTuple):
    """A command whose options are nested, in a file.

    Attributes:
        config: path of the YAML file.
        overrides: KEY=VALUE, each.
        json: print the result as JSON.
    """

    config: str
    overrides: list[str]
    json: bool


class Parser(argparse.ArgumentParser):
    """Raises `UserError` where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(message)


def option(default: Any, text: str) -> Any:
    """Declare a field with its help text."""
    return dataclasses.field(default=default, metadata={"help": text})


def parse_options(cls: type[T], argv: Sequence[str] | None, description: str) -> T:
    """Read flags, and under them the YAML file that `--config` names; obey `quiet` and `verbose`.

    Args:
        cls: a `CommandOptions`; each field has a default and a `help` in its metadata (see `option`). Its
            types are text, numbers, booleans, lists of these, or one of these and None.
        argv: the command line; None for the process's own.
        description: what `--help` opens with.

    Raises:
        UserError: an unknown key or flag (naming the nearest valid one), or a value of the wrong type.
    """
    parser = _flag_parser(cls, description)
    known, unknown = parser.parse_known_args(argv)
    given = vars(known)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        raise UserError(f"unknown argument {unknown[0]!r}; {nearest(name, {*_hints(cls), 'config'})}")
    path = given.pop("config", None)
    from_file = {} if path is None else _with_lists(read_yaml(path), cls)
    built: T = build(cls, {**from_file, **given}, "options" if path is None else f"config {path}")
    console.set_up(quiet=built.quiet, verbose=built.verbose)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = getattr(built, field.name)
        for text in value if isinstance(value, list) else [value]:
            _refuse_unusable(field.name, text)
    return built


def _refuse_unusable(name: str, text: object) -> None:
    """Refuse a NUL byte and half a surrogate pair, of which there is no file and no variable."""
    if not isinstance(text, str):
        return
    if "\0" in text:
        raise UserError(f"{name} is {text!r:.60}, which holds a NUL byte; give a text")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UserError(f"{name} is {text!r:.60}, which holds half a character; give a text") from error


def _flag_parser(cls: type, description: str) -> Parser:
    """Return a parser of a dataclass's fields; what is not given is absent from what it returns."""
    parser = Parser(description=description.strip(), allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="YAML with any of these options; flags win over it")
    for field in dataclasses.fields(cls):
        hint = _without_none(_hints(cls)[field.name])
        names = [f"--{field.name}"]
        if "_" in field.name:
            names.append(f"--{field.name.replace('_', '-')}")
        text = field.metadata["help"].replace("%", "%%")
        if field.default not in (None, "", False, dataclasses.MISSING):
            text += f" ({field.default})"
        if hint is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, help=text)
        elif get_origin(hint) is list:
            parser.add_argument(*names, nargs="+", type=get_args(hint)[0], metavar="X", help=text)
        else:
            parser.add_argument(*names, type=hint, metavar="X", help=text)
    return parser


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _without_none(hint: Any) -> Any:
    """Return `X` for `X | None`."""
    is_optional = NoneType in get_args(hint)
    return next(kind for kind in get_args(hint) if kind is not NoneType) if is_optional else hint


def _with_lists(data: dict[str, Any], cls: type) -> dict[str, Any]:
    """Let one value stand for a list of it, as a flag does, and null for what is left out."""
    lists = {name for name, hint in _hints(cls).items() if get_origin(hint) is list}
    return {
        key: [value] if key in lists and not isinstance(value, list) else value
        for key, value in data.items()
        if value is not None
    }


def refuse_below(least: int, **numbers: int | None) -> None:
    """Refuse numbers that are too small; None stands for one that was not given.

    Raises:
        UserError: names the first such number.
    """
    for name, number in numbers.items():
        if number is not None and number < least:
            raise UserError(f"{name} is {number}; give an integer >= {least}")


def config_and_overrides(argv: Sequence[str] | None, description: str) -> GridCommand:
    """Read `--config FILE KEY=VALUE ...`, for commands whose options are nested; obey `quiet` and `verbose`.

    Raises:
        UserError: no file, an unknown flag, or an override without `=`.
    """
    parser = Parser(description=description.strip(), allow_abbrev=False)
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override a key: sampling.seed=1")
    console.add_flags(parser)
    known = parser.parse_intermixed_args(argv)
    console.set_up(quiet=known.quiet, verbose=known.verbose)
    bad = [text for text in known.overrides if "=" not in text]
    if bad:
        raise UserError(f"unexpected argument {bad[0]!r}; overrides are KEY=VALUE")
    return GridCommand(known.config, known.overrides, known.json)
