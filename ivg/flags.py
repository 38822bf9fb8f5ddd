"""The command line of `ivg-decode`: flat flags for the common case, YAML for all of it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ivg.config import DecodeConfig, SamplingConfig, SearchConfig
from ivg.config_file import config_from_dict, nearest, read_yaml
from ivg.errors import UserError

_GUIDANCE = ("none", "implicit", "explicit")
_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(f"{message} (see ivg-decode --help)")


def parse(argv: Sequence[str]) -> CommandLine:
    """Parse the command line.

    Args:
        argv: arguments without the program's name; dashes and underscores in flags are the same.

    Raises:
        UserError: an unknown flag or key (naming the nearest valid one), a value out of range, or one thing
            given both as a flag and in the YAML file.
    """
    parser = _parser()
    known, unknown = parser.parse_known_intermixed_args([_with_underscores(argument) for argument in argv])
    if unknown:
        flags = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]!r}; {nearest(unknown[0], flags)}")
    given = {name: value for name, value in vars(known).items() if value is not None}
    overrides = given.pop("overrides", [])
    overwrite, dry_run = given.pop("overwrite", False), given.pop("dry_run", False)
    stream = given.pop("stream", False)
    path = given.pop("config", None)
    bad = [text for text in overrides if "=" not in text]
    if bad:
        raise UserError(f"unexpected argument {bad[0]!r}; flags start with --, overrides are KEY=VALUE")
    if overrides and path is None:
        raise UserError(f"override {overrides[0]!r} needs --config; without a file use flags")
    data = read_yaml(path, overrides) if path is not None else {}
    merged = _merge(data, _nested(given), "")
    if "base" not in merged:
        raise UserError("no base model: give --base, or base in --config")
    config = config_from_dict(merged)
    if stream and config.output == "-":
        raise UserError("stream and the rows would both go to standard output; give --output a file")
    return CommandLine(config, overwrite, dry_run, stream)


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Turn flat flags into the shape of the YAML file."""
    flags = dict(flags)
    search = {f.name: flags.pop(f.name) for f in dataclasses.fields(SearchConfig) if f.name in flags}
    sampling = {f.name: flags.pop(f.name) for f in dataclasses.fields(SamplingConfig) if f.name in flags}
    shared = {name: flags.pop(flag) for flag, name in _MODEL_FLAGS.items() if flag in flags}
    tuned, untuned, value = (flags.pop(name, None) for name in ("tuned", "untuned", "value"))
    weight = {"beta": flags.pop("beta")} if "beta" in flags else {}
    mapping = {"vocab_mapping": flags.pop("vocab_mapping")} if "vocab_mapping" in flags else {}
    nested: dict[str, Any] = {}
    if "base" in flags:
        nested["base"] = {"path": flags.pop("base"), **shared}
    if (tuned is None) != (untuned is None):
        missing = "untuned" if untuned is None else "tuned"
        raise UserError(f"a pair needs both tuned and untuned; give --{missing}")
    if tuned is not None:
        pair = {"tuned": {"path": tuned, **shared}, "untuned": {"path": untuned, **shared}}
        nested["pairs"] = [{**pair, **weight, **mapping}]
    if value is not None:
        nested["values"] = [{"model": {"path": value, **shared}, **weight}]
    if weight and tuned is None and value is None:
        raise UserError(
            "--beta weighs a guide: give --tuned and --untuned, or --value, or set beta in the YAML"
        )
    if shared and not nested:
        raise UserError(f"--{next(iter(shared))} belongs to models given by flags; set it in the YAML file")
    if "dataset" in flags:
        names = {"dataset": "name", "dataset_config": "config", "dataset_split": "split"}
        nested["dataset"] = {key: flags.pop(flag) for flag, key in names.items() if flag in flags}
    return {
        **nested,
        **({"search": search} if search else {}),
        **({"sampling": sampling} if sampling else {}),
        **flags,
    }


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


_MODEL_FLAGS = {
    "dtype": "dtype",
    "device": "device",
    "device_map": "device_map",
    "quantization": "quantization",
    "attn_implementation": "attn_implementation",
    "trust_remote_code": "trust_remote_code",
    "prompt_template": "template",
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ivg-decode",
        description="Decode prompts with a frozen base model, guided by small models.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="override a key of --config: search.num_beams=2")
    add("--config", metavar="FILE", help="YAML file; what it gives cannot be given as a flag too")

    group = parser.add_argument_group("models").add_argument
    group("--base", metavar="MODEL", help="frozen base: folder or Hub name")
    group("--tuned", metavar="MODEL", help="tuned half of the pair; may be a LoRA adapter over --untuned")
    group("--untuned", metavar="MODEL", help="its untuned twin")
    group("--value", metavar="MODEL", help="value model or reward model")
    group("--prompt_template", metavar="TEXT", help="'chat' or a format string with {prompt}, for all models")
    group("--dtype", choices=_DTYPES, help="weights' type; default: the checkpoint's")
    group("--device", help="cpu, cuda:0, ...; default: CUDA if there is one")
    group("--device_map", help="auto, ...: spread layers over devices")
    group("--quantization", choices=("4bit", "8bit"), help="through bitsandbytes")
    group("--attn_implementation", help="eager, sdpa, flash_attention_2, ...")
    group("--trust_remote_code", action="store_true", help="run code shipped with checkpoints")
    group("--vocab_mapping", choices=("refuse", "shared-strings"), help="for a pair of another vocabulary")

    group = parser.add_argument_group("guidance").add_argument
    group("--token_guidance", choices=_GUIDANCE, help="what is added to next-token log-probabilities (none)")
    group("--chunk_guidance", choices=_GUIDANCE, help="what ranks hypotheses at chunk boundaries (none)")
    group("--beta", type=float, help="weight of token guidance (1)")
    group("--num_beams", type=int, metavar="W", help="beams kept at a boundary (1)")
    group("--num_successors", type=int, metavar="K", help="continuations sampled per beam (1)")
    group("--chunk_length", type=int, metavar="L", help="tokens per chunk (30)")
    group(
        "--early_stopping",
        action=argparse.BooleanOptionalAction,
        help="end once a finished hypothesis is best again (yes); else once all beams are finished",
    )

    group = parser.add_argument_group("sampling").add_argument
    group("--max_new_tokens", type=int, help="length limit in tokens (256)")
    group("--temperature", type=float, help="0 is greedy (1)")
    group("--top_k", type=int, help="0 keeps all tokens (0)")
    group("--top_p", type=float, help="1 keeps all tokens (1)")
    group("--stop", action="append", metavar="TEXT", help="ends a response; may be repeated")
    group("--seed", type=int, help="decides every draw, with the prompt's id (0)")
    group("--num_samples", type=int, help="independent responses per prompt (1)")

    group = parser.add_argument_group("input and output").add_argument
    group("--input", metavar="FILE", help="JSONL, JSON list or .txt of prompts; - is standard input")
    group("--dataset", metavar="NAME", help="Hugging Face dataset instead of a file")
    group("--dataset_config", metavar="NAME")
    group("--dataset_split", metavar="NAME", help="(test)")
    group("--output", metavar="FILE", help="JSONL of responses; - is standard output")
    group("--limit", type=int, help="decode only the first rows")
    group("--return_beams", action="store_true", help="write all kept beams")
    group("--return_token_ids", action="store_true", help="write token ids")
    group("--trace", metavar="FILE", help="JSONL of log-ratios and chunk candidates")
    group("--max_batch_rows", type=int, help="rows (prompts x W x K) decoded side by side (64)")
    group("--block_size", type=int, help="prompts per block; an interrupted block is decoded again (128)")
    group("--static_steps", action="store_true", help="fixed buffers, on a GPU one captured graph per step")
    group("--on_overflow", choices=("error", "stop"), help="prompt beyond a model's context (error)")
    group("--skip_bad_rows", action="store_true", help="record bad rows in the output and go on")
    group(
        "--stream",
        action="store_true",
        help="print text as JSON lines once all surviving beams agree on it (it lags by a chunk or more)",
    )
    group("--overwrite", action="store_true", help="drop an existing output")
    group("--dry_run", action="store_true", help="only check and report: nothing is loaded or written")
    return parser
