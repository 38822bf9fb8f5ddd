"""From `ivg-decode`'s arguments to a checked run: flat flags for the common case, YAML for all of it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from ivg.config import (
    DecodeConfig,
    Dtype,
    EngineName,
    Guidance,
    OnOverflow,
    Quantization,
    SamplingConfig,
    SearchConfig,
    VocabMapping,
)
from ivg.config.yaml_file import YamlFile, config_from_dict, read_yaml_file
from ivg.errors import UserError
from ivg.run.console import add_flags
from ivg.run.flags import FlagParser

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
        references: texts of the configuration that the environment gave, and how they were written.
        overwrite: replace an output of an earlier run.
        dry_run: only say what the run would do.
        stream: print each response's text as it becomes certain.
        json: print the summary, or the report of a dry run, as JSON on standard output.
        quiet: say nothing but results and errors.
        verbose: say what is being done.
    """

    config: DecodeConfig
    references: Mapping[str, str]
    overwrite: bool
    dry_run: bool
    stream: bool
    json: bool
    quiet: bool
    verbose: bool


_SWITCHES = ("overwrite", "dry_run", "stream", "json", "quiet", "verbose")


def parse(argv: Sequence[str]) -> CommandLine:
    """Parse the command line.

    Args:
        argv: arguments without the program's name; dashes and underscores in flags are the same.

    Raises:
        UserError: an unknown flag or key (naming the nearest valid one), a value out of range, or one thing
            given both as a flag and in the YAML file.
    """
    given = flag_parser().read(argv)
    switches = {name: given.pop(name, False) for name in _SWITCHES}
    file = _read_file(given.pop("config", None), given.pop("overrides", []))
    merged = _merge(file.data, _nest(given), "")
    if "base" not in merged:
        raise UserError("no base model: give --base, or base in --config")
    config = config_from_dict(merged)
    if switches["stream"] and config.output == "-":
        raise UserError("stream and the results would both go to standard output; give --output a file")
    if switches["json"] and not switches["dry_run"] and (switches["stream"] or config.output == "-"):
        raise UserError("json and the results would both go to standard output; leave --json out")
    return CommandLine(config, file.references, **switches)


def _read_file(path: str | None, overrides: Sequence[str]) -> YamlFile:
    if path is not None:
        return read_yaml_file(path, overrides)
    if overrides:
        raise UserError(f"override {overrides[0]!r} needs --config; without a file use flags")
    return YamlFile({}, {})


def _nest(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Turn flat flags into the shape of the YAML file."""
    flags = dict(flags)
    sections = {
        "search": _take(flags, {f.name: f.name for f in dataclasses.fields(SearchConfig)}),
        "sampling": _take(flags, {f.name: f.name for f in dataclasses.fields(SamplingConfig)}),
        "dataset": _take(flags, _DATASET),
    }
    if sections["dataset"] and "name" not in sections["dataset"]:
        raise UserError("--dataset_config and --dataset_split belong to a dataset; give --dataset")
    models = _take_models(flags)
    return {**models, **{name: keys for name, keys in sections.items() if keys}, **flags}


def _take_models(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the models and what belongs to them out of the flags."""
    loading = _take(flags, _LOADING)
    base, tuned, untuned, value = (flags.pop(name, None) for name in ("base", "tuned", "untuned", "value"))
    weight, mapping = _take(flags, {"beta": "beta"}), _take(flags, {"vocab_mapping": "vocab_mapping"})
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


def _take(flags: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
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


_EXAMPLES = """\
examples:
  ivg-decode --base BASE --input prompts.jsonl --output out.jsonl
      plain sampling from the base
  ivg-decode --base BASE --tuned TUNED --untuned UNTUNED --value VALUE \\
      --token_guidance implicit --chunk_guidance explicit \\
      --num_beams 4 --num_successors 4 --chunk_length 5 \\
      --input prompts.jsonl --output out.jsonl
      integrated value guidance
  ivg-decode --config run.yaml sampling.seed=1 --dry_run
      say whether a run fits together, before any weights are loaded

exit codes: 0 done; 2 the input or configuration is wrong; 130 interrupted, what
was finished is saved; 1 anything else
"""


def flag_parser() -> FlagParser:
    """Return the parser; flags that were not given are left out of what it returns."""
    parser = FlagParser(
        prog="ivg-decode",
        usage="ivg-decode --base MODEL --input FILE --output FILE [flags]\n"
        "       ivg-decode --config FILE [KEY=VALUE ...] [flags]",
        description="Decode prompts with a frozen base model, guided by small models. Defaults stand in\n"
        "parentheses; dashes and underscores in flags are the same.",
        epilog=_EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file; what it gives cannot be given as a flag too"
    )
    _add_models(parser.add_argument_group("models"))
    _add_loading(parser.add_argument_group("loading, for all models given by flags"))
    _add_guidance(parser.add_argument_group("guidance"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_input(parser.add_argument_group("input"))
    _add_output(parser.add_argument_group("output"))
    _add_running(parser.add_argument_group("running"))
    add_flags(parser)
    return parser


def _add_models(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--base", metavar="MODEL", help="frozen base: folder or Hub name")
    add("--tuned", metavar="MODEL", help="tuned half of the pair; may be a LoRA adapter over --untuned")
    add("--untuned", metavar="MODEL", help="its untuned twin")
    add("--value", metavar="MODEL", help="value model or reward model")
    add(
        "--vocab_mapping",
        choices=get_args(VocabMapping),
        help="token guidance by a pair of another vocabulary (refuse)",
    )


def _add_loading(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--prompt_template",
        metavar="TEXT",
        help="'chat' or a format string with {prompt} (each model's own chat template, if any)",
    )
    add("--dtype", choices=get_args(Dtype), help="weights' type (the checkpoint's)")
    add("--device", metavar="NAME", help="cpu, cuda:0, ... (CUDA if there is one)")
    add("--device_map", metavar="NAME", help="auto, ...: spread layers over devices")
    add("--quantization", choices=get_args(Quantization), help="through bitsandbytes")
    add("--attn_implementation", metavar="NAME", help="eager, sdpa, flash_attention_2, ...")
    add("--trust_remote_code", action="store_true", help="run code shipped with checkpoints")


def _add_guidance(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--token_guidance", choices=get_args(Guidance), help="added to next-token log-probabilities (none)")
    add("--chunk_guidance", choices=get_args(Guidance), help="ranks hypotheses at chunk boundaries (none)")
    add("--beta", type=float, metavar="X", help="weight of token guidance (1)")
    add("--num_beams", type=int, metavar="W", help="beams kept at a boundary (1)")
    add("--num_successors", type=int, metavar="K", help="continuations sampled per beam (1)")
    add("--chunk_length", type=int, metavar="L", help="tokens per chunk (30)")
    add("--early_stopping", action="store_true", help="end once a finished hypothesis is best again")
    add(
        "--no_early_stopping",
        dest="early_stopping",
        action="store_false",
        help="end once all kept beams are finished (where K < W)",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--max_new_tokens", type=int, metavar="N", help="length limit in tokens (256)")
    add("--temperature", type=float, metavar="X", help="0 is greedy (1)")
    add("--top_k", type=int, metavar="N", help="0 keeps all tokens (0)")
    add("--top_p", type=float, metavar="X", help="1 keeps all tokens (1)")
    add("--stop", action="append", metavar="TEXT", help="ends a response; may be repeated")
    add("--seed", type=int, metavar="N", help="with the prompt's id, decides every draw (0)")
    add("--num_samples", type=int, metavar="N", help="independent responses per prompt (1)")


def _add_input(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--input", metavar="FILE", help="prompts: JSONL, JSON list or .txt; - is standard input")
    add("--dataset", metavar="NAME", help="Hugging Face dataset (Hub name or folder) instead of a file")
    add("--dataset_config", metavar="NAME", help="which of the dataset's configurations")
    add("--dataset_split", metavar="NAME", help="which of its splits (test)")
    add("--limit", type=int, metavar="N", help="decode only the first records")
    add("--skip_bad_rows", action="store_true", help="note bad records in the output and go on")
    add("--on_overflow", choices=get_args(OnOverflow), help="prompt beyond a model's context (error)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output", metavar="FILE", help="JSONL of responses; - is standard output")
    add(
        "--overwrite",
        action="store_true",
        help="replace an output of an earlier run, once the first prompt is decoded",
    )
    add("--return_beams", action="store_true", help="write all kept beams")
    add("--return_token_ids", action="store_true", help="write token ids")
    add("--trace", metavar="FILE", help="JSONL of log-ratios and chunk candidates")
    add(
        "--stream",
        action="store_true",
        help="print text as JSON lines once all surviving beams agree on it (it lags by a chunk or more)",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dry_run", action="store_true", help="only check and report: nothing is loaded or written")
    add(
        "--engine",
        choices=get_args(EngineName),
        help="what decodes; vllm's arguments stand in YAML (lockstep)",
    )
    add("--max_batch_rows", type=int, metavar="N", help="rows (prompts x W x K) decoded side by side (64)")
    add(
        "--max_batch_tokens",
        type=int,
        metavar="N",
        help="rows x (longest prompt + max_new_tokens) at most (unbounded)",
    )
    add(
        "--block_size",
        type=int,
        metavar="N",
        help="prompts per block; an interrupted block is decoded again (128)",
    )
    add("--static_steps", action="store_true", help=argparse.SUPPRESS)  # refused, with what to use instead
