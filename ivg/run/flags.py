"""How the command lines of `ivg decode` and `ivg serve` are read: flags beside KEY=VALUE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from ivg.config.yaml_file import nearest
from ivg.errors import UserError


class FlagParser(argparse.ArgumentParser):
    """Knows `--version` and overrides of a YAML file's keys; what was not given is left out."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)
        self.add_argument("--version", action="version", version=f"ivg {version('ivg')}")
        self.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override a key of --config")

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return what was given, by name; dashes and underscores in flags are the same.

        Raises:
            UserError: an unknown flag (naming the nearest one), a bad value, or an override without `=`.
        """
        known, unknown = self.parse_known_intermixed_args([_use_underscores(argument) for argument in argv])
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"unknown argument {unknown[0]!r}; {nearest(unknown[0], flags)}")
        given = {name: value for name, value in vars(known).items() if value is not None}
        for text in given.get("overrides", []):
            if not text.partition("=")[0] or "=" not in text:
                raise UserError(f"unexpected argument {text!r}; flags start with --, overrides are KEY=VALUE")
        return given


def _use_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
