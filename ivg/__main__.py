"""The `ivg` command: one name for everything, each verb imported or started only when it is asked for."""

from __future__ import annotations

import ast
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, NoReturn, ParamSpec

from ivg.errors import EXIT_FAILURE, UserError, exit_on_user_error

P = ParamSpec("P")

PACKAGE = Path(__file__).parent

VERBS = {
    "decode": "decode prompts with a guided base model (the same as ivg-decode)",
    "train": "train the models that guide, or sample their training data: ivg train STAGE ...",
    "eval": "measure, compare and report: ivg eval WHAT ...",
    "serve": "answer OpenAI's HTTP interface: ivg serve --config FILE.yaml",
    "view": "replay the searches of a trace in one HTML page: ivg view TRACE",
    "export-vllm": "write a guided model as a folder that plain `vllm serve` takes",
    "convert-value": "turn a released token-reward checkpoint into a value model (= ivg-convert-value)",
    "convert-gguf": "turn a GGUF file into a model folder: ivg convert-gguf FILE.gguf FOLDER",
    "recipes": "list, show or copy the runs of this project: ivg recipes copy quickstart",
    "env": "print versions, devices and what was compiled, for a report of a fault",
}


class Command(NamedTuple):
    """What `ivg train` or `ivg eval` runs under a name.

    Attributes:
        module: its `main` reads the process's arguments.
        summary: what it does, in a line.
        settings: files of the package whose dataclasses hold the keys that are ours, for `--help`.
    """

    module: str
    summary: str
    settings: tuple[str, ...] = ()


_SHARED = "training/arguments.py"
STAGES = {
    "sft": Command(
        "ivg.commands.train.sft",
        "supervised fine-tuning of a language model",
        (_SHARED, "training/merging.py"),
    ),
    "rollouts": Command(
        "ivg.commands.train.rollouts",
        "sample and score responses for training",
        ("training/rollouts/arguments.py",),
    ),
    "dpo": Command("ivg.commands.train.dpo", "preference tuning: the tuned half of a pair", (_SHARED,)),
    "reward": Command("ivg.commands.train.reward", "a reward model from preferences", (_SHARED,)),
    "value": Command(
        "ivg.commands.train.value", "an explicit value model", (_SHARED, "training/value/arguments.py")
    ),
}
EVALUATIONS = {
    "gold-reward": Command(
        "ivg.commands.eval.gold_reward", "reward, length, repetition and distance of decoded files"
    ),
    "alpaca": Command("ivg.commands.eval.alpaca", "AlpacaEval 2 with a judge"),
    "judge": Command(
        "ivg.commands.eval.judge", "how far a judge agrees with recorded comparisons, and with itself"
    ),
    "reward-accuracy": Command(
        "ivg.commands.eval.reward_accuracy", "how often pairs, value and reward models rank responses rightly"
    ),
    "ifeval": Command("ivg.commands.eval.ifeval", "instructions that a program can check; no judge"),
    "boards": Command(
        "ivg.commands.eval.boards", "answers in the files of Arena-Hard v2, MT-Bench and JudgeArena"
    ),
    "sweep": Command(
        "ivg.commands.eval.sweep", "a grid of guidance settings: reward against distance and compute"
    ),
    "speed": Command("ivg.commands.eval.speed", "seconds per prompt and memory by response length"),
    "report": Command("ivg.commands.eval.report", "report.md and one HTML page from a folder of results"),
    "bench": Command("ivg.commands.eval.bench", "decoding speed, rung by rung"),
    "bench-engines": Command(
        "ivg.commands.eval.bench_engines", "lockstep, vLLM, and vLLM unguided, side by side"
    ),
    "reproducibility": Command(
        "ivg.commands.eval.reproducibility", "how many responses a batch's size changes"
    ),
}


def _ends_with_its_reader(main: Callable[P, int]) -> Callable[P, int]:
    """Wrap `main`: where whoever reads our output has stopped, as `head` does, there is nothing to say."""

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered would fail once more when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_FAILURE
        return code

    return wrapper


@exit_on_user_error
@_ends_with_its_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Run `ivg VERB ...`; exit codes are those of `ivg-decode`."""
    verb, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if verb in ("--help", "-h", "help"):
        _say(
            _list_verbs("usage: ivg VERB ...\n\nGuided decoding for frozen language models.\n\nverbs:", VERBS)
        )
        _say("ivg VERB --help says more; ivg --version prints the version.")
    elif verb == "--version":
        _say(f"ivg {version('ivg')}")
    elif verb == "decode":
        from ivg.run.cli import main as decode

        return decode(rest)
    elif verb == "train":
        return _train(rest)
    elif verb == "eval":
        return _evaluate(rest)
    elif verb == "serve":
        from ivg.serve.cli import main as serve

        return serve(rest)
    elif verb == "view":
        from ivg.evaluation.view.command import main as view

        return view(rest)
    elif verb == "export-vllm":
        from ivg.run.export_vllm import main as export

        return export(rest)
    elif verb == "convert-value":
        from ivg.training.value.convert_command import main as convert

        convert(rest)
    elif verb == "convert-gguf":
        from ivg.run.convert_gguf import main as convert_gguf

        convert_gguf(rest)
    elif verb == "recipes":
        from ivg.commands.recipes import main as recipes

        return recipes(rest)
    elif verb == "env":
        _tell_environment(rest)
    else:
        raise UserError(f"ivg {verb!r:.60} is no verb; give one of {', '.join(VERBS)}")
    return 0


def _tell_environment(arguments: Sequence[str]) -> None:
    from ivg.run.console import print_json, take_flags

    rest = take_flags(arguments)
    as_json = rest == ["--json"]
    if rest and not as_json:
        raise UserError(f"env takes no arguments but --json, --quiet and --verbose, got {rest[0]!r:.60}")
    from ivg.run.environment import describe_machine

    facts = describe_machine()
    if as_json:
        print_json(facts)
    else:
        _say("\n".join(f"{name}: {fact}" for name, fact in facts.items()))


def _train(arguments: Sequence[str]) -> int:
    """Train here, or hand over to `accelerate launch` where there is something to launch.

    What stands before the stage's name is for the launcher.
    """
    place = next((i for i, word in enumerate(arguments) if word in STAGES), 0)
    name, command, rest = _choose("train", "a stage", STAGES, arguments[place:])
    if command is None:
        return 0
    if rest and rest[0] in ("--help", "-h"):
        from ivg.run.console import QUIET, VERBOSE

        _say(
            f"usage: ivg train [FLAGS OF accelerate launch] {name} --config FILE.yaml [--KEY VALUE ...]\n\n"
            f"{command.summary}; own keys:\n"
        )
        for key, text in own_keys(command):
            _say(f"  {key}\n      {text}")
        _say(f"\n--quiet: {QUIET}\n--verbose: {VERBOSE}")
        _say(f"The keys of the trainer underneath: ivg train {name} --help_all")
        return 0
    if "--help_all" in rest:
        return run_here("train", name, ["--help"])
    if place == 0 and _is_one_process():
        return run_here("train", name, rest)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *arguments[:place]]
    return _start([*launcher, "--module", command.module, *rest])


def _is_one_process() -> bool:
    """Tell whether `accelerate launch` without flags would start one process with no settings of its own."""
    import torch
    from accelerate.commands.config.config_args import default_config_file  # of `accelerate config`

    return torch.accelerator.device_count() <= 1 and not Path(default_config_file).is_file()


def _evaluate(arguments: Sequence[str]) -> int:
    name, command, rest = _choose("eval", "what to evaluate", EVALUATIONS, arguments)
    return 0 if command is None else run_here("eval", name, rest)


def run_here(verb: str, name: str, arguments: Sequence[str]) -> int:
    """Run what `ivg train` or `ivg eval` has under a name in this process, and return its exit code."""
    command = {"train": STAGES, "eval": EVALUATIONS}[verb][name]
    sys.argv = [f"ivg {verb} {name}", *arguments]
    code = import_module(command.module).main()
    return int(code or 0)


def _choose(
    verb: str, what: str, commands: dict[str, Command], arguments: Sequence[str]
) -> tuple[str, Command | None, list[str]]:
    """Return name, command and its arguments; no command where help was asked for, which is printed."""
    name, *rest = [*arguments] or [""]
    if name in ("--help", "-h"):
        lines = {name: command.summary for name, command in commands.items()}
        launcher = "[FLAGS OF accelerate launch] " if verb == "train" else ""
        _say(_list_verbs(f"usage: ivg {verb} {launcher}NAME ...\n\nnames:", lines))
        return name, None, rest
    if name not in commands:
        found = f"{name!r:.60} is none" if name else "is missing"
        raise UserError(f"ivg {verb}: {what} {found}; give one of {', '.join(commands)}")
    return name, commands[name], rest


def _start(command: list[str]) -> NoReturn:
    """Become another program, which then gets the signals and gives the exit code."""
    sys.stdout.flush()
    os.execv(command[0], command)


def own_keys(command: Command) -> Iterator[tuple[str, str]]:
    """Yield name and help of the settings that this project adds to those of the trainer underneath.

    They are read from the source: importing it would import torch, transformers and TRL.
    """
    for path in command.settings:
        for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                texts = [text for text in _find_help(node.value) if text]
                if texts:
                    yield node.target.id, texts[0]


def _find_help(value: ast.expr | None) -> Iterator[str]:
    """Yield the texts under the key `help` in a field's definition."""
    for node in ast.walk(value) if value is not None else ():
        if isinstance(node, ast.Dict):
            for key, text in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    yield str(ast.literal_eval(text))


def _list_verbs(title: str, verbs: dict[str, str]) -> str:
    width = max(map(len, verbs))
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in verbs.items()), ""])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
