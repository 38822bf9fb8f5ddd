"""Judge decoded files by a reward model, beside length, repetition and distance from the base.

    ivg eval gold-reward --files base=runs/base.jsonl ivg=runs/ivg.jsonl \
        --function ivg.rewards.vader --base models/base --output runs/gold_reward.json

The first file holds the base's own samples; the last is the one that the others are compared with, unless
`--reference` names another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ivg.errors import UserError, exit_on_user_error, needs

with needs("eval"):
    from ivg.config import ModelConfig
    from ivg.evaluation.measures.decoded import Decoded, read_named
    from ivg.evaluation.measures.distance import encode_response, response_nll
    from ivg.evaluation.measures.divergence import (
        Stated,
        TokenGuidance,
        best_of_bounds,
        inspect_token_guidance,
        token_guidance_kl,
    )
    from ivg.evaluation.measures.measures import compare, measure, missing_reasons
    from ivg.evaluation.measures.statistics import estimate
    from ivg.evaluation.options import CommandOptions, option, parse_options
    from ivg.evaluation.output_folder import open_result
    from ivg.evaluation.printing import show
    from ivg.evaluation.report.tables import (
        Table,
        divergence_table,
        methods_table,
        one_reward_notes,
        paired_table,
    )
    from ivg.models.loading import load_inspected
    from ivg.models.plan import ModelInfos, inspect_models
    from ivg.rewards import RewardConfig, load_also, load_reward, score


RESULT_KEYS = ("methods", "paired", "reference")  # by which a result of ours is recognised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """What to judge, by which reward."""

    files: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "decoded files as NAME=FILE.jsonl, the base's first"}
    )
    function: str | None = option(None, "reward: dotted name of a callable, such as ivg.rewards.vader")
    model: str | None = option(None, "reward: folder or Hub name of a sequence classifier")
    also: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "further rewards to report beside it, as NAME=DOTTED.NAME of a callable"},
    )
    label: str | None = option(None, "the classifier's label whose log-odds are the reward")
    template: str | None = option(None, "how the classifier sees a prompt: chat, or text with {prompt}")
    batch_size: int = option(32, "responses per pass of the classifier")
    base: str | None = option(None, "folder or Hub name of the base; unset: no distance from it")
    trust_remote_code: bool = option(False, "run code that the base's or the pair's checkpoint brings")
    base_template: str | None = option(None, "how the base sees a prompt; unset: its default")
    max_tokens: int = option(8192, "padded tokens per pass of the base")
    kl_of: str | None = option(None, "file made by token guidance alone: report its KL to the base")
    tuned: str | None = option(None, "the pair's tuned half, for kl_of")
    untuned: str | None = option(None, "its untuned twin")
    pair_template: str | None = option(None, "how the pair sees a prompt; unset: its default")
    beta: float | None = option(None, "weight of the pair, for kl_of; unset: as the file's record says")
    temperature: float | None = option(None, "sampling temperature, for kl_of; unset: as the record says")
    best_of: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "files made by best-of-N as NAME=N: report the bound on their KL"},
    )
    reference: str | None = option(None, "file that the others are subtracted from; default: the last")
    output: str | None = option(None, "write the numbers there as JSON")


def check(options: Options, files: Sequence[Decoded]) -> None:
    """Find what can be found before any weights are loaded."""
    names = [file.name for file in files]
    if options.reference is not None and options.reference not in names:
        raise UserError(
            f"reference {options.reference!r} is not among the files {', '.join(names)}; name one"
        )
    needed = (options.base, options.tuned, options.untuned)
    if options.kl_of is not None and (options.kl_of not in names or None in needed):
        raise UserError("kl_of names one of the files and needs base, tuned and untuned")
    if not best_of_bounds(options.best_of).keys() <= set(names):
        raise UserError(f"best_of: {' '.join(options.best_of)} must be among the files {', '.join(names)}")
    if options.max_tokens < 1:
        raise UserError(f"max_tokens is {options.max_tokens}; give an integer >= 1")
    read = [file.path.resolve() for file in files if file.path is not None]
    if options.output is not None and Path(options.output).resolve() in read:
        raise UserError(f"output {options.output}: is one of the files to judge; give another")


def named_functions(arguments: Sequence[str]) -> dict[str, str]:
    """Read NAME=DOTTED.NAME arguments.

    Raises:
        UserError: malformed, or a name given twice.
    """
    functions = {}
    for argument in arguments:
        name, equals, function = argument.partition("=")
        if not (name and equals and function):
            raise UserError(
                f"also: got {argument!r}; expected NAME=DOTTED.NAME, such as vader=ivg.rewards.vader"
            )
        if name in functions:
            raise UserError(f"also: {name!r} is given twice; give each function its own name")
        functions[name] = function
    return functions


def inspect_base(options: Options) -> ModelInfos | None:
    """Find out what the base is, before its weights are loaded; None where none is named."""
    if options.base is None:
        return None
    return inspect_models(
        ModelConfig(
            path=options.base,
            template=options.base_template,
            trust_remote_code=options.trust_remote_code,
        )
    )


def base_nll(infos: ModelInfos, files: Sequence[Decoded], max_tokens: int) -> list[list[float]]:
    """Score every file's responses under the base."""
    base = infos.base
    encoded = [
        [encode_response(base.tokenizer, row, template=base.template) for row in f.rows] for f in files
    ]
    module = load_inspected(infos).base.module
    return [response_nll(module, responses, max_tokens=max_tokens) for responses in encoded]


def inspect_guided(options: Options, files: Sequence[Decoded]) -> list[TokenGuidance]:
    """Find out how the file that kl_of names was made; an empty list where it names none."""
    if options.kl_of is None:
        return []
    stated = Stated(
        base=str(options.base),
        tuned=str(options.tuned),
        untuned=str(options.untuned),
        base_template=options.base_template,
        pair_template=options.pair_template,
        beta=options.beta,
        temperature=options.temperature,
        trust_remote_code=options.trust_remote_code,
    )
    return [inspect_token_guidance(file, stated) for file in files if file.name == options.kl_of]


def tabulate(report: dict[str, Any], files: Sequence[Decoded]) -> list[Table | None]:
    """Return the tables."""
    return [
        methods_table(report),
        paired_table(report) if len(files) > 1 else None,
        divergence_table(report),
    ]


def tell_missing(report: dict[str, Any], files: Sequence[Decoded]) -> Iterator[str]:
    """Say which rewards are missing."""
    for file in files:
        for reason, count in report["methods"][file.name]["missing"].items():
            yield f"{file.name}: {count} of {len(file.rows)} responses without a reward: {reason}"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the evaluation."""
    options = parse_options(Options, argv, __doc__ or "")
    files = read_named(options.files)
    check(options, files)
    with open_result(options.output, RESULT_KEYS) as write:
        report = judge(options, files)
        notes = (*tell_missing(report, files), *one_reward_notes(report))
        show(report, tabulate(report, files), notes, as_json=options.json)
        write(report)


def judge(options: Options, files: Sequence[Decoded]) -> dict[str, Any]:
    """Check everything, then load and score."""
    base = inspect_base(options)
    guided = inspect_guided(options, files)
    config = RewardConfig(
        function=options.function,
        model=options.model,
        label=options.label,
        template=options.template,
        batch_size=options.batch_size,
    )
    reward = load_reward(config)
    also = load_also(named_functions(options.also))
    name = str(options.function or options.model)
    kl = {guidance.file.name: token_guidance_kl(guidance) for guidance in guided}
    rewards = [score(reward, file.rows, file.responses, name) for file in files]
    nll = [None] * len(files) if base is None else base_nll(base, files, options.max_tokens)
    others = [{key: score(f, file.rows, file.responses, key) for key, f in also.items()} for file in files]
    measured = {f.name: measure(f, r, n, o) for f, r, n, o in zip(files, rewards, nll, others, strict=True)}
    base_name = None if base is None else files[0].name
    report: dict[str, Any] = {
        "reward": name,
        **compare(measured, base=base_name, reference=options.reference, also=list(also)),
    }
    for file, values in zip(files, rewards, strict=True):
        report["methods"][file.name]["missing"] = missing_reasons(file, values)
    for method, bound in best_of_bounds(options.best_of).items():
        report["methods"][method]["kl_bound"] = bound
    for method, by_prompt in kl.items():
        report["methods"][method]["kl_to_base"] = estimate(by_prompt.values()).as_dict()
    return report


if __name__ == "__main__":
    main()
