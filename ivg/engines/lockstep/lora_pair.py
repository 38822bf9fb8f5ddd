"""The runners of a pair: a LoRA over its untuned twin runs as one model, its rows with and without adapter.

One set of weights and one forward serve both halves. `ModelRunner.branches` names the adapters under which
each row stands; PEFT mixes them in a batch (`adapter_names`), and `guides.PairGuide` tells the halves' logits
apart. The weights come from `models/loading.py`. vLLM merges the adapter instead, when it loads it.
"""

from __future__ import annotations

from ivg.engines.lockstep.model_runner import ModelRunner, runner_of
from ivg.models.loading import LoadedModel, LoadedPair


def pair_runners(pair: LoadedPair) -> tuple[ModelRunner, ...]:
    """Return fresh runners: tuned and untuned, or one with both as branches."""
    if pair.is_shared and pair.tuned.branch and pair.untuned.branch:
        return (runner_of(pair.tuned, (pair.tuned.branch, pair.untuned.branch)),)
    return (runner_of(pair.tuned), runner_of(pair.untuned))


def separate_runners(pair: LoadedPair) -> tuple[ModelRunner, ModelRunner]:
    """Return fresh runners, always one for each, for rows whose branches differ in length."""
    return (runner_of(pair.tuned), runner_of(pair.untuned))


def is_over_base(pair: LoadedPair, base: LoadedModel) -> bool:
    """Tell whether the base is the pair's untuned half: the same weights, which read prompts alike."""
    halves = (pair.untuned, base)
    module, other = (half.module for half in halves)
    branch, other_branch = (half.branch for half in halves)
    wording, other_wording = ((h.info.template, h.info.source.chat_template_kwargs) for h in halves)
    return module is other and branch == other_branch and wording == other_wording
