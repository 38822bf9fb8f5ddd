"""What the vLLM that is installed here, on this machine, cannot do; found before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from vllm import ModelRegistry, envs
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON

from ivg.config import SamplingConfig
from ivg.decoding.engine import Refusal
from ivg.engines.vllm.refusals import LOCKSTEP, VALUE_ENGINE, split_values
from ivg.models.inspection import ModelInfo
from ivg.models.plan import GuidePlan


def find_refusals_here(
    base: ModelInfo, plans: Sequence[GuidePlan], sampling: SamplingConfig, engine_args: Mapping[str, Any]
) -> list[Refusal]:
    """Return what the vLLM that is installed here, on this machine, cannot do."""
    inside, alone = split_values(plans, engine_args)
    models = (base, *(info for plan in inside for info in plan.models))
    values = [info for plan in alone for info in plan.models]
    own = {name: value for name, value in engine_args.items() if name != VALUE_ENGINE}
    value_args = engine_args.get(VALUE_ENGINE)
    return [
        *_refuse_unknown(own),
        *_refuse_unknown(value_args if isinstance(value_args, Mapping) else {}, f"{VALUE_ENGINE}."),
        *_refuse_architectures(models),
        *_refuse_value_heads(values),
        *_refuse_head_sizes((*models, *values)),
        *_refuse_pieces(sampling, engine_args),
        *_refuse_sampled_drafts(sampling, engine_args),
        *_refuse_second_runner(),
    ]


def _refuse_unknown(engine_args: Mapping[str, Any], where: str = "") -> Iterator[Refusal]:
    known = [field.name for field in dataclasses.fields(EngineArgs)]
    for name in map(str, engine_args):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            instead = f"did you mean {close[0]!r}?" if close else "see vllm serve --help=all"
            yield Refusal(f"vllm.{where}{name}", "vLLM has no such argument", instead)


def _refuse_architectures(models: Sequence[ModelInfo]) -> Iterator[Refusal]:
    supported = ModelRegistry.get_supported_archs()
    for info in models:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(info.config), None)
        name = info.config.model_type if model_class is None else model_class.__name__
        if name not in supported:
            yield Refusal(info.name, f"vLLM has no {name}", LOCKSTEP)


def _refuse_value_heads(values: Sequence[ModelInfo]) -> Iterator[Refusal]:
    """A classifier of vLLM's own, or a head that lies where vLLM puts one over any of its language models."""
    supported = ModelRegistry.get_supported_archs()
    for info in values:
        if set(info.config.architectures or ()) & set(supported):
            continue
        yield from _refuse_architectures([info])
        if info.config.model_type == "gpt2" and info.kind != "classifier":
            reason = "its head is called `classifier`, where vLLM looks for `score`"
            yield Refusal(info.name, reason, f"leave out vllm.{VALUE_ENGINE}, or {LOCKSTEP}")


def _refuse_head_sizes(models: Sequence[ModelInfo]) -> Iterator[Refusal]:
    if not current_platform.is_cpu():
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # the CPU build's

    supported = CPUAttentionBackend.get_supported_head_sizes()
    for info in models:
        config = info.config.get_text_config()
        size = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
        if size not in supported:
            reason = f"on CPUs vLLM takes {', '.join(map(str, supported))}"
            yield Refusal(f"{info.name}: attention heads of size {size}", reason, LOCKSTEP)


def _refuse_pieces(sampling: SamplingConfig, engine_args: Mapping[str, Any]) -> Iterator[Refusal]:
    if engine_args.get("enable_chunked_prefill") and current_platform.is_cpu() and sampling.temperature:
        reason = "on a CPU vLLM cannot turn back the draws of a prompt that is read in pieces"
        yield Refusal("enable_chunked_prefill", reason, "leave it out, or set temperature 0")


def _refuse_sampled_drafts(sampling: SamplingConfig, engine_args: Mapping[str, Any]) -> Iterator[Refusal]:
    if (
        engine_args.get("speculative_config") is not None
        and current_platform.is_cpu()
        and sampling.temperature
    ):
        reason = "vLLM's CPU build judges drafts by another temperature, so that samples would be wrong"
        yield Refusal("vllm.speculative_config", reason, "set temperature 0, or leave it out")


def _refuse_second_runner() -> Iterator[Refusal]:
    if envs.VLLM_USE_V2_MODEL_RUNNER and not HAS_TRITON:
        reason = "vLLM's model runner V2 needs Triton, which this machine has not"
        yield Refusal("VLLM_USE_V2_MODEL_RUNNER", reason, "unset it in the environment, or set it to 0")
