"""The `ivg` command: one name for everything, each verb imported or started only when it is asked for.

Training and evaluation are scripts of the source checkout, which `ivg train` and `ivg eval` start; the rest
is in the package.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, NoReturn

from ivg.errors import UserError, exit_on_user_error

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parent

VERBS = {
    "decode": "decode prompts with a guided base model (the same as ivg-decode)",
    "train": "train the models that guide, or sample their training data: ivg train STAGE ...",
    "eval": "measure, compare and report: ivg eval WHAT ...",
    "serve": "answer OpenAI's HTTP interface: ivg serve --config FILE.yaml",
    "export-vllm": "write a guided model as a folder that plain `vllm serve` takes",
    "convert-value": "turn a released token-reward checkpoint into a value model (= ivg-convert-value)",
    "convert-gguf": "turn a GGUF file into a model folder: ivg convert-gguf FILE.gguf FOLDER",
    "env": "print versions, devices and what was compiled, for a report of a fault",
}


class Script(NamedTuple):
    """A script of the checkout.

    Attributes:
        path: seen from the checkout's root.
        summary: what it does, in a line.
        settings: files whose dataclasses hold the keys that are ours, for `--help`.
    """

    path: str
    summary: str
    settings: tuple[str, ...] = ()


_SHARED = "training/arguments.py"
STAGES = {
    "sft": Script(
        "train/sft.py", "supervised fine-tuning of a language model", (_SHARED, "training/merging.py")
    ),
    "rollouts": Script(
        "train/rollouts.py", "sample and score responses for training", ("training/rollouts/arguments.py",)
    ),
    "dpo": Script("train/dpo.py", "preference tuning: the tuned half of a pair", (_SHARED,)),
    "reward": Script("train/reward.py", "a reward model from preferences", (_SHARED,)),
    "value": Script("train/value.py", "an explicit value model", (_SHARED, "training/value/arguments.py")),
}
EVALUATIONS = {
    "gold-reward": Script("eval/gold_reward.py", "reward, length, repetition and distance of decoded files"),
    "alpaca": Script("eval/alpaca.py", "AlpacaEval 2 with a judge"),
    "judge": Script("eval/judge.py", "how far a judge agrees with recorded comparisons, and with itself"),
    "reward-accuracy": Script(
        "eval/reward_accuracy.py", "how often pairs, value and reward models rank responses rightly"
    ),
    "ifeval": Script("eval/ifeval.py", "instructions that a program can check; no judge"),
    "boards": Script("eval/boards.py", "answers in the files of Arena-Hard v2, MT-Bench and JudgeArena"),
    "sweep": Script("eval/sweep.py", "a grid of guidance settings: reward against distance and compute"),
    "speed": Script("eval/speed.py", "seconds per prompt and memory by response length"),
    "report": Script("eval/report.py", "report.md and one HTML page from a folder of results"),
    "bench": Script("eval/bench.py", "decoding speed, rung by rung"),
    "bench-engines": Script("eval/bench_engines.py", "lockstep, vLLM, and vLLM unguided, side by side"),
    "reproducibility": Script("eval/reproducibility.py", "how many responses a batch's size changes"),
}


@exit_on_user_error
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
    elif verb == "export-vllm":
        from ivg.run.export_vllm import main as export

        return export(rest)
    elif verb == "convert-value":
        from ivg.training.value.convert_command import main as convert

        convert(rest)
    elif verb == "convert-gguf":
        from ivg.run.convert_gguf import main as convert_gguf

        convert_gguf(rest)
    elif verb == "env":
        if rest:
            raise UserError(f"env takes no arguments, got {rest[0]!r}")
        from ivg.run.environment import describe_machine

        for name, fact in describe_machine().items():
            _say(f"{name}: {fact}")
    else:
        raise UserError(f"ivg {verb!r:.60} is no verb; give one of {', '.join(VERBS)}")
    return 0


def _train(arguments: Sequence[str]) -> int:
    name, script, rest = _choose("train", "a stage", STAGES, arguments)
    if script is None:
        return 0
    if rest and rest[0] in ("--help", "-h"):
        _say(f"usage: ivg train {name} --config FILE.yaml [--KEY VALUE ...]\n\n{script.summary}; own keys:\n")
        for key, text in own_keys(script):
            _say(f"  {key}\n      {text}")
        _say(f"\nThe keys of the trainer underneath: ivg train {name} --help_all")
        return 0
    if "--help_all" in rest:
        return _start([sys.executable, str(_find(script)), "--help"])
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return _start([*launcher, str(_find(script)), *rest])


def _evaluate(arguments: Sequence[str]) -> int:
    _, script, rest = _choose("eval", "what to evaluate", EVALUATIONS, arguments)
    return 0 if script is None else _start([sys.executable, str(_find(script)), *rest])


def _choose(
    verb: str, what: str, scripts: dict[str, Script], arguments: Sequence[str]
) -> tuple[str, Script | None, list[str]]:
    """Return name, script and its arguments; no script where help was asked for, which is printed."""
    name, *rest = [*arguments] or [""]
    if name in ("--help", "-h"):
        lines = {name: script.summary for name, script in scripts.items()}
        _say(_list_verbs(f"usage: ivg {verb} NAME ...\n\nnames:", lines))
        return name, None, rest
    if name not in scripts:
        found = f"{name!r:.60} is none" if name else "is missing"
        raise UserError(f"ivg {verb}: {what} {found}; give one of {', '.join(scripts)}")
    return name, scripts[name], rest


def _find(script: Script) -> Path:
    path = CHECKOUT / script.path
    if not path.is_file():
        raise UserError(
            f"{script.path} is not beside the installed package: training and evaluation run from a source "
            "checkout; clone it and install with pip install -e ."
        )
    return path


def _start(command: list[str]) -> NoReturn:
    """Become another program, which then gets the signals and gives the exit code."""
    sys.stdout.flush()
    os.execv(command[0], command)


def own_keys(script: Script) -> Iterator[tuple[str, str]]:
    """Yield name and help of the settings that this project adds to those of the trainer underneath.

    They are read from the source: importing it would import torch, transformers and TRL.
    """
    for path in script.settings:
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
