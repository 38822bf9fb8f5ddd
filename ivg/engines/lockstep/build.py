"""From plans and loaded models to the guides that a run asks."""

from __future__ import annotations

from collections.abc import Sequence

from ivg.config import SamplingConfig
from ivg.decoding.shared_ids import SharedIds
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.acceleration import accelerate
from ivg.engines.lockstep.batch import LockstepBatch
from ivg.engines.lockstep.cross_vocab_guide import CrossVocabPairGuide, CrossVocabRunner
from ivg.engines.lockstep.guides import Guide, PairGuide, ScalarValueGuide, VocabularyValueGuide, Weights
from ivg.engines.lockstep.lora_pair import is_over_base, pair_runners, separate_runners
from ivg.engines.lockstep.model_runner import runner_of
from ivg.engines.lockstep.state_check import require_exact_states
from ivg.engines.lockstep.text_guides import TextGuides
from ivg.models.cross_vocab import TokenReadings
from ivg.models.inspection import ModelInfo
from ivg.models.loading import LoadedModel, LoadedPair, LoadedValue, Models
from ivg.models.plan import GuidePlan


def build_batch(models: Models, plans: Sequence[GuidePlan], sampling: SamplingConfig) -> LockstepBatch:
    """Return base and guides on the same rows, on a CPU made faster where the models are ours to change."""
    lockstep = LockstepBatch(runner_of(models.base), bind_guides(models, plans, beside_base=True), sampling)
    for runner in lockstep.runners:
        require_exact_states(runner)
    # Under a device map, layers carry hooks that must stay.
    ours = [m.module for m in models.every if m.is_ours and m.info.source.device_map is None]
    accelerate(lockstep.runners, ours)
    return lockstep


def bind_guides(models: Models, plans: Sequence[GuidePlan], *, beside_base: bool = False) -> list[Guide]:
    """Return the guides that read ids, in the order of the plans.

    Args:
        models: what is loaded.
        plans: all guides of the run.
        beside_base: the guides run in a batch with the base, whose state those that read it are given.
    """
    base = models.base if beside_base else None
    by_ids = [plan for plan in plans if plan.fit.route != "text"]
    return [_bind(_loaded(models, plan), plan, models.infos.base, base) for plan in by_ids]


def bind_text_guides(
    models: Models, plans: Sequence[GuidePlan], stop_checker: StopChecker
) -> TextGuides | None:
    """Return what scores hypotheses at boundaries, or None where all is scored while they are sampled.

    Args:
        models: what is loaded.
        plans: all guides of the run.
        stop_checker: says where responses end.
    """
    readers = [(_loaded(models, plan), plan.chunk_weight) for plan in plans if plan.reads_text]
    by_ids = [(_loaded(models, plan), plan.chunk_weight) for plan in plans if not plan.reads_text]
    by_ids = [(guide, weight) for guide, weight in by_ids if weight]
    text_guides = TextGuides(models.infos.base, readers, by_ids, stop_checker)
    return text_guides if text_guides.has_work else None


def _loaded(models: Models, plan: GuidePlan) -> LoadedPair | LoadedValue:
    every: list[LoadedPair | LoadedValue] = [*models.pairs, *models.values]
    return next(guide for guide in every if guide.info is plan.info)


def _bind(
    guide: LoadedPair | LoadedValue, plan: GuidePlan, info: ModelInfo, base: LoadedModel | None
) -> Guide:
    shared = SharedIds(info.num_outputs, plan.fit.num_shared, plan.fit.unguided)
    weights = Weights(
        guides_tokens=plan.guides_tokens,
        beta=plan.beta,
        chunk=0.0 if plan.reads_text else plan.chunk_weight,
        average=isinstance(guide, LoadedPair) and guide.info.config.average,
    )
    if isinstance(guide, LoadedPair):
        if plan.fit.route == "strings":
            assert plan.fit.readings is not None
            return _bind_cross_vocab(guide, plan.fit.readings, weights)
        if base is not None and weights.guides_tokens and is_over_base(guide, base):
            return PairGuide((runner_of(guide.tuned),), shared, weights, reads_base=True)
        return PairGuide(pair_runners(guide), shared, weights)
    model = guide.model
    if model.info.kind == "scalar":
        return ScalarValueGuide(runner_of(model), model.head, weights)
    return VocabularyValueGuide(runner_of(model), model.head, shared, weights)


def _bind_cross_vocab(pair: LoadedPair, readings: TokenReadings, weights: Weights) -> CrossVocabPairGuide:
    info = pair.tuned.info
    runners = tuple(CrossVocabRunner(runner, readings) for runner in separate_runners(pair))
    return CrossVocabPairGuide(runners, readings, min(info.num_token_ids, info.num_outputs), weights)
