"""Can these guides guide? How often a pair, a value model or a reward model ranks responses as it should.

    ivg eval reward-accuracy --data preferences.jsonl --tuned models/dpo --untuned models/sft \
        --value models/value --model models/reward --output runs/accuracy

The data are preferences (prompt, chosen, rejected), best-of-N rows (lists of texts, as RewardBench 2 has
them) or responses with rewards. Pair and value are read at 25, 50, 75 and 100% of each response: what they
know early is what guidance can use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ivg.errors import UserError, exit_on_user_error, needs

with needs("eval"):
    import numpy as np

    from ivg.config import ModelConfig, PairConfig, ValueConfig
    from ivg.evaluation.measures.candidates import Candidates, read_candidates
    from ivg.evaluation.measures.prefix_scores import PERCENTS, Array, log_ratios, values
    from ivg.evaluation.measures.reward_accuracy import measure_scorers
    from ivg.evaluation.options import CommandOptions, option, parse_options
    from ivg.evaluation.output_folder import open_output
    from ivg.evaluation.printing import show
    from ivg.evaluation.report.figures import reward_accuracy, save_png
    from ivg.evaluation.report.tables import reward_accuracy_table
    from ivg.models.inspection import inspect_model
    from ivg.models.loading import load_model, load_pair
    from ivg.models.plan import PairInfo, ValueInfo, check_value
    from ivg.rewards import RewardConfig, load_reward, score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """What is measured, on which responses."""

    data: str = option("", "JSONL file (or JSON array) of preferences, best-of-N rows, or rewards")
    output: str = option("", "folder for the numbers and the figure")
    tuned: str | None = option(None, "the pair's tuned half")
    untuned: str | None = option(None, "its untuned twin")
    pair_template: str | None = option(None, "how the pair sees a prompt; unset: its default")
    value: str | None = option(None, "value model: a token classifier")
    value_template: str | None = option(None, "how it sees a prompt; unset: its default")
    model: str | None = option(None, "reward model: a sequence classifier, read at the end alone")
    label: str | None = option(None, "the classifier's label whose log-odds are the reward")
    template: str | None = option(None, "how the classifier sees a prompt: chat, or text with {prompt}")
    function: str | None = option(None, "reward function, as a dotted name, called at the end alone")
    num_prompts: int | None = option(None, "use the first so many prompts; unset: all")
    batch_size: int = option(32, "responses side by side")
    trust_remote_code: bool = option(False, "run code that the checkpoints bring")


def check(options: Options) -> None:
    """Find contradictions before anything is read."""
    if not options.output or not options.data:
        raise UserError("--data and --output are needed: a file of responses, and a folder for results")
    if (options.tuned is None) != (options.untuned is None):
        raise UserError("a pair needs --tuned and --untuned; give both")
    if not any((options.tuned, options.value, options.model, options.function)):
        raise UserError("nothing to measure; give --tuned and --untuned, --value, --model or --function")
    for name, number in (("batch_size", options.batch_size), ("num_prompts", options.num_prompts)):
        if number is not None and number < 1:
            raise UserError(f"{name} is {number}; give an integer >= 1")


def source(path: str, template: str | None, options: Options) -> ModelConfig:
    """Return where a model comes from."""
    return ModelConfig(path=path, template=template, trust_remote_code=options.trust_remote_code)


def inspect_pair(options: Options) -> PairInfo | None:
    """Describe the pair, before any weights are loaded; None where none is named."""
    if options.tuned is None or options.untuned is None:
        return None
    tuned, untuned = (
        source(path, options.pair_template, options) for path in (options.tuned, options.untuned)
    )
    return PairInfo(
        PairConfig(tuned=tuned, untuned=untuned),
        inspect_model(tuned, "tuned"),
        inspect_model(untuned, "untuned"),
    )


def inspect_value(options: Options) -> ValueInfo | None:
    """Describe the value model, before any weights are loaded; None where none is named."""
    if options.value is None:
        return None
    config = source(options.value, options.value_template, options)
    info = inspect_model(config, "value")
    if info.kind == "classifier":
        raise UserError(
            f"{info.name} is a sequence classifier, which judges whole responses; give it as --model"
        )
    check_value(info, guides_tokens=False)
    return ValueInfo(ValueConfig(model=config), info)


def at_the_end(scores: Sequence[float]) -> Array:
    """Return scores of finished responses as a table (N, parts) whose other columns are missing."""
    table = np.full((len(scores), len(PERCENTS)), np.nan)
    table[:, -1] = scores
    return table


def score_all(candidates: Candidates, options: Options) -> dict[str, Array]:
    """Ask every scorer; all are described before the first is loaded."""
    pair, value = inspect_pair(options), inspect_value(options)
    rewards = {
        name: RewardConfig(**given)
        for name, given in (
            (
                f"reward model {options.model}",
                {
                    "model": options.model, "label": options.label, "template": options.template,
                    "batch_size": options.batch_size, "trust_remote_code": options.trust_remote_code,
                },
            ),
            (f"function {options.function}", {"function": options.function}),
        )
        if given.get("model") or given.get("function")
    }  # fmt: skip
    scores: dict[str, Array] = {}
    for name, config in rewards.items():
        found = score(load_reward(config), candidates.records, candidates.responses, name)
        scores[name] = at_the_end(found)
    work = {"batch_size": options.batch_size}
    if pair is not None:
        scores["pair, summed"], scores["pair, per token"] = log_ratios(load_pair(pair), candidates, **work)
    if value is not None:
        scores["value"] = values(load_model(value.model), candidates, **work)
    return scores


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read, score, measure, write."""
    options = parse_options(Options, argv, __doc__ or "")
    check(options)
    candidates = read_candidates(options.data)
    if options.num_prompts is not None:
        candidates = candidates.first_prompts(options.num_prompts)
    with open_output(options.output, "reward_accuracy.json", "{") as output:
        report = measure_scorers(score_all(candidates, options), candidates)
        output.write_json(report, "reward_accuracy.json")
        save_png(reward_accuracy(report), output.claim("reward_accuracy.png"))
    show(report, [reward_accuracy_table(report)], as_json=options.json)


if __name__ == "__main__":
    main()
