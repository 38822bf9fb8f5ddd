"""The command line as it describes itself: verbs, stages, evaluations, flags and keys."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

from docs.generate.keys import as_cell, find_class, keys_of, table_of_keys
from ivg import __main__ as command
from ivg.evaluation.options import parse_options
from ivg.run.command_line import flag_parser

ROOT = Path(__file__).parents[2]
_WIDTH = "88"  # columns of help texts


def verbs() -> str:
    """Return a table of the verbs of `ivg`."""
    return _table("verb", {f"`ivg {verb}`": text for verb, text in command.VERBS.items()})


def stages() -> str:
    """Return a table of the stages of `ivg train`."""
    return _table("stage", {f"`ivg train {name}`": script.summary for name, script in command.STAGES.items()})


def evaluations() -> str:
    """Return a table of what `ivg eval` does."""
    lines = {
        f"[`ivg eval {name}`](#{_anchor(name)})": script.summary
        for name, script in command.EVALUATIONS.items()
    }
    return _table("evaluation", lines)


def _table(title: str, lines: dict[str, str]) -> str:
    rows = [f"| {name} | {as_cell(text)} |" for name, text in lines.items()]
    return "\n".join([f"| {title} | what it does |", "|---|---|", *rows])


def other_verbs() -> str:
    """Return a section for every verb that has no page of its own: what its `--help` prints."""
    parts = []
    for verb, summary in command.VERBS.items():
        if verb not in ("decode", "train", "eval"):
            text = help_text(verb)
            body = f"```text\n{text}\n```" if text else f"{summary[0].upper()}{summary[1:]}."
            parts.append(f"## ivg {verb} {{ #{verb} }}\n\n{body}")
    return "\n\n".join(parts)


def help_text(verb: str) -> str:
    """Return what `ivg VERB --help` prints; empty where it takes no arguments."""
    with _printed() as printed:
        command.main([verb, "--help"])
    return printed.getvalue().rstrip()


def flags() -> str:
    """Return tables of the flags of `ivg decode`, by their groups."""
    parts = []
    for group in flag_parser()._action_groups[2:]:  # after argparse's own two
        lines = {
            f"`{', '.join(action.option_strings)}`": action.help or ""
            for action in group._group_actions
            if action.help != "==SUPPRESS=="
        }
        parts.append(f"**{group.title}**\n\n{_table('flag', lines)}")
    return "\n\n".join(parts)


def training_keys(dotted: str) -> str:
    """Return a table of the keys that one of the training scripts' dataclasses adds to its trainer's."""
    cls = find_class(dotted)
    table = table_of_keys(keys_of(cls, functools.partial(_try_training_key, cls)))
    return f"{inspect.getdoc(cls)}\n\n{table}"


def _try_training_key(cls: type, key: str, value: object) -> None:
    """Read one flag as the training scripts do, with what else they must be given.

    Raises:
        UserError: they refuse the value.
    """
    from ivg.training.arguments import parse_arguments
    from ivg.training.rollouts.arguments import RolloutArguments

    needed = {"dataset_name": "x", "model_name_or_path": "x", "output_dir": "x", "use_cpu": "true"}
    names = {field.name for field in dataclasses.fields(cls)}
    flags = [f"--{name}={text}" for name, text in needed.items() if name in names]
    (built,) = parse_arguments((cls,), [*flags, f"--{key}={value}"])
    if isinstance(built, RolloutArguments):
        built.sampling()  # checks what decoding checks too


def evaluation_keys() -> str:
    """Return a section for every evaluation: what it does and its keys, or its help where it has no keys."""
    parts = []
    for name in command.EVALUATIONS:
        module = load_evaluation(name)
        summary, _, _ = (inspect.getdoc(module) or "").partition("\n")
        options = options_of(module)
        if options is None:
            body = f"```text\n{_help_of(module, name)}\n```"
        else:
            body = table_of_keys(keys_of(options, functools.partial(_try_option, module)))
        parts.append(f"### ivg eval {name} {{ #{_anchor(name)} }}\n\n{summary}\n\n{body}")
    return "\n\n".join(parts)


def _try_option(module: ModuleType, key: str, value: object) -> None:
    """Check the options of an evaluation's example, one of them changed, as it does itself at its start.

    Raises:
        UserError: what is wrong with them.
    """
    options = options_of(module)
    check = getattr(_home(module), "check", None)
    if options is None or check is None:
        return
    files: list[object] = []  # some checks take what was read, too
    given = parse_options(options, [*example(module), f"--{key}={value}"], "")
    check(given, *(files for _ in list(inspect.signature(check).parameters)[1:]))


def example(module: ModuleType) -> list[str]:
    """Return the arguments of the last command in a script's description."""
    text = (inspect.getdoc(module) or "").replace("\\\n", " ")
    commands = re.findall(r"^ {4}(?:python eval/\w+\.py|ivg eval [\w-]+) (.+)$", text, re.MULTILINE)
    return shlex.split(commands[-1].replace("...", "x")) if commands else []


def _anchor(name: str) -> str:
    return f"eval-{name}"


def options_of(module: ModuleType) -> type | None:
    """Return the dataclass of an evaluation's options; None where it has none."""
    found: type | None = getattr(_home(module), "Options", None)
    return found


def _home(module: ModuleType) -> ModuleType:
    """Return where a script's `main` stands: in the script, or in the package."""
    return sys.modules[module.main.__module__]


def _help_of(module: ModuleType, name: str) -> str:
    with _printed() as printed, mock.patch.object(sys, "argv", [f"ivg eval {name}", "--help"]):
        module.main()
    return printed.getvalue().rstrip()


@functools.cache
def load_evaluation(name: str) -> ModuleType:
    """Load what `ivg eval NAME` runs: a module of the package, or a script of the checkout."""
    place = command.EVALUATIONS[name][0]
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(f"script_{Path(place).stem}", ROOT / place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _printed() -> Iterator[io.StringIO]:
    """Catch what a command prints before it leaves."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
        mock.patch.dict(os.environ, {"COLUMNS": _WIDTH, "NO_COLOR": "1"}),
        contextlib.suppress(SystemExit),
    ):
        yield printed
