"""What `ivg-decode --dry_run` says: does everything fit together, model by model, before weights load."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ivg.config import DecodeConfig, Guidance, SearchConfig, check_guidance
from ivg.errors import UserError
from ivg.inspection import ModelInfo
from ivg.memory import Needs, adapter_bytes, estimate
from ivg.plan import ModelInfos, PairInfo, inspect_models, plan_guides
from ivg.prompts import Row, encode_prompt, has_double_bos, render_prompt
from ivg.vocab import VocabMatch, compare

KINDS: tuple[Guidance, ...] = ("none", "implicit", "explicit")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model of a run.

    Attributes:
        name: how messages call it.
        architecture: its class, from its configuration.
        kind: causal LM, scalar head, vocabulary head, or sequence classifier.
        needs: memory.
        shares_weights: its weights are counted with another model's.
        match: how its token-to-id map compares with the base's; None for the base.
        eos_ids: every id that ends its responses.
        eos_tokens: their strings.
        template: `chat` or a format string.
        example: the first prompt as it sees it.
        num_double_bos: prompts that open with two BOS tokens.
        longest_prompt: in its tokens.
        max_length: its context in tokens, or None.
        num_too_long: prompts that leave less than `max_new_tokens` of it.
    """

    name: str
    architecture: str
    kind: str
    needs: Needs
    shares_weights: bool
    match: VocabMatch | None
    eos_ids: tuple[int, ...]
    eos_tokens: tuple[str, ...]
    template: str
    example: str
    num_double_bos: int
    longest_prompt: int
    max_length: int | None
    num_too_long: int


@dataclasses.dataclass(frozen=True, slots=True)
class Possibility:
    """Whether a kind of guidance is possible at a level; if not, or with reservations, why."""

    level: str
    kind: Guidance
    is_possible: bool
    remark: str
    is_asked_for: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The report on a run.

    Attributes:
        models: base first.
        possibilities: the kinds of token and of chunk guidance.
        weight_bytes: all weights, shared ones once.
        cache_bytes: keys and values of `max_batch_rows` rows at the longest prompt + max_new_tokens.
        num_prompts: prompts read.
        problems: what would make the run fail; empty if it can start.
        warnings: what should be looked at.
    """

    models: tuple[ModelReport, ...]
    possibilities: tuple[Possibility, ...]
    weight_bytes: int
    cache_bytes: int
    num_prompts: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def diagnose(config: DecodeConfig, rows: Sequence[Row]) -> Diagnosis:
    """Examine a run without loading any weights.

    Args:
        config: the run.
        rows: its checked prompt rows, at least one.

    Raises:
        UserError: a model's folder cannot be read at all.
    """
    infos = inspect_models(config.base, config.pairs, config.values)
    seen: set[str] = set()
    models = []
    for info in _every_model(infos):
        key = info.adapter_over or info.source.path
        models.append(_examine(info, infos.base, rows, config, shares_weights=key in seen))
        seen.add(key)
    possibilities = tuple(
        _possibility(infos, config, level, kind)
        for level in ("token_guidance", "chunk_guidance")
        for kind in KINDS
    )
    tokens = config.max_batch_rows * config.sampling.max_new_tokens
    return Diagnosis(
        models=tuple(models),
        possibilities=possibilities,
        weight_bytes=sum(m.needs.weight_bytes for m in models),
        cache_bytes=sum(
            m.needs.cache_bytes_per_token * (tokens + config.max_batch_rows * m.longest_prompt)
            for m in models
        ),
        num_prompts=len(rows),
        problems=tuple(_problems(infos, config, models)),
        warnings=tuple(_warnings(models)),
    )


def _every_model(infos: ModelInfos) -> list[ModelInfo]:
    pairs = [info for pair in infos.pairs for info in (pair.untuned, pair.tuned)]
    return [infos.base, *pairs, *(value.model for value in infos.values)]


def _examine(
    info: ModelInfo, base: ModelInfo, rows: Sequence[Row], config: DecodeConfig, *, shares_weights: bool
) -> ModelReport:
    prompts = [encode_prompt(info.tokenizer, row, info.template) for row in rows]
    needs = estimate(info)
    if shares_weights:
        needs = dataclasses.replace(needs, weight_bytes=adapter_bytes(info) if info.adapter_over else 0)
    room = None if info.max_length is None else info.max_length - config.sampling.max_new_tokens
    return ModelReport(
        name=info.name,
        architecture=", ".join(info.config.architectures or [info.config.model_type]),
        kind=info.kind,
        needs=needs,
        shares_weights=shares_weights,
        match=None if info is base else compare(base.tokenizer, info.tokenizer),
        eos_ids=info.eos_ids,
        eos_tokens=tuple(map(str, info.tokenizer.convert_ids_to_tokens(list(info.eos_ids)))),
        template=info.template,
        example=render_prompt(info.tokenizer, rows[0], info.template),
        num_double_bos=sum(has_double_bos(info.tokenizer, ids) for ids in prompts),
        longest_prompt=max(map(len, prompts)),
        max_length=info.max_length,
        num_too_long=0 if room is None else sum(len(ids) > room for ids in prompts),
    )


def _possibility(infos: ModelInfos, config: DecodeConfig, level: str, kind: Guidance) -> Possibility:
    """Try one kind of guidance alone, whatever the run asks for."""
    is_asked_for = {
        "token_guidance": config.search.token_guidance,
        "chunk_guidance": config.search.chunk_guidance,
    }[level] == kind
    choice: dict[str, Any] = {level: kind}
    search = SearchConfig(**choice)
    try:
        check_guidance(search, config.sampling, config.pairs, config.values)
        plans = plan_guides(infos, search)
    except UserError as error:
        return Possibility(level, kind, False, str(error), is_asked_for)
    routes = {
        "text": "through text, in the guide's own vocabulary",
        "strings": "over the strings that both vocabularies have",
        "ids": "by ids",
    }
    remarks = [routes[plan.fit.route] for plan in plans]
    remarks += [warning for plan in plans for warning in plan.fit.warnings]
    return Possibility(level, kind, True, "; ".join(dict.fromkeys(remarks)), is_asked_for)


def _problems(infos: ModelInfos, config: DecodeConfig, models: Sequence[ModelReport]) -> list[str]:
    problems = []
    try:
        used = {
            info.name
            for plan in plan_guides(infos, config.search)
            for info in (
                (plan.info.tuned, plan.info.untuned)
                if isinstance(plan.info, PairInfo)
                else (plan.info.model,)
            )
        }
    except UserError as error:
        used = set()
        problems.append(str(error))
    if config.on_overflow == "error":
        new = config.sampling.max_new_tokens
        problems += [
            f"{model.name}: {model.num_too_long} prompts + max_new_tokens {new} exceed its context of "
            f"{model.max_length}; shorten them, lower max_new_tokens, or set on_overflow: stop"
            for model in models
            if model.num_too_long and (model.name in used or model.match is None)
        ]
    return problems


def _warnings(models: Sequence[ModelReport]) -> list[str]:
    warnings = [
        f"{model.name}: {model.num_double_bos} prompts open with two BOS; drop the one in the template"
        for model in models
        if model.num_double_bos
    ]
    if not models[0].eos_ids:
        warnings.append(f"{models[0].name}: has no EOS id, so responses end by length or stop string only")
    return warnings
