"""From `ivg-decode`'s arguments to a checked run: flat flags for the common case, YAML for all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ivg.config import DecodeConfig, SamplingConfig, SearchConfig
from ivg.config_file import config_from_dict, nearest, read_yaml
from ivg.errors import UserError
from ivg.flags import flag_parser

_LOADING = {  # flag -> key of every model that is given by a flag
    "dtype": "dtype",
    "device": "device",
    "device_map": "device_map",
    "quantization": "quantization",
    "attn_implementation": "attn_implementation",
    "trust_remote_code": "trust_remote_code",
    "prompt_template": "template",
}
_DATASET = {"dataset": "name", "dataset_config": "config", "dataset_split": "split"}


@dataclasses.dataclass(frozen=True, slots=True)
class CommandLine:
    """What was asked for.

    Attributes:
        config: the run.
        overwrite: drop an existing output.
        dry_run: only say what the run would do.
        stream: print each response's text as it becomes certain.
    """

    config: DecodeConfig
    overwrite: bool
    dry_run: bool
    stream: bool


def parse(argv: Sequence[str]) -> CommandLine:
    """Parse the command line.

    Args:
        argv: arguments without the program's name; dashes and underscores in flags are the same.

    Raises:
        UserError: an unknown flag or key (naming the nearest valid one), a value out of range, or one thing
            given both as a flag and in the YAML file.
    """
    parser = flag_parser()
    known, unknown = parser.parse_known_intermixed_args([_with_underscores(argument) for argument in argv])
    if unknown:
        flags = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]!r}; {nearest(unknown[0], flags)}")
    given = {name: value for name, value in vars(known).items() if value is not None}
    switches = {name: given.pop(name, False) for name in ("overwrite", "dry_run", "stream")}
    file = _read_file(given.pop("config", None), given.pop("overrides", []))
    merged = _merge(file, _nested(given), "")
    if "base" not in merged:
        raise UserError("no base model: give --base, or base in --config")
    config = config_from_dict(merged)
    if switches["stream"] and config.output == "-":
        raise UserError("stream and the rows would both go to standard output; give --output a file")
    return CommandLine(config, **switches)


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _read_file(path: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    bad = [text for text in overrides if not text.partition("=")[0] or "=" not in text]
    if bad:
        raise UserError(f"unexpected argument {bad[0]!r}; flags start with --, overrides are KEY=VALUE")
    if path is not None:
        return read_yaml(path, overrides)
    if overrides:
        raise UserError(f"override {overrides[0]!r} needs --config; without a file use flags")
    return {}


def _nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Turn flat flags into the shape of the YAML file."""
    flags = dict(flags)
    sections = {
        "search": _taken(flags, {f.name: f.name for f in dataclasses.fields(SearchConfig)}),
        "sampling": _taken(flags, {f.name: f.name for f in dataclasses.fields(SamplingConfig)}),
        "dataset": _taken(flags, _DATASET),
    }
    if sections["dataset"] and "name" not in sections["dataset"]:
        raise UserError("--dataset_config and --dataset_split belong to a dataset; give --dataset")
    models = _models(flags)
    return {**models, **{name: keys for name, keys in sections.items() if keys}, **flags}


def _models(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the models and what belongs to them out of the flags."""
    loading = _taken(flags, _LOADING)
    base, tuned, untuned, value = (flags.pop(name, None) for name in ("base", "tuned", "untuned", "value"))
    weight, mapping = _taken(flags, {"beta": "beta"}), _taken(flags, {"vocab_mapping": "vocab_mapping"})
    if (tuned is None) != (untuned is None):
        missing = "untuned" if untuned is None else "tuned"
        raise UserError(f"a pair needs both tuned and untuned; give --{missing}")
    if weight and tuned is None and value is None:
        raise UserError(
            "--beta weighs a guide: give --tuned and --untuned, or --value, or set beta in the YAML"
        )
    if mapping and tuned is None:
        raise UserError("--vocab_mapping belongs to a pair given by flags: give --tuned and --untuned")
    if loading and base is None and tuned is None and value is None:
        raise UserError(f"--{next(iter(loading))} belongs to models given by flags; set it in the YAML file")
    models: dict[str, Any] = {}
    if base is not None:
        models["base"] = {"path": base, **loading}
    if tuned is not None:
        pair = {"tuned": {"path": tuned, **loading}, "untuned": {"path": untuned, **loading}}
        models["pairs"] = [{**pair, **weight, **mapping}]
    if value is not None:
        models["values"] = [{"model": {"path": value, **loading}, **weight}]
    return models


def _taken(flags: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Move flags into a section of their own, under its keys."""
    return {key: flags.pop(flag) for flag, key in names.items() if flag in flags}


def _merge(file: Mapping[str, Any], flags: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Put flags beside the file's keys; one thing given twice is an error."""
    merged = dict(file)
    for key, value in flags.items():
        name = f"{where}{key}"
        if key not in merged:
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(merged[key], Mapping) and not where:
            merged[key] = _merge(merged[key], value, f"{name}.")
        else:
            raise UserError(f"{name} is given both in the YAML file and as a flag; override with {name}=...")
    return merged
