"""Options of the evaluation scripts: one dataclass, whose fields are YAML keys and flags alike."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from transformers import HfArgumentParser

from ivg.config.yaml_file import nearest, read_yaml
from ivg.errors import UserError

T = TypeVar("T")


class _Parser(HfArgumentParser):  # type: ignore[misc]
    """Raises where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def option(default: Any, text: str) -> Any:
    """Declare a field with its help text."""
    return dataclasses.field(default=default, metadata={"help": text})


def parse_options(cls: type[T], argv: Sequence[str] | None, description: str) -> T:
    """Read flags, and under them the YAML file that `--config` names.

    Args:
        cls: a dataclass; each field has a default and a `help` in its metadata (see `option`).
        argv: the command line; None for the process's own.
        description: what `--help` opens with.

    Raises:
        UserError: an unknown key or flag (naming the nearest valid one), or a value of the wrong type.
    """
    parser = _Parser(cls, description=description.strip(), allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with any of these options; flags win over it")
    valid = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    flags = list(sys.argv[1:] if argv is None else argv)
    config = parser.parse_known_args(flags)[0].config
    from_file = [] if config is None else _as_flags(read_yaml(config), config, valid)
    known, unknown = parser.parse_known_args([*from_file, *flags])
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        raise UserError(f"unknown argument {unknown[0]!r}; {nearest(name, {*valid, 'config'})}")
    return cls(**{name: value for name, value in vars(known).items() if name in valid})


def _as_flags(data: dict[str, Any], path: str, valid: set[str]) -> list[str]:
    """Write a YAML file's options as flags, so that both are checked by the same types."""
    flags = []
    for key, value in data.items():
        if key not in valid:
            raise UserError(f"{path}: unknown key {key!r}; {nearest(key, valid)}")
        if value is not None:
            flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def config_and_overrides(argv: Sequence[str] | None, description: str) -> tuple[str, list[str]]:
    """Read `--config FILE KEY=VALUE ...`, for scripts whose options are nested.

    Raises:
        UserError: no file, an unknown flag, or an override without `=`.
    """
    parser = _Parser((), description=description.strip(), allow_abbrev=False)
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override a key: sampling.seed=1")
    known = parser.parse_intermixed_args(argv)
    bad = [text for text in known.overrides if "=" not in text]
    if bad:
        raise UserError(f"unexpected argument {bad[0]!r}; overrides are KEY=VALUE")
    return known.config, known.overrides
