"""What `ivg-decode --dry_run` says: does everything fit together, model by model, before weights load."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ivg.config import DecodeConfig, Guidance, SearchConfig, check_guidance
from ivg.diagnosis import Diagnosis, ModelReport, Possibility
from ivg.errors import UserError
from ivg.inspection import ModelInfo, longrope_length
from ivg.kernels.library import library
from ivg.loading import default_device
from ivg.memory import adapter_bytes, estimate
from ivg.plan import GuidePlan, ModelInfos, inspect_models, plan_guides
from ivg.prompts import Row, encode_prompt, has_double_bos, render_prompt
from ivg.vocab import compare, stop_token_ids

KINDS: tuple[Guidance, ...] = ("none", "implicit", "explicit")


def diagnose(config: DecodeConfig, rows: Sequence[Row]) -> Diagnosis:
    """Examine a run without loading any weights.

    Args:
        config: the run.
        rows: its checked prompt rows, at least one.

    Raises:
        UserError: a model's folder cannot be read at all.
    """
    infos = inspect_models(config.base, config.pairs, config.values)
    problems: list[str] = []
    plans: list[GuidePlan] | None = None
    try:
        plans = plan_guides(infos, config.search)
        stop_token_ids(infos.base.tokenizer, config.sampling.stop)
    except UserError as error:
        problems.append(str(error))
    models = _examine_all(infos, plans, rows, config)
    used = [model for model in models if model.is_used]
    new = config.sampling.max_new_tokens
    width = max((model.longest_prompt for model in used), default=0) + new
    num_rows = _num_rows(config, len(rows), width)
    bad = _bad_prompts(used, config)
    return Diagnosis(
        models=tuple(models),
        possibilities=tuple(
            _possibility(infos, config, level, kind)
            for level in ("token_guidance", "chunk_guidance")
            for kind in KINDS
        ),
        weight_bytes=sum(m.needs.weight_bytes for m in used),
        num_rows=num_rows,
        cache_bytes=sum(m.needs.cache_bytes_per_token * num_rows * (m.longest_prompt + new) for m in used),
        num_prompts=len(rows),
        problems=(*problems, *([] if config.skip_bad_rows else bad)),
        warnings=(*_warnings(infos, models), *(bad if config.skip_bad_rows else [])),
    )


def _num_rows(config: DecodeConfig, num_prompts: int, width: int) -> int:
    """Return how many rows can stand side by side: whole prompts of one block, up to `width` columns wide."""
    per_prompt = config.search.rows_per_prompt
    num_tasks = min(num_prompts, config.block_size) * config.sampling.num_samples
    rows = min(config.max_batch_rows // per_prompt, num_tasks)
    if config.max_batch_tokens is not None:
        rows = max(1, min(rows, config.max_batch_tokens // (width * per_prompt)))
    return rows * per_prompt


def _examine_all(
    infos: ModelInfos, plans: Sequence[GuidePlan] | None, rows: Sequence[Row], config: DecodeConfig
) -> list[ModelReport]:
    """Examine the base and all guides; without a plan, all count as used."""
    pairs = [info for pair in infos.pairs for info in (pair.untuned, pair.tuned)]
    every = [infos.base, *pairs, *(value.model for value in infos.values)]
    asked = every if plans is None else [infos.base, *(info for plan in plans for info in plan.models)]
    used = {info.name for info in asked}
    seen: set[str] = set()
    reports = []
    for info in every:
        key = info.adapter_over or info.source.path
        report = _examine(info, infos.base, rows, config, shares_weights=key in seen)
        reports.append(dataclasses.replace(report, is_used=info.name in used))
        if info.name in used:
            seen.add(key)
    return reports


def _examine(
    info: ModelInfo, base: ModelInfo, rows: Sequence[Row], config: DecodeConfig, *, shares_weights: bool
) -> ModelReport:
    prompts: list[list[int]] = []
    refused: list[str] = []
    example = ""
    for row in rows:
        try:
            prompts.append(encode_prompt(info.tokenizer, row, info.template))
            example = example or render_prompt(info.tokenizer, row, info.template)
        except UserError as error:
            refused.append(str(error))
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
        example=example,
        num_double_bos=sum(has_double_bos(info.tokenizer, ids) for ids in prompts),
        longest_prompt=max(map(len, prompts), default=0),
        max_length=info.max_length,
        num_too_long=0 if room is None else sum(len(ids) > room for ids in prompts),
        refused=tuple(refused),
        is_used=True,
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


def _bad_prompts(used: Sequence[ModelReport], config: DecodeConfig) -> list[str]:
    bad = [
        f"{model.name}: {len(model.refused)} prompts cannot be written in its template: {model.refused[0]}"
        for model in used
        if model.refused
    ]
    if config.on_overflow == "error":
        new = config.sampling.max_new_tokens
        bad += [
            f"{model.name}: {model.num_too_long} prompts + max_new_tokens {new} exceed its context of "
            f"{model.max_length}; shorten them, lower max_new_tokens, or set on_overflow: stop"
            for model in used
            if model.num_too_long
        ]
    return bad


def _warnings(infos: ModelInfos, models: Sequence[ModelReport]) -> list[str]:
    warnings = [
        f"{model.name}: {model.num_double_bos} prompts open with two BOS; drop the one in the template"
        for model in models
        if model.num_double_bos
    ]
    if not models[0].eos_ids:
        warnings.append(f"{models[0].name}: has no EOS id, so responses end by length or stop string only")
    source = infos.base.source
    if source.device_map is None and (source.device or default_device()) == "cpu" and library() is None:
        warnings.append(
            "the compiled loops are missing, so this CPU decodes slower than it could; install ivg again "
            "where there is a C++ compiler"
        )
    length = longrope_length(infos.base.config)
    if length is not None:
        warnings.append(
            f"{models[0].name}: its longrope positions are exact in a batch up to {length} tokens, so "
            "that is its context here"
        )
    return warnings
