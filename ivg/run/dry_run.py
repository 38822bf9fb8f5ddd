"""What `ivg-decode --dry_run` says: does everything fit together, model by model, before weights load.

`examine_run` finds it out; `render` writes it for the terminal: a block for each model, a table of guidance,
memory, the verdict.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ivg.config import DecodeConfig, Guidance, SearchConfig, check_guidance
from ivg.engines.chunk_guidance import import_value_function
from ivg.engines.lockstep.acceleration import has_compiled_loops, packs_weights
from ivg.engines.vllm.refusals import installed_version
from ivg.errors import UserError
from ivg.models.cross_vocab import SAMPLE_TEXT, TokenReadings, guided_share
from ivg.models.inspection import ModelInfo, longrope_length
from ivg.models.loading import default_device, loading_key
from ivg.models.memory import Needs, adapter_bytes, check_it_fits, estimate, process_bytes
from ivg.models.plan import (
    GuidePlan,
    ModelInfos,
    PairInfo,
    inspect_models,
    plan_functions,
    plan_guides,
    tell_templates,
)
from ivg.models.prompts import Record, has_double_bos, messages_of
from ivg.models.vocab import VocabMatch, compare, stop_token_ids
from ivg.run.engines import find_engine_refusals


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model of a run.

    Attributes:
        name: how messages call it.
        architecture: its class, from its configuration.
        kind: causal LM, scalar head, vocabulary head, or sequence classifier.
        needs: memory.
        shares_weights: its weights are counted with another model's.
        is_quantized: it is loaded in fewer bits than its checkpoint has.
        match: how its token-to-id map compares with the base's; None for the base.
        guided_share: of the tokens in the prompts' text, where it guides tokens of another vocabulary.
        eos_ids: every id that ends its responses.
        eos_tokens: their strings.
        template: `chat` or a format string.
        chat_template_kwargs: what the chat template is told.
        example: the first prompt as it sees it.
        reads_as_base: whether that is the base's text.
        num_double_bos: prompts that open with two BOS tokens.
        longest_prompt: in its tokens.
        max_length: its context in tokens, or None.
        num_too_long: prompts that leave less than `max_new_tokens` of it.
        refused: prompts that its template refuses, with the reason.
        is_used: whether the run asks it anything; if not, it will not be loaded.
    """

    name: str
    architecture: str
    kind: str
    needs: Needs
    shares_weights: bool
    is_quantized: bool
    match: VocabMatch | None
    guided_share: float | None
    eos_ids: tuple[int, ...]
    eos_tokens: tuple[str, ...]
    template: str
    chat_template_kwargs: Mapping[str, Any]
    example: str
    reads_as_base: bool
    num_double_bos: int
    longest_prompt: int
    max_length: int | None
    num_too_long: int
    refused: tuple[str, ...]
    is_used: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Possibility:
    """Whether a kind of guidance is possible at a level; if not, or with reservations, why."""

    level: str
    kind: Guidance
    is_possible: bool
    remark: str
    is_asked_for: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """The report on a run.

    Attributes:
        engine: what will decode, with its version where it has one of its own.
        models: base first.
        possibilities: the kinds of token and of chunk guidance.
        weight_bytes: weights of all models that are used, shared ones once; on a CPU as they lie in memory,
            the checkpoint's mapping and packed copies included.
        num_rows: rows that will stand side by side at most.
        cache_bytes: their keys and values at the longest prompt + max_new_tokens, if each row has a whole
            cache of its own; less where the successors of a beam share one (`shared_prefix.py`).
        score_bytes: scores of a step, a number for each row and token of the vocabulary, and copies of them.
        process_bytes: what libraries and tokenizers take, on a CPU.
        num_prompts: prompts read.
        problems: what would make the run fail; empty if it can start.
        warnings: what should be looked at.
    """

    engine: str
    models: tuple[ModelReport, ...]
    possibilities: tuple[Possibility, ...]
    weight_bytes: int
    num_rows: int
    cache_bytes: int
    score_bytes: int
    process_bytes: int
    num_prompts: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


KINDS: tuple[Guidance, ...] = ("none", "implicit", "explicit")
# Logits in float32, with guidance added, as probabilities and their sums.
_COPIES_OF_SCORES, _SCORE_BYTES = 4, 4
_MAX_EXAMPLE = 300  # characters
_KIND_NAMES = {
    "causal": "causal language model",
    "scalar": "value model, scalar head",
    "vocabulary": "value model, vocabulary head",
    "classifier": "reward model that reads text",
}


def examine_run(config: DecodeConfig, records: Sequence[Record]) -> DryRun:
    """Examine a run without loading any weights.

    Args:
        config: the run.
        records: its checked prompts, at least one.

    Raises:
        UserError: a model's folder cannot be read at all.
    """
    infos = inspect_models(config.base, config.pairs, config.values)
    problems: list[str] = []
    plans: list[GuidePlan] | None = None
    try:
        plans = plan_guides(infos, config.search)
        for function in plan_functions(infos, config.search):
            import_value_function(function.name)
        stop_token_ids(infos.base.tokenizer, config.sampling.stop)
    except UserError as error:
        problems.append(str(error))
    else:
        refusals = find_engine_refusals(config, infos, plans)
        problems += dict.fromkeys(refusal.tell(config.engine) for refusal in refusals)
    models = _examine_all(infos, plans, records, config)
    used = [model for model in models if model.is_used]
    running = [model for model in used if model.name not in _find_twins_of_base(infos.base, plans or ())]
    new = config.sampling.max_new_tokens
    width = max((model.longest_prompt for model in used), default=0) + new
    num_rows = _count_rows(config, len(records), width)
    bad = _find_bad_prompts(used, config)
    is_on_cpu = config.engine == "lockstep" and _runs_on_cpu(infos.base)
    return DryRun(
        engine=_name_engine(config),
        models=tuple(models),
        possibilities=tuple(
            _try_guidance(infos, config, level, kind)
            for level in ("token_guidance", "chunk_guidance")
            for kind in KINDS
        ),
        weight_bytes=_count_weights(used, is_on_cpu),
        num_rows=num_rows,
        cache_bytes=sum(m.needs.cache_bytes_per_token * num_rows * (m.longest_prompt + new) for m in running),
        score_bytes=_COPIES_OF_SCORES * len(running) * num_rows * infos.base.num_outputs * _SCORE_BYTES,
        process_bytes=process_bytes() if is_on_cpu else 0,
        num_prompts=len(records),
        problems=(*problems, *([] if config.skip_bad_rows else bad)),
        warnings=(*_find_warnings(infos, models, config), *(bad if config.skip_bad_rows else [])),
    )


def _find_twins_of_base(base: ModelInfo, plans: Sequence[GuidePlan]) -> set[str]:
    """Return the names of untuned halves that are the base itself, so that its own scores stand for theirs.

    Once they are loaded, `engines.lockstep.lora_pair.is_over_base` finds the same.
    """
    untuned = [plan.info.untuned for plan in plans if _asks_by_ids(plan) and isinstance(plan.info, PairInfo)]
    return {
        info.name
        for info in untuned
        if loading_key(info.source) == loading_key(base.source)
        and (info.template, info.source.chat_template_kwargs)
        == (base.template, base.source.chat_template_kwargs)
    }


def _asks_by_ids(plan: GuidePlan) -> bool:
    return plan.guides_tokens and plan.fit.route == "ids"


def _runs_on_cpu(info: ModelInfo) -> bool:
    return info.source.device_map is None and (info.source.device or default_device()) == "cpu"


def _count_weights(models: Sequence[ModelReport], is_on_cpu: bool) -> int:
    """Return what the models' weights take in memory, and on a CPU what loading the largest takes more."""
    num_bytes, loading = 0, 0
    for model in models:
        if not is_on_cpu or model.shares_weights or model.is_quantized:
            num_bytes += model.needs.weight_bytes
            continue
        is_packed = packs_weights() and model.needs.dtype != torch.float64
        num_bytes += model.needs.cpu_bytes(is_packed=is_packed)
        loading = max(loading, model.needs.loading_bytes)
    return num_bytes + loading


def _name_engine(config: DecodeConfig) -> str:
    if config.engine == "lockstep":
        return "lockstep"
    return f"vllm {installed_version() or '(not installed)'}"


def _count_rows(config: DecodeConfig, num_prompts: int, width: int) -> int:
    """Return how many rows can stand side by side: whole prompts of one block, up to `width` columns wide."""
    per_prompt = config.search.rows_per_prompt
    num_tasks = min(num_prompts, config.block_size) * config.sampling.num_samples
    rows = min(config.max_batch_rows // per_prompt, num_tasks)
    if config.max_batch_tokens is not None:
        rows = max(1, min(rows, config.max_batch_tokens // (width * per_prompt)))
    return rows * per_prompt


def _examine_all(
    infos: ModelInfos, plans: Sequence[GuidePlan] | None, records: Sequence[Record], config: DecodeConfig
) -> list[ModelReport]:
    """Examine the base and all guides; without a plan, all count as used."""
    pairs = [info for pair in infos.pairs for info in (pair.untuned, pair.tuned)]
    every = [infos.base, *pairs, *(value.model for value in infos.values)]
    asked = every if plans is None else [infos.base, *(info for plan in plans for info in plan.models)]
    used = {info.name for info in asked}
    readings = {info.name: plan.fit.readings for plan in plans or () for info in plan.models}
    seen: set[str] = set()
    reports: list[ModelReport] = []
    for info in every:
        key = info.adapter_over or info.source.path
        report = _examine(info, infos.base, records, config, shares_weights=key in seen)
        share = _measure_share(infos.base, readings.get(info.name), records)
        reads_as_base = not reports or report.example == reports[0].example
        reports.append(
            dataclasses.replace(
                report, is_used=info.name in used, guided_share=share, reads_as_base=reads_as_base
            )
        )
        if info.name in used:
            seen.add(key)
    return reports


def _examine(
    info: ModelInfo, base: ModelInfo, records: Sequence[Record], config: DecodeConfig, *, shares_weights: bool
) -> ModelReport:
    renderer = info.renderer()
    prompts: list[list[int]] = []
    refused: list[str] = []
    example = ""
    for record in records:
        try:
            prompts.append(renderer.prompt_ids(record))
            example = example or renderer.prompt_text(record)
        except UserError as error:
            refused.append(str(error))
    check_it_fits([info])  # else its size could not be told: `estimate` builds every layer
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
        is_quantized=info.source.quantization is not None,
        match=None if info is base else compare(base.tokenizer, info.tokenizer),
        guided_share=None,
        eos_ids=info.eos_ids,
        eos_tokens=tuple(map(str, info.tokenizer.convert_ids_to_tokens(list(info.eos_ids)))),
        template=info.template,
        chat_template_kwargs=info.source.chat_template_kwargs,
        example=example,
        reads_as_base=True,
        num_double_bos=sum(has_double_bos(info.tokenizer, ids) for ids in prompts),
        longest_prompt=max(map(len, prompts), default=0),
        max_length=info.max_length,
        num_too_long=0 if room is None else sum(len(ids) > room for ids in prompts),
        refused=tuple(refused),
        is_used=True,
    )


def _measure_share(
    base: ModelInfo, readings: TokenReadings | None, records: Sequence[Record]
) -> float | None:
    if readings is None:
        return None
    texts = (message["content"] for record in records for message in messages_of(record))
    return guided_share(base.tokenizer, readings, texts)


def _try_guidance(infos: ModelInfos, config: DecodeConfig, level: str, kind: Guidance) -> Possibility:
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
        refusals = find_engine_refusals(config, infos, plans, asks_vllm=False)
    except UserError as error:
        return Possibility(level, kind, False, str(error), is_asked_for)
    if refusals:
        return Possibility(level, kind, False, refusals[0].tell(config.engine), is_asked_for)
    remarks = [_describe_route(infos.base, plan) for plan in plans]
    remarks += [warning for plan in plans for warning in plan.fit.warnings]
    return Possibility(level, kind, True, "; ".join(dict.fromkeys(remarks)), is_asked_for)


def _describe_route(base: ModelInfo, plan: GuidePlan) -> str:
    if plan.fit.readings is not None:
        share = guided_share(base.tokenizer, plan.fit.readings, [SAMPLE_TEXT])
        return f"where the guide has a token for the same bytes: {share or 0:.0%} of running text"
    return "by ids" if plan.fit.route == "ids" else "through text, in the guide's own vocabulary"


def _find_bad_prompts(used: Sequence[ModelReport], config: DecodeConfig) -> list[str]:
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


def _find_warnings(infos: ModelInfos, models: Sequence[ModelReport], config: DecodeConfig) -> list[str]:
    warnings = [
        f"{model.name}: {model.num_double_bos} prompts open with two BOS; drop the one in the template"
        for model in models
        if model.num_double_bos
    ]
    if not models[0].eos_ids:
        warnings.append(f"{models[0].name}: has no EOS id, so responses end by length or stop string only")
    if config.engine == "lockstep" and _runs_on_cpu(infos.base) and not has_compiled_loops():
        warnings.append(
            "the compiled loops are missing, so this CPU decodes slower than it could; install ivg from its "
            "source with pip install -e, where there is a C++ compiler"
        )
    warnings += tell_templates(infos)
    length = longrope_length(infos.base.config)
    if length is not None:
        warnings.append(
            f"{models[0].name}: its longrope positions are exact in a batch up to {length} tokens, so "
            "that is its context here"
        )
    return warnings


def as_json(report: DryRun) -> dict[str, Any]:
    """Return the report in JSON's own types."""
    content = dataclasses.asdict(report)
    for model in content["models"]:
        model["needs"]["dtype"] = str(model["needs"]["dtype"]).removeprefix("torch.")
    return content


def render(report: DryRun) -> RenderableType:
    """Return what a console prints; it fits 80 columns."""
    parts: list[RenderableType] = []
    for model in report.models:
        parts += [Text(model.name, style="bold"), _list_facts(model), Text()]
    parts += [_tabulate_guidance(report), Text()]
    parts += [Text(f"engine: {report.engine}"), Text(_describe_memory(report))]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    parts += [Text(f"problem: {problem}", style="red") for problem in report.problems]
    if not report.problems:
        parts.append(Text(f"ready to decode {report.num_prompts:,} prompts", style="green"))
    return Group(*parts)


def _describe_memory(report: DryRun) -> str:
    weights = format_size(report.weight_bytes)
    if report.engine != "lockstep":
        return f"memory: weights {weights}; keys and values fill what vLLM's own arguments leave them"
    total = report.weight_bytes + report.cache_bytes + report.score_bytes + report.process_bytes
    libraries = f" + libraries {format_size(report.process_bytes)}" if report.process_bytes else ""
    return (
        f"memory: {format_size(total)} = weights {weights} + keys and values of {report.num_rows} rows, at "
        f"most {format_size(report.cache_bytes)} + scores {format_size(report.score_bytes)}{libraries}; "
        "activations come on top"
    )


def format_size(num_bytes: int) -> str:
    """Write a number of bytes with its unit."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def _list_facts(model: ModelReport) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=12)
    shared = ", shared with another model" if model.shares_weights else ""
    eos = ", ".join(f"{i} {t}" for i, t in zip(model.eos_ids, model.eos_tokens, strict=True))
    limit = "no limit" if model.max_length is None else f"{model.max_length:,} tokens"
    weights = format_size(model.needs.weight_bytes)
    facts = {
        "what": f"{_KIND_NAMES[model.kind]} ({model.architecture})",
        "weights": f"{weights}, {model.needs.num_parameters:,} parameters{shared}",
        "vocabulary": _describe_vocabulary(model),
        "EOS": eos or "none",
        "context": f"{limit}; the longest prompt has {model.longest_prompt:,}",
        "template": _describe_template(model),
        "reads": _shorten_example(model),
    }
    if not model.is_used:
        facts["use"] = "none in this run; it will not be loaded"
    for name, fact in facts.items():
        table.add_row(f"  {name}", escape(fact))
    return table


def _describe_vocabulary(model: ModelReport) -> str:
    if model.match is None:
        return "the base's own"
    verdict = "agrees" if model.match.agrees else "differs"
    reach = (
        ""
        if model.guided_share is None
        else f"; it can guide {model.guided_share:.0%} of the prompts' tokens"
    )
    return f"{verdict}: {model.match.summary()}{reach}"


def _describe_template(model: ModelReport) -> str:
    told = ", ".join(f"{name}: {json.dumps(value)}" for name, value in model.chat_template_kwargs.items())
    with_kwargs = f", told {told}" if told else ""
    return (
        repr(model.template) + with_kwargs + ("" if model.reads_as_base else ", not worded as for the base")
    )


def _shorten_example(model: ModelReport) -> str:
    text, half = model.example, _MAX_EXAMPLE // 2
    # Templates differ at the end as well, where they open the answer.
    return repr(text if len(text) <= _MAX_EXAMPLE else f"{text[:half]} ... {text[-half:]}")


def _tabulate_guidance(report: DryRun) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("guidance (*: asked for)", no_wrap=True)
    table.add_column("possible", no_wrap=True)
    table.add_column("how, or why not", overflow="fold")
    for entry in report.possibilities:
        mark = "*" if entry.is_asked_for else " "
        table.add_row(
            f"{mark} {entry.level} {entry.kind}", "yes" if entry.is_possible else "no", escape(entry.remark)
        )
    return table
