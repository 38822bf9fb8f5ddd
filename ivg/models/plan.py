"""Who guides, and how.

Everything here is decided from configurations and tokenizers, before any weights are loaded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ivg.config import ModelConfig, PairConfig, SearchConfig, ValueConfig
from ivg.errors import UserError
from ivg.models.architectures import has_states
from ivg.models.cross_vocab import SAMPLE_TEXT, TokenReadings, guided_share, read_tokens
from ivg.models.inspection import ModelInfo, inspect_model
from ivg.models.vocab import VocabMatch, compare

Route = Literal["ids", "text", "strings"]
MIN_GUIDED_SHARE = 0.5  # of running text; below, guidance would leave most tokens alone


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How one guide takes part.

    Attributes:
        route: the base's ids as they are, text at chunk boundaries, or shared strings at every token.
        match: how the vocabularies compare.
        num_shared: ids below this are scored by both.
        unguided: ids below it that stand for different special tokens.
        warnings: what the user should know.
        readings: how the guide reads the base's tokens, where its route is `strings`.
    """

    route: Route
    match: VocabMatch
    num_shared: int
    unguided: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    readings: TokenReadings | None = None


def fit_guide(base: ModelInfo, guide: ModelInfo, *, guides_tokens: bool, mapping: str = "refuse") -> Fit:
    """Decide a guide's route.

    Args:
        base: the frozen model.
        guide: a tuned, untuned or value model.
        guides_tokens: whether it must score every next token.
        mapping: `shared-strings` lets a different vocabulary guide tokens.

    Raises:
        UserError: token guidance across different vocabularies, or an EOS that means different things.
    """
    match = compare(base.tokenizer, guide.tokenizer)
    if guide.kind == "classifier":
        return Fit(route="text", match=match, num_shared=0)
    if not match.agrees:
        if not guides_tokens:
            return Fit(route="text", match=match, num_shared=0)
        if mapping == "shared-strings" and guide.kind == "causal":
            if has_states(guide.config):
                raise UserError(
                    f"{guide.name}: {guide.config.model_type} keeps recurrent states, whose rows must grow "
                    "alike, and with another vocabulary they do not; use chunk guidance, or a pair with "
                    "attention alone"
                )
            return Fit(route="strings", match=match, num_shared=0)
        raise UserError(
            f"{guide.name}: its vocabulary differs from the base's ({match.summary()}); token guidance needs "
            "equal token-to-id maps; use chunk guidance, or vocab_mapping: shared-strings for a pair"
        )
    return _fit_by_ids(base, guide, match, guides_tokens=guides_tokens)


def _fit_by_ids(base: ModelInfo, guide: ModelInfo, match: VocabMatch, *, guides_tokens: bool) -> Fit:
    ids = base.tokenizer.get_vocab()
    differing = {ids[token]: token for token in match.differing_special}
    for eos in base.eos_ids:
        if eos in differing and guides_tokens:
            raise UserError(
                f"{guide.name}: the base's EOS {differing[eos]!r} has another id or is missing there; "
                "token guidance would never end a response; use a guide with the base's special tokens"
            )
    num_shared = min(base.num_token_ids, base.num_outputs)
    if guide.kind != "scalar":
        num_shared = min(num_shared, guide.num_outputs)
    unguided = tuple(sorted(i for i in differing if i < num_shared))
    warnings = (
        (f"{guide.name}: {len(differing)} special tokens differ from the base's and get no guidance",)
        if differing
        else ()
    )
    return Fit(route="ids", match=match, num_shared=num_shared, unguided=unguided, warnings=warnings)


def _read_base(base: ModelInfo, guide: ModelInfo) -> TokenReadings:
    """Work out how a pair reads the base's tokens.

    Raises:
        UserError: it could guide too few of them.
    """
    readings = read_tokens(
        base.tokenizer,
        guide.tokenizer,
        num_ids=base.num_outputs,
        eos_ids=base.eos_ids,
        end_id=guide.renderer().end_id,
        opens_turn=guide.template == "chat",
    )
    share = guided_share(base.tokenizer, readings, [SAMPLE_TEXT])
    if share is not None and share < MIN_GUIDED_SHARE:
        raise UserError(
            f"{guide.name}: its vocabulary has a counterpart for {share:.0%} of the base's tokens in running "
            f"text, and token guidance needs {MIN_GUIDED_SHARE:.0%}; use chunk guidance, which goes through "
            "text, or a pair whose vocabulary is nearer to the base's"
        )
    return readings


def check_value(info: ModelInfo, *, guides_tokens: bool) -> None:
    """Refuse a value model whose head does not fit its use.

    Raises:
        UserError: token guidance without a vocabulary head, or a head of the wrong size.
    """
    if guides_tokens and info.kind != "vocabulary":
        raise UserError(
            f"{info.name}: explicit token guidance needs a vocabulary head, this is a {info.kind} head; "
            "set token_guidance to none or implicit"
        )
    if info.kind == "vocabulary" and not info.num_token_ids <= info.num_outputs <= info.num_embeddings:
        raise UserError(
            f"{info.name}: its vocabulary head has {info.num_outputs} outputs, but its tokenizer has "
            f"{info.num_token_ids} ids and its embedding {info.num_embeddings}; expected one output per id"
        )
    if info.kind == "classifier" and info.config.num_labels != 1:
        raise UserError(
            f"{info.name}: a reward model needs one output, this classifier has {info.config.num_labels}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PairInfo:
    """An implicit pair, not loaded."""

    config: PairConfig
    tuned: ModelInfo
    untuned: ModelInfo

    @property
    def is_shared(self) -> bool:
        """Whether `tuned` is a LoRA over `untuned` with the same template: one set of weights serves both."""
        over = self.tuned.adapter_over
        return (
            over is not None
            and os.path.realpath(over) == os.path.realpath(self.untuned.source.path)
            and self.tuned.template == self.untuned.template
            and self.tuned.source.chat_template_kwargs == self.untuned.source.chat_template_kwargs
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ValueInfo:
    """An explicit value, not loaded."""

    config: ValueConfig
    model: ModelInfo


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfos:
    """Everything a run loads."""

    base: ModelInfo
    pairs: tuple[PairInfo, ...]
    values: tuple[ValueInfo, ...]
    functions: tuple[ValueConfig, ...] = ()  # values that are Python code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuidePlan:
    """What one guide does in a run.

    Attributes:
        info: the pair or value.
        fit: its route; for a pair, the tuned model's.
        guides_tokens: whether it is asked at every token.
        chunk_weight: its weight in the chunk score; 0 if it does not rank.
        beta: its weight in token guidance; 0 if it does not guide tokens.
    """

    info: PairInfo | ValueInfo
    fit: Fit
    guides_tokens: bool
    chunk_weight: float
    beta: float

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Tuned and untuned, or the value model."""
        return (self.info.tuned, self.info.untuned) if isinstance(self.info, PairInfo) else (self.info.model,)

    @property
    def reads_text(self) -> bool:
        """Whether it ranks chunks by their text; what guides tokens over shared strings ranks so too."""
        return self.fit.route == "text" or (self.fit.route == "strings" and self.chunk_weight != 0)


class FunctionPlan(NamedTuple):
    """A value function that ranks chunks: its dotted name, and its weight in the chunk score."""

    name: str
    weight: float


def inspect_models(
    base: ModelConfig, pairs: Sequence[PairConfig] = (), values: Sequence[ValueConfig] = ()
) -> ModelInfos:
    """Read every model's configuration and tokenizer.

    Raises:
        UserError: a folder that is no model, or a model of the wrong kind.
    """
    return inspect_guides(inspect_model(base, "base"), pairs, values)


def inspect_guides(base: ModelInfo, pairs: Sequence[PairConfig], values: Sequence[ValueConfig]) -> ModelInfos:
    """Read every guide's configuration and tokenizer."""
    several = len(pairs) > 1
    return ModelInfos(
        base,
        tuple(
            PairInfo(
                pair,
                inspect_model(pair.tuned, "tuned", number=i if several else None),
                inspect_model(pair.untuned, "untuned", number=i if several else None),
            )
            for i, pair in enumerate(pairs, 1)
        ),
        tuple(
            ValueInfo(value, inspect_model(value.model, "value", number=i if len(values) > 1 else None))
            for i, value in enumerate(values, 1)
            if value.model is not None
        ),
        tuple(value for value in values if value.function is not None),
    )


def plan_guides(infos: ModelInfos, search: SearchConfig) -> list[GuidePlan]:
    """Decide which guides take part in a run, and how; those with nothing to do are left out.

    Raises:
        UserError: a guide that cannot do what is asked of it.
    """
    plans = []
    for pair in infos.pairs:
        guides_tokens = search.token_guidance == "implicit"
        weight = _chunk_weight(pair.config.chunk_weight, "implicit", search)
        if guides_tokens or weight:
            mapping = pair.config.vocab_mapping
            fits = [
                fit_guide(infos.base, model, guides_tokens=guides_tokens, mapping=mapping)
                for model in (pair.tuned, pair.untuned)
            ]
            is_same = fits[0].route == fits[1].route and fits[0].num_shared == fits[1].num_shared
            if is_same and fits[0].route == "strings":
                is_same = compare(pair.tuned.tokenizer, pair.untuned.tokenizer).agrees
            if not is_same:
                raise UserError(
                    f"{pair.tuned.name} and {pair.untuned.name} have different vocabularies; "
                    "give a pair with one vocabulary"
                )
            fit = fits[0]
            if fit.route == "strings":
                fit = dataclasses.replace(fit, readings=_read_base(infos.base, pair.tuned))
            plans.append(_plan(pair, fit, guides_tokens, weight))
    for value in infos.values:
        guides_tokens = search.token_guidance == "explicit"
        weight = _chunk_weight(value.config.chunk_weight, "explicit", search)
        if guides_tokens or weight:
            check_value(value.model, guides_tokens=guides_tokens)
            if weight:
                value.model.renderer().require_end(value.model.name, judges=value.model.kind == "classifier")
            fit = fit_guide(infos.base, value.model, guides_tokens=guides_tokens)
            plans.append(_plan(value, fit, guides_tokens, weight))
    return plans


def _plan(info: PairInfo | ValueInfo, fit: Fit, guides_tokens: bool, chunk_weight: float) -> GuidePlan:
    beta = info.config.beta if guides_tokens else 0.0
    return GuidePlan(info=info, fit=fit, guides_tokens=guides_tokens, chunk_weight=chunk_weight, beta=beta)


def weigh_guides(plans: Sequence[GuidePlan], beta: float | None) -> list[GuidePlan]:
    """Return plans in which all guides that guide tokens have one weight; None leaves each its own."""
    return [
        dataclasses.replace(plan, beta=beta) if plan.guides_tokens and beta is not None else plan
        for plan in plans
    ]


def plan_functions(infos: ModelInfos, search: SearchConfig) -> list[FunctionPlan]:
    """Return the value functions that rank chunks in a run.

    Raises:
        UserError: explicit token guidance, which a function cannot give.
    """
    plans = []
    for value in infos.functions:
        assert value.function is not None
        if search.token_guidance == "explicit":
            raise UserError(
                f"value function {value.function}: it scores whole prefixes, so it cannot guide tokens; "
                "set token_guidance to none or implicit"
            )
        weight = _chunk_weight(value.chunk_weight, "explicit", search)
        if weight:
            plans.append(FunctionPlan(value.function, weight))
    return plans


def tell_templates(infos: ModelInfos) -> list[str]:
    """Say which guides read prompts in the base's format string instead of a chat template of their own.

    One setting for all models (`--prompt_template`) is easily given for the base alone.
    """
    template = infos.base.source.template
    guides = [model for pair in infos.pairs for model in (pair.tuned, pair.untuned)]
    guides += [value.model for value in infos.values]
    return [
        f"{info.name}: reads prompts as {template!r}, like the base, and not in its own chat template"
        for info in guides
        if template not in (None, "chat")
        and info.source.template == template
        and info.tokenizer.chat_template
    ]


def used_models(infos: ModelInfos, plans: Sequence[GuidePlan]) -> ModelInfos:
    """Leave out the guides that have nothing to do, so that they are not loaded."""
    used = {id(plan.info) for plan in plans}
    return ModelInfos(
        infos.base,
        tuple(pair for pair in infos.pairs if id(pair) in used),
        tuple(value for value in infos.values if id(value) in used),
        infos.functions,
    )


def _chunk_weight(own: float | None, kind: str, search: SearchConfig) -> float:
    """Return a guide's weight in the chunk score: its own, else 1 for the kind that was asked for."""
    if search.chunk_guidance == "none":
        return 0.0
    return own if own is not None else float(search.chunk_guidance == kind)


def reading_models(base: ModelInfo, plans: Sequence[GuidePlan]) -> list[ModelInfo]:
    """Return the models that read each prompt in ids of their own, each once, the base first.

    Where one set of weights serves a pair by ids, both halves are fed as one.
    """
    infos = {base.name: base}
    for plan in plans:
        is_one = isinstance(plan.info, PairInfo) and plan.info.is_shared and plan.fit.route == "ids"
        infos |= {info.name: info for info in (plan.models[:1] if is_one else plan.models)}
    return list(infos.values())
