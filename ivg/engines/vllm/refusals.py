"""What vLLM cannot do, found before anything is loaded. No vLLM here: a dry run asks it too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ivg.config import SamplingConfig
from ivg.decoding.engine import Refusal
from ivg.errors import UserError
from ivg.models.inspection import ModelInfo
from ivg.models.plan import GuidePlan, PairInfo
from ivg.models.prompts import encode_prompt

LOCKSTEP = "set engine: lockstep"
MIN_TEMPERATURE = 0.01  # vLLM raises anything between 0 and this to it
_PROBE = {"prompt": "Is it 1, 2 or 3?\nSay why."}


def find_refusals(
    base: ModelInfo,
    plans: Sequence[GuidePlan],
    sampling: SamplingConfig,
    *,
    keep_trace: bool = False,
    tensor_parallel_size: int = 1,
) -> list[Refusal]:
    """Return what a run asks for and vLLM cannot do.

    Args:
        base: the frozen model.
        plans: the guides that take part.
        sampling: temperature.
        keep_trace: whether log-ratios and boundaries are to be recorded.
        tensor_parallel_size: over how many devices every layer is spread.
    """
    guides = [info for plan in plans for info in plan.models]
    return [
        *_refuse_routes(plans),
        *(refusal for info in (base, *guides) for refusal in _refuse_model(info, tensor_parallel_size)),
        *(refusal for guide in guides for refusal in _refuse_beside(base, guide)),
        *_refuse_chunk_scores(plans),
        *_refuse_settings(plans, sampling, keep_trace),
    ]


def _refuse_routes(plans: Sequence[GuidePlan]) -> Iterator[Refusal]:
    """All models read one sequence of ids."""
    for plan in plans:
        if plan.fit.route != "ids":
            name = plan.models[0].name
            reason = "its vocabulary differs from the base's"
            if plan.models[0].kind == "classifier":
                reason = "a sequence classifier reads whole texts"
            yield Refusal(name, f"{reason}, and vLLM feeds all models the same ids", LOCKSTEP)


def _refuse_model(info: ModelInfo, tensor_parallel_size: int) -> Iterator[Refusal]:
    source, fields = info.source, info.config.get_text_config().to_dict()
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
    window = fields.get("sliding_window")
    if "sliding_attention" in (fields.get("layer_types") or ()) or (
        fields.get("layer_types") is None and window and fields.get("use_sliding_window", True)
    ):
        reason = "vLLM keeps one attention window for all models of an engine"
        yield Refusal(f"{info.name}: sliding-window attention", reason, LOCKSTEP)
    heads = fields.get("num_attention_heads") or fields.get("n_head") or 0
    if heads % tensor_parallel_size:
        instead = "give a tensor_parallel_size that divides the heads of all models"
        reason = f"its {heads} attention heads cannot be divided so"
        yield Refusal(f"{info.name}: tensor_parallel_size {tensor_parallel_size}", reason, instead)


def _refuse_beside(base: ModelInfo, guide: ModelInfo) -> Iterator[Refusal]:
    """A guide reads the base's prompt, in the base's type of numbers."""
    try:
        is_same = encode_prompt(guide.tokenizer, _PROBE, guide.template) == encode_prompt(
            base.tokenizer, _PROBE, base.template
        )
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


def _refuse_settings(
    plans: Sequence[GuidePlan], sampling: SamplingConfig, keep_trace: bool
) -> Iterator[Refusal]:
    if 0 < sampling.temperature < MIN_TEMPERATURE:
        instead = f"give 0 (greedy), {MIN_TEMPERATURE} or more, or {LOCKSTEP}"
        yield Refusal(f"temperature {sampling.temperature}", "vLLM would raise it", instead)
    if keep_trace and any(plan.guides_tokens for plan in plans):
        reason = "vLLM does not return what guidance added to each token"
        yield Refusal("trace with token guidance", reason, LOCKSTEP)
